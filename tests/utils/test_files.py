"""Files are complete or missing, even if the disk is full."""

from collections.abc import Callable
from pathlib import Path

import pytest

from cxlp.utils.errors import CxlpError
from cxlp.utils.files import copy_whole, find_checkpoint, write_whole
from tests.full_disk import room_for


@pytest.mark.parametrize(
    "write", [lambda path: write_whole(path, "second"), lambda path: copy_whole(path.parents[1] / "source", path)]
)
def test_a_full_disk_keeps_the_earlier_file_and_no_partial_file(tmp_path: Path, write: Callable[[Path], None]) -> None:
    (tmp_path / "source").write_text("second")
    path = tmp_path / "new" / "a"
    path.parent.mkdir()
    write_whole(path, "first")
    with pytest.raises(OSError, match="File too large"), room_for(3):
        write(path)
    assert [(found.name, found.read_text()) for found in path.parent.iterdir()] == [("a", "first")]
    write(path)
    assert path.read_text() == "second"


def test_a_bare_name_suggests_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("runs/birds", "runs/cars", "birds"):
        Path(folder).mkdir(parents=True)
    Path("cars.csv").touch()
    said = {"birds": "Did you mean 'runs/birds'", "cars": "Did you mean 'runs/cars'", "car": "Did you mean 'cars.csv'"}
    for given, meant in said.items():
        with pytest.raises(CxlpError, match=meant):
            find_checkpoint(given)
    with pytest.raises(CxlpError, match=r"not found: runs/crs\. Did you mean 'runs/cars'"):
        find_checkpoint("runs/crs")
    with pytest.raises(CxlpError, match=r"runs/cars has no checkpoints/best\.ckpt, [^.]*$"):
        find_checkpoint("runs/cars")
