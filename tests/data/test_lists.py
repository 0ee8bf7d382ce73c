"""Reading lists: lines, boxes, totals, and what is said where lists are missing."""

from pathlib import Path

import pytest

from cxlp.data.dataset import Sample, Split
from cxlp.data.download import Archive
from cxlp.data.lists import as_box, check_totals, read_lines, require
from cxlp.utils.errors import CxlpError
from cxlp.utils.fetching import Remote


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("last", ["", "end", "end end"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_lines_are_the_same_whatever_ends_them(tmp_path: Path, end: str, last: str, mark: bytes) -> None:
    text = end.join([" a  b ", "", "\t", "mall/é 'x'.jpg"]) + last.replace("end", end).replace(" ", "")
    (tmp_path / "list.txt").write_bytes(mark + text.encode())
    assert read_lines(tmp_path / "list.txt") == [(1, "a  b"), (4, "mall/é 'x'.jpg")]


def test_names_may_hold_what_unicode_calls_a_line_separator(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes("a\u2028b\nc\x0bd\n".encode())
    assert [line for _, line in read_lines(tmp_path / "list.txt")] == ["a\u2028b", "c\x0bd"]


def test_lists_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(CxlpError, match=r"list not found: .*none\.txt"):
        read_lines(tmp_path / "none.txt")
    (tmp_path / "picture.txt").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(CxlpError, match=r"picture\.txt is no text"):
        read_lines(tmp_path / "picture.txt")


def test_box() -> None:
    assert as_box(["-1.5", "2", "3e1", "4.25"], "here") == (-1.5, 2.0, 30.0, 4.25)


@pytest.mark.parametrize(
    "text", ["", "1 2 3", "1 2 3 4 5", "1 2 3 four", "1 nan 3 4", "1 2 inf 4", "1 2 0 4", "1 2 3 -4"]
)
def test_what_is_no_box_is_quoted(text: str) -> None:
    with pytest.raises(CxlpError, match=rf"^list, line 7: expected 'x y width height', got '{text}'$"):
        as_box(text.split(), "list, line 7")


def sizes(**counts: int) -> dict[Split, list[Sample]]:
    return {split: [Sample(Path(f"{i}"), 0) for i in range(n)] for split, n in counts.items()}  # type: ignore[misc]


def test_small_releases_pass_and_incomplete_ones_do_not() -> None:
    official: dict[Split, int] = {"train": 5, "val": 4, "test": 3}
    check_totals(Path("root"), ("a", "b"), sizes(train=5, val=4, test=3), official, full=True)
    check_totals(Path("root"), ("a", "b"), sizes(train=4, test=2), official, full=False)
    for samples, full in ((sizes(train=4, test=2), True), (sizes(train=4, val=4, test=2), False)):
        found = f"4 + {len(samples.get('val', []))} + 2"
        with pytest.raises(CxlpError) as caught:
            check_totals(Path("root"), ("a", "b"), samples, official, full)
        assert str(caught.value) == f"root: {found} images, officially 5 + 4 + 3 (train + val + test)"


def test_missing_lists_are_named_with_the_files_that_bring_them(tmp_path: Path) -> None:
    pack = Archive(
        urls=("http://here/a.tar",), file="a.tar", checksum=None, size="1 MB", folders=("a",), marker="a.txt"
    )
    plain = Remote(urls=("http://here/b.txt",), file="b.txt", checksum=None, size=3)
    (tmp_path / "a.txt").touch()
    require(["a.txt"], tmp_path, [pack, plain], "thing")
    with pytest.raises(CxlpError) as caught:
        require(["a.txt", "b.txt"], tmp_path, [pack, plain], "thing")
    message = str(caught.value)
    assert message.startswith(f"thing: b.txt not in {tmp_path}. By hand: ")
    assert "http://here/b.txt" in message and "http://here/a.tar" not in message
    # Where the archive's marker is there, but not what it should bring, all is named.
    with pytest.raises(CxlpError, match=r"(?s)thing: c\.txt not in .*http://here/a\.tar"):
        require(["c.txt"], tmp_path, [pack], "thing")
