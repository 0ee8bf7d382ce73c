"""``python -m cxlp check``: output and exit status."""

from pathlib import Path

import pytest

from cxlp.__main__ import main
from cxlp.data import checking
from cxlp.data.cub200 import CUB200
from cxlp.data.voc2007 import VOC2007

Capture = pytest.CaptureFixture[str]


def run(*args: object, status: int, capsys: Capture) -> str:
    """Run the command in this process, and return its output with single spaces between cells."""
    assert main(["check", *map(str, args), "--workers", "1"]) == status
    captured = capsys.readouterr()
    lines = (captured.err if status == 2 else captured.out).replace("│", " ").splitlines()
    return "\n".join(" ".join(line.split()) for line in lines)


def test_a_data_set_that_a_run_can_use(cub200: Path, capsys: Capture) -> None:
    text = run("cub200", "--root", cub200, status=0, capsys=capsys)
    lines = text.splitlines()
    assert lines[0] == f"CUB-200-2011 in {cub200}"
    for line in (
        "train 18 3 6 6",
        "test 9 3 3 3",
        "other than RGB 1 converted to 8-bit RGB, alpha dropped",
        "box crosses the border 1 clipped to the image",
    ):
        assert line in lines
    assert "27 of 27 files can be decoded" in lines
    grey = next(s.path for part in CUB200(cub200).read()[1].values() for s in part if s.path.stem.endswith("_2"))
    assert lines[lines.index("other than RGB") + 1] == f"{grey}: mode L"
    assert lines[-1].startswith("A run would ") and "stop" not in lines[-1]
    assert "DEFECT" not in text


def test_counts_of_several_labels(voc2007: Path, capsys: Capture) -> None:
    lines = run("voc2007", "--root", voc2007, status=0, capsys=capsys).splitlines()
    rows = [s.label for part in VOC2007(voc2007).read()[1].values() for s in part if isinstance(s.label, tuple)]
    positive, ignored = (sum(row.count(label) for row in rows[:60]) for label in (1, 0))
    sizes = [sum(row[k] == 1 for row in rows[:60]) for k in range(20)]
    assert f"train + val 60 20 {min(sizes)} {max(sizes)} {positive} {ignored}" in lines


def test_defects_are_named_with_their_reasons(cub200: Path, capsys: Capture) -> None:
    train = CUB200(cub200).read()[1]["train"]
    train[0].path.write_bytes(train[0].path.read_bytes()[:900])
    train[1].path.write_text("[red]no markup[/red]")
    text = run("cub200", "--root", cub200, status=1, capsys=capsys)
    lines = text.splitlines()
    assert "truncated file 1 a run stops and names it" in lines
    reason = lines[lines.index("DEFECT: truncated file") + 1]
    assert reason.startswith(f"{train[0].path}: ") and reason.endswith("(900 bytes)")
    assert lines[lines.index("DEFECT: undecodable file") + 1].startswith(f"{train[1].path}: ")
    assert lines[-1].startswith("A run would stop: 2 ")


def test_missing_files_are_summarised_unless_all_are_requested(cub200: Path, capsys: Capture) -> None:
    train = CUB200(cub200).read()[1]["train"]
    for sample in train[:7]:
        sample.path.unlink()
    few = run("cub200", "--root", cub200, status=1, capsys=capsys).splitlines()
    start = few.index("DEFECT: missing file") + 1
    assert few[start : start + 4] == [*(str(s.path) for s in train[:3]), "and 4 more (--all lists them)"]
    everything = run("cub200", "--root", cub200, "--all", status=1, capsys=capsys).splitlines()
    start = everything.index("DEFECT: missing file") + 1
    assert everything[start : start + 7] == [str(s.path) for s in train[:7]]
    assert not any("more" in line for line in everything)


def test_a_missing_data_set(tmp_path: Path, capsys: Capture) -> None:
    for name in ("cub200", "mit67", "voc2007", "h3d", "demo"):
        text = run(name, "--root", tmp_path / "none", status=2, capsys=capsys)
        assert text.startswith("error: ") and str(tmp_path / "none") in text
        assert text.endswith(f"python -m cxlp download {name} --root {tmp_path / 'none'}")
    text = run("folder", "--root", tmp_path / "none", status=2, capsys=capsys)
    assert text.startswith(f"error: folder: {tmp_path / 'none'} does not exist") and "download" not in text
    assert list(tmp_path.iterdir()) == [], "nothing is downloaded or created"


def test_lists_that_cannot_be_read(cub200: Path, capsys: Capture) -> None:
    (cub200 / "classes.txt").write_bytes(b"\xff\xd8")
    assert "classes.txt is not a text" in run("cub200", "--root", cub200, status=2, capsys=capsys)


def test_wrong_arguments(capsys: Capture) -> None:
    assert main(["check", "cub20"]) == 2
    assert "there is no data set 'cub20'. Did you mean 'cub200'" in capsys.readouterr().err
    assert main(["check", "demo", "--workers", "0"]) == 2
    assert "--workers is 0: it must be 1 or more" in capsys.readouterr().err


def test_an_interrupt_prints_no_traceback(cub200: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def interrupt(path: Path, boxes: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checking, "inspect_image", interrupt)
    assert main(["check", "cub200", "--root", str(cub200), "--workers", "1"]) == 130
    assert capsys.readouterr().err.endswith("interrupted\n")
