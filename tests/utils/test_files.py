"""Files are whole or not there, also where the disk is full."""

from collections.abc import Callable
from pathlib import Path

import pytest

from cxlp.utils.files import copy_whole, write_whole
from tests.full_disk import room_for


@pytest.mark.parametrize(
    "write", [lambda path: write_whole(path, "second"), lambda path: copy_whole(path.parents[1] / "source", path)]
)
def test_a_full_disk_leaves_the_earlier_file_and_no_half(tmp_path: Path, write: Callable[[Path], None]) -> None:
    (tmp_path / "source").write_text("second")
    path = tmp_path / "new" / "a"
    path.parent.mkdir()
    write_whole(path, "first")
    with pytest.raises(OSError, match="File too large"), room_for(3):
        write(path)
    assert [(found.name, found.read_text()) for found in path.parent.iterdir()] == [("a", "first")]
    write(path)
    assert path.read_text() == "second"
