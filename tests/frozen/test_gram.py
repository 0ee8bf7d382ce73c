"""Products of stored rows, compared with the products of the whole matrix."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from cxlp.frozen import gram as gram_module
from cxlp.frozen.gram import combine_rows, gram_matrix, score_rows
from cxlp.frozen.store import RowStore, open_rows

CPU = torch.device("cpu")
ROWS, DIM = 37, 53


@pytest.fixture
def rows() -> Tensor:
    return torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(0))


def stored(rows: Tensor, folder: Path, dtype: torch.dtype = torch.float32) -> RowStore:
    """Write the rows to disk."""
    store = RowStore(folder / "rows.bin", rows.shape[0], rows.shape[1], dtype)
    store.write(torch.arange(len(rows)), rows)
    return store


# From less than one column (one row) at a time, through unequal blocks, to all at once.
BLOCK_BYTES = [1, 4 * ROWS * 10, 4 * DIM * 10, 4 * ROWS * DIM, 256 << 20]


@pytest.mark.parametrize("block_bytes", BLOCK_BYTES)
@pytest.mark.parametrize("tile", [1, 10, 512])
def test_gram_matrix_is_x_times_its_transpose(
    rows: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int, tile: int
) -> None:
    monkeypatch.setattr(gram_module, "_TILE", tile)
    gram = gram_matrix(stored(rows, tmp_path), CPU, block_bytes)
    expected = rows.double() @ rows.double().T
    torch.testing.assert_close(gram.double(), expected, rtol=0, atol=1e-4)
    assert torch.equal(gram, gram.T)  # exactly symmetric, as libsvm assumes


@pytest.mark.parametrize("block_bytes", BLOCK_BYTES)
def test_combine_rows_is_coefficients_times_x(rows: Tensor, tmp_path: Path, block_bytes: int) -> None:
    coefficients = torch.randn(4, ROWS, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    combined = combine_rows(stored(rows, tmp_path), coefficients, CPU, block_bytes)
    torch.testing.assert_close(combined.double(), coefficients @ rows.double(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("block_bytes", BLOCK_BYTES)
def test_score_rows_is_x_times_the_weights_and_the_intercepts(rows: Tensor, tmp_path: Path, block_bytes: int) -> None:
    generator = torch.Generator().manual_seed(1)
    weights, intercepts = torch.randn(4, DIM, generator=generator), torch.randn(4, generator=generator).double()
    scores = score_rows(stored(rows, tmp_path), weights, intercepts, CPU, block_bytes)
    torch.testing.assert_close(scores, rows @ weights.T + intercepts.float(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rows_are_multiplied_in_float32(rows: Tensor, tmp_path: Path, dtype: torch.dtype) -> None:
    store, kept = stored(rows, tmp_path, dtype), rows.to(dtype).double()
    torch.testing.assert_close(gram_matrix(store, CPU), kept @ kept.T, rtol=0, atol=1e-4)
    ones = torch.ones(1, ROWS)
    torch.testing.assert_close(combine_rows(store, ones, CPU).double(), ones.double() @ kept, rtol=0, atol=1e-4)


@pytest.mark.parametrize("block_bytes", [4 * ROWS * 10, 4 * ROWS * 25])
def test_blocks_are_at_most_as_large_as_requested(
    rows: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    store, sizes, entries = stored(rows, tmp_path), [], 0
    read, read_columns = store.read, store.read_columns

    def spy(block: Tensor) -> Tensor:
        nonlocal entries
        entries += block.numel()
        sizes.append(4 * block.numel())
        return block

    monkeypatch.setattr(store, "read", lambda start, stop: spy(read(start, stop)))
    monkeypatch.setattr(store, "read_columns", lambda start, stop: spy(read_columns(start, stop)))
    gram_matrix(store, CPU, block_bytes)
    assert entries == ROWS * DIM  # each entry once
    combine_rows(store, torch.ones(2, ROWS), CPU, block_bytes)
    assert entries == 2 * ROWS * DIM
    assert max(sizes) <= block_bytes


def test_the_gram_matrix_of_packed_signs_is_exact(tmp_path: Path) -> None:
    signs = torch.randint(-1, 2, (40, 5001), generator=torch.Generator().manual_seed(0))
    store = open_rows(tmp_path / "rows.bin", 40, 5001, "sign")
    store.write(torch.arange(40), torch.nn.functional.normalize(signs.float(), dim=1))
    found = gram_matrix(store, torch.device("cpu"), block_bytes=40 * 4 * 700, progress=False)
    whole = (signs @ signs.T).double()  # exact integers
    length = whole.diagonal().rsqrt()
    assert torch.equal(found, whole * length[:, None] * length)
