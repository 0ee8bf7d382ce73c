"""The demo's pictures: drawn once, reproducible, and complete."""

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest

from cxlp.data.decode import read_image
from cxlp.data.demo import datamodule as demo
from cxlp.data.demo.birds import SPECIES, draw_bird, draw_file
from cxlp.data.demo.datamodule import COUNTS, STAMP, Demo
from cxlp.utils.errors import CxlpError

Job = tuple[Path, int, tuple[int, ...]]


def digests(root: Path) -> dict[str, str]:
    files = sorted(root.rglob("*.jpg"))
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def draw_small(job: Job) -> None:
    path, species, seed = job
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_bird(SPECIES[species], np.random.default_rng(seed), 32).save(path)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two training images and one test image per species, small and drawn in this process, which is faster."""
    monkeypatch.setattr(demo, "COUNTS", {"train": 2, "test": 1})
    monkeypatch.setattr(demo, "ProcessPoolExecutor", lambda workers, mp_context: ThreadPoolExecutor(1))
    monkeypatch.setattr(demo, "draw_file", draw_small)


@pytest.fixture
def count_draws(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """Record the drawn jobs."""
    jobs: list[Job] = []

    def counting(job: Job) -> None:
        jobs.append(job)
        draw_small(job)

    monkeypatch.setattr(demo, "draw_file", counting)
    return jobs


def breaking(after: int) -> Callable[[Job], None]:
    """Draw some pictures, then raise the error of a full disk."""
    left = [after]

    def draw(job: Job) -> None:
        if not left[0]:
            raise OSError(28, "No space left on device")
        left[0] -= 1
        draw_small(job)

    return draw


@pytest.mark.usefixtures("few")
def test_pictures_are_drawn_once(tmp_path: Path, count_draws: list[Job]) -> None:
    module = Demo(tmp_path / "data" / "demo", image_size=16)
    module.prepare_data()
    assert len(count_draws) == 30
    assert len({seed for _, _, seed in count_draws}) == 30, "a picture is in two splits or species"
    before = digests(module.root)
    module.prepare_data()
    assert len(count_draws) == 30
    assert digests(module.root) == before
    assert [path.name for path in module.root.parent.iterdir()] == ["demo"], "other files are left"


@pytest.mark.usefixtures("few")
def test_the_drawn_images_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "draw_file", draw_file)
    module = Demo(tmp_path / "demo", image_size=16)
    module.prepare_data()
    module.setup()
    assert module.classes == tuple(species.name for species in SPECIES)
    assert {split: len(data) for split, data in module.splits.items()} == {"train": 20, "val": 0, "test": 10}
    listed = {s.path for data in module.splits.values() for s in data.samples}
    assert listed == set(module.root.rglob("*.jpg"))
    sample = module.splits["test"].samples[7]
    assert sample.label == 7 and sample.path.parent.name == SPECIES[7].name
    # The seed is (split, species, number); the JPEG differs little from the drawing.
    drawn = np.asarray(draw_bird(SPECIES[7], np.random.default_rng((1, 7, 0)))).astype(int)
    assert np.abs(read_image(sample.path) - drawn).mean() < 4


@pytest.mark.usefixtures("few")
def test_pictures_do_not_depend_on_the_process(tmp_path: Path) -> None:
    for name in ("one", "two"):
        Demo(tmp_path / name).prepare_data()
    assert len(digests(tmp_path / "one")) == 30
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("after", [0, 5])
def test_a_failure_leaves_no_files_and_the_next_run_starts_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    module = Demo(tmp_path / "demo")
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(demo, "draw_file", breaking(after))
        module.prepare_data()
    assert list(tmp_path.iterdir()) == []
    module.prepare_data()
    assert len(digests(module.root)) == 30


@pytest.mark.usefixtures("few")
def test_empty_folder_is_filled(tmp_path: Path) -> None:
    Demo(tmp_path).prepare_data()
    assert len(digests(tmp_path)) == 30


@pytest.mark.usefixtures("few")
def test_other_content_is_refused_and_kept(tmp_path: Path, count_draws: list[Job]) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(CxlpError, match=r"demo: .* contains other files .*--data\.root") as caught:
        Demo(tmp_path).prepare_data()
    assert str(tmp_path) in str(caught.value)
    assert not count_draws
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.mark.usefixtures("few")
def test_one_of_two_runs_draws_while_the_other_waits(tmp_path: Path, count_draws: list[Job]) -> None:
    runs = [Thread(target=Demo(tmp_path / "demo").prepare_data) for _ in range(2)]
    for run in runs:
        run.start()
    for run in runs:
        run.join(timeout=60)
    assert len(count_draws) == len(digests(tmp_path / "demo")) == 30
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


@pytest.mark.usefixtures("few")
def test_pictures_of_an_older_version_are_redrawn(tmp_path: Path, count_draws: list[Job]) -> None:
    root = tmp_path / "demo"
    (root / "train").mkdir(parents=True)
    (root / "train" / "old.jpg").write_bytes(b"picture")
    (root / STAMP).write_text("cxlp demo birds, drawing 0\n")
    Demo(root).prepare_data()
    assert len(count_draws) == len(digests(root)) == 30
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


@pytest.mark.usefixtures("few")
def test_deleted_picture_is_named(tmp_path: Path) -> None:
    module = Demo(tmp_path / "demo", image_size=16)
    module.prepare_data()
    gone = module.root / "train" / SPECIES[4].name / "01.jpg"
    gone.unlink()
    with pytest.raises(CxlpError) as caught:
        module.setup()
    assert str(gone) in str(caught.value)


@pytest.mark.slow
def test_all_pictures_are_drawn_by_processes(tmp_path: Path) -> None:
    module: Any = Demo(tmp_path / "demo", image_size=16)
    module.prepare_data()
    module.setup()
    assert COUNTS == {"train": 40, "test": 20}
    assert {split: len(data) for split, data in module.splits.items()} == {"train": 400, "val": 0, "test": 200}
    assert len(set(digests(module.root).values())) == 600
    assert read_image(module.splits["train"].samples[-1].path).shape == (256, 256, 3)
