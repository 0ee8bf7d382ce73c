"""Reading lists: lines, boxes, totals, and errors about missing lists."""

from pathlib import Path

import pytest

from cxlp.data.dataset import Sample, Split
from cxlp.data.lists import as_box, check_totals, read_lines, read_table
from cxlp.utils.errors import CxlpError


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("last", ["", "end", "end end"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_lines_do_not_depend_on_line_endings(tmp_path: Path, end: str, last: str, mark: bytes) -> None:
    text = end.join([" a  b ", "", "\t", "mall/é 'x'.jpg"]) + last.replace("end", end).replace(" ", "")
    (tmp_path / "list.txt").write_bytes(mark + text.encode())
    assert read_lines(tmp_path / "list.txt") == [(1, "a  b"), (4, "mall/é 'x'.jpg")]


def test_names_may_contain_unicode_line_separators(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes("a\u2028b\nc\x0bd\n".encode())
    assert [line for _, line in read_lines(tmp_path / "list.txt")] == ["a\u2028b", "c\x0bd"]


def test_lists_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(CxlpError, match=r"list not found: .*none\.txt"):
        read_lines(tmp_path / "none.txt")
    (tmp_path / "picture.txt").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(CxlpError, match=r"picture\.txt is not a text"):
        read_lines(tmp_path / "picture.txt")


def test_malformed_lines_and_repeated_keys_are_named(tmp_path: Path) -> None:
    def parse(line: str) -> tuple[str, int]:
        key, value = line.split()
        return key, {"yes": 1, "no": 0}[value]

    path = tmp_path / "list.txt"
    path.write_text("a yes\n\nb no\n")
    assert read_table(path, "a name and yes or no", parse) == {"a": 1, "b": 0}
    for line, said in (("c", "'c'"), ("c yes no", "'c yes no'"), ("c maybe", "'c maybe'")):
        path.write_text(f"a yes\n\n{line}\n")
        with pytest.raises(CxlpError, match=rf"list\.txt, line 3: expected a name and yes or no, got {said}"):
            read_table(path, "a name and yes or no", parse)
    path.write_text("a yes\n\na no\n")
    with pytest.raises(CxlpError, match=r"list\.txt, line 3: a second line for a"):
        read_table(path, "a name and yes or no", parse)


def test_box() -> None:
    assert as_box(["-1.5", "2", "3e1", "4.25"], "here") == (-1.5, 2.0, 30.0, 4.25)


@pytest.mark.parametrize(
    "text", ["", "1 2 3", "1 2 3 4 5", "1 2 3 four", "1 nan 3 4", "1 2 inf 4", "1 2 0 4", "1 2 3 -4"]
)
def test_invalid_boxes_are_quoted(text: str) -> None:
    with pytest.raises(CxlpError, match=rf"^list, line 7: expected 'x y width height', got '{text}'$"):
        as_box(text.split(), "list, line 7")


def sizes(**counts: int) -> dict[Split, list[Sample]]:
    return {split: [Sample(Path(f"{i}"), 0) for i in range(n)] for split, n in counts.items()}  # type: ignore[misc]


def test_subsets_pass_and_incomplete_releases_do_not() -> None:
    official: dict[Split, int] = {"train": 5, "val": 4, "test": 3}
    check_totals(Path("root"), ("a", "b"), sizes(train=5, val=4, test=3), official, full=True)
    check_totals(Path("root"), ("a", "b"), sizes(train=4, test=2), official, full=False)
    for samples, full in ((sizes(train=4, test=2), True), (sizes(train=4, val=4, test=2), False)):
        found = f"4 + {len(samples.get('val', []))} + 2"
        with pytest.raises(CxlpError) as caught:
            check_totals(Path("root"), ("a", "b"), samples, official, full)
        assert str(caught.value) == f"root: {found} images, officially 5 + 4 + 3 (train + val + test)"
