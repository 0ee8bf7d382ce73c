"""Rows on disk: reading returns the written rows, and errors name the file."""

import pickle
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cxlp.frozen.cache import Entry, StoredFeatures
from cxlp.frozen.store import FeatureType, RowStore, check_space, open_rows
from cxlp.heads import AveragePooling
from cxlp.utils.errors import CxlpError
from tests.full_disk import room_for
from tests.networks import SMALL, build

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_written_in_any_order_read_back(tmp_path: Path, dtype: torch.dtype) -> None:
    values = torch.randn(11, 7).to(dtype)
    store = RowStore(tmp_path / "rows.bin", 11, 7, dtype)
    for positions in torch.randperm(11).chunk(3):
        store.write(positions, values[positions])
    whole = store.read(0, 11)
    assert whole.dtype == dtype
    assert torch.equal(whole, values)
    assert torch.equal(store.read(3, 8), values[3:8])
    assert torch.equal(store.read_columns(0, 7), values)
    assert torch.equal(store.read_columns(2, 5), values[:, 2:5])
    assert (tmp_path / "rows.bin").stat().st_size == 11 * 7 * dtype.itemsize
    store.close()


def test_values_are_converted_to_the_dtype_of_the_store(tmp_path: Path) -> None:
    store = RowStore(tmp_path / "rows.bin", 2, 3, torch.bfloat16)
    values = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    store.write(torch.tensor([0, 1]), values)
    assert torch.equal(store.read(0, 2), values.detach().bfloat16())


def test_values_need_not_be_contiguous(tmp_path: Path) -> None:
    store = RowStore(tmp_path / "rows.bin", 4, 6)
    values = torch.randn(6, 4).T
    store.write(torch.arange(4), values)
    assert torch.equal(store.read(0, 4), values)


def test_a_row_can_be_written_again(tmp_path: Path) -> None:
    store = RowStore(tmp_path / "rows.bin", 2, 3)
    store.write(torch.arange(2), torch.ones(2, 3))
    store.write(torch.tensor([1]), torch.full((1, 3), 5.0))
    assert store.read(0, 2).tolist() == [[1, 1, 1], [5, 5, 5]]


def test_positions_and_rows_must_have_equal_length(tmp_path: Path) -> None:
    store = RowStore(tmp_path / "rows.bin", 4, 3)
    with pytest.raises(ValueError, match="shorter"):
        store.write(torch.arange(3), torch.ones(2, 3))


@settings(deadline=None)
@given(rows=st.integers(1, 50), dim=st.integers(1, 50), limit=st.integers(1, 3000))
def test_blocks_cover_the_rows_once_within_the_limit(
    tmp_path_factory: pytest.TempPathFactory, rows: int, dim: int, limit: int
) -> None:
    store = RowStore(tmp_path_factory.getbasetemp() / "never_written.bin", rows, dim)
    blocks = list(store.blocks(limit))
    store.close()
    assert [row for start, stop in blocks for row in range(start, stop)] == list(range(rows))
    assert all(4 * dim * (stop - start) <= limit or stop - start == 1 for start, stop in blocks)
    if len(blocks) > 1:  # and blocks are not smaller than necessary
        assert 4 * dim * (blocks[0][1] + 1) > limit


def test_two_handles_share_one_file(tmp_path: Path) -> None:
    values = torch.randn(5, 3)
    first = RowStore(tmp_path / "rows.bin", 5, 3)
    first.write(torch.tensor([0, 2, 4]), values[[0, 2, 4]])
    second = RowStore(tmp_path / "rows.bin", 5, 3)  # opening the file later does not erase it
    second.write(torch.tensor([1, 3]), values[[1, 3]])
    first.sync()
    second.sync()
    assert torch.equal(first.read(0, 5), values)
    assert torch.equal(second.read(0, 5), values)
    first.close()
    first.close()  # closing twice is harmless
    assert torch.equal(second.read(0, 5), values)


def test_a_short_file_is_named(tmp_path: Path) -> None:
    store = RowStore(tmp_path / "rows.bin", 5, 3)
    store.write(torch.arange(4), torch.ones(4, 3))
    assert store.read(0, 4).shape == (4, 3)
    with pytest.raises(CxlpError, match=r"rows\.bin is shorter"):
        store.read(0, 5)
    with pytest.raises(CxlpError, match=r"rows\.bin is shorter"):
        store.read_columns(1, 2)


def test_the_folder_is_made(tmp_path: Path) -> None:
    store = RowStore(tmp_path / "deep" / "down" / "rows.bin", 1, 1)
    store.write(torch.tensor([0]), torch.ones(1, 1))
    assert (tmp_path / "deep" / "down" / "rows.bin").stat().st_size == 4


def test_a_store_larger_than_the_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 3_000_000_000

    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage)
    check_space(tmp_path, 3_000_000_000)
    with pytest.raises(CxlpError, match=r"need 4\.5 GB .* 3\.0 GB are free.*pca_dim"):
        check_space(tmp_path, 4_500_000_000)


def test_a_full_disk_is_named_and_the_store_closes_quietly(tmp_path: Path) -> None:
    store = RowStore(tmp_path / "rows.bin", 4, 10)
    with room_for(100):  # two rows and a half
        store.write(torch.arange(2), torch.ones(2, 10))
        with pytest.raises(CxlpError, match=r"cannot write .*rows\.bin: .*Is the disk full\? Point --run\.root"):
            store.write(torch.arange(2, 4), torch.ones(2, 10))
        store.close()
    assert (tmp_path / "rows.bin").stat().st_size == 100


def test_a_disk_that_fills_while_storing_is_reported_and_no_files_are_left(tmp_path: Path) -> None:
    entry = Entry(tmp_path / "store", dict)
    entry.begin()
    with room_for(100):
        with pytest.raises(CxlpError, match=r"cannot write .*\.part: .*Is the disk full\?"):
            entry.commit(build([AveragePooling()], SMALL), {})
        entry.abort()
    assert not list((tmp_path / "store").iterdir())


@pytest.mark.parametrize("to_write", [True, False])
def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path, to_write: bool) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CxlpError, match=r"cannot (open|write) .*rows\.bin"):
        RowStore(tmp_path / "file" / "rows.bin", 1, 1, to_write=to_write)


@pytest.mark.parametrize("dim", [1, 7, 16])
def test_signs_are_packed_and_come_back_at_unit_length(tmp_path: Path, dim: int) -> None:
    signs = torch.randint(-1, 2, (9, dim), generator=torch.Generator().manual_seed(0)).float()
    vectors = torch.nn.functional.normalize(signs, dim=1)
    store = open_rows(tmp_path / "rows.bin", 9, dim, "sign")
    store.write(torch.arange(9), vectors)
    assert (tmp_path / "rows.bin").stat().st_size == 9 * -(-dim // 4)
    assert torch.equal(store.read_columns(0, dim), signs)
    torch.testing.assert_close(store.read(2, 7), vectors[2:7])
    if dim > 8:
        assert torch.equal(store.read_columns(4, 11), signs[:, 4:11])


def test_stored_rows_are_read_from_one_open_file_and_in_workers(tmp_path: Path) -> None:
    values = torch.randn(4, 3)
    store = open_rows(tmp_path / "rows.bin", 4, 3)
    store.write(torch.arange(4), values)
    read = StoredFeatures(tmp_path / "rows.bin", 4, 3)
    assert torch.equal(read(2), values[2])
    sent = pickle.loads(pickle.dumps(read))
    assert torch.equal(sent(1), values[1])

    class Rows(Dataset[Tensor]):
        def __getitem__(self, item: int) -> Tensor:
            return read(item)

        def __len__(self) -> int:
            return 4

    loader = DataLoader(Rows(), batch_size=None, num_workers=2, multiprocessing_context="fork")
    assert torch.equal(torch.stack(list(loader)), values)
    (tmp_path / "rows.bin").unlink()  # an open file can still be read
    assert torch.equal(read(3), values[3])


@pytest.mark.parametrize("kind", ["float32", "float16", "sign"])
def test_rows_in_memory_equal_rows_in_a_file(tmp_path: Path, kind: FeatureType) -> None:
    stores = [open_rows(tmp_path / "rows.bin", 6, 12, kind, in_memory=held) for held in (False, True)]
    values = torch.randn(6, 12, generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([4, 5, 0, 2, 1, 3])
    for store in stores:
        store.write(positions[:4], values[:4])
        store.write(positions[4:], values[4:, :8])  # parts of rows
        store.write(positions[4:], values[4:, 8:], column=8)
        store.sync()
        store.reopen()
    file, memory = stores
    assert torch.equal(memory.read(1, 5), file.read(1, 5))
    assert torch.equal(memory.read_columns(4, 12), file.read_columns(4, 12))
    assert memory.read_columns(4, 12).is_contiguous()
    for store in stores:
        store.close()
