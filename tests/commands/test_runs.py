"""``python -m cxlp runs``: listing, showing, comparing and deleting runs, without importing torch."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from cxlp.__main__ import main
from cxlp.utils.locking import hold, release_lock
from tests.reports.test_page import Reader

Capture = pytest.CaptureFixture[str]


def write_run(folder: Path, accuracy: float | None = None, epochs: int = 0, age: int = 0, **model: Any) -> Path:
    """Write the files that ``cxlp runs`` reads, for a run that began a number of hours ago."""
    folder.mkdir(parents=True)
    head = {"class_path": "cxlp.heads.CrossLayerPooling", "init_args": {"pca_dim": 100}}
    config = {
        "model": {
            "backbone": {"name": "caffenet", "layers": ["conv4", "conv5"]},
            "head": head,
            "start": "frozen",
            **model,
        },
        "data": {"class_path": "cxlp.data.cub200.CUB200", "init_args": {"root": "data", "bbox": epochs > 0}},
        "trainer": {"max_epochs": epochs},
        "run": {"name": folder.name, "refit": False},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "provenance.json").write_text(json.dumps({"data": {"name": "CUB-200-2011"}, "versions": {"torch": "2"}}))
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.ckpt").write_bytes(bytes(3_000_000))
    os.link(folder / "checkpoints" / "last.ckpt", folder / "checkpoints" / "best.ckpt")
    if accuracy is not None:
        interval = {"low": accuracy - 0.05, "high": accuracy + 0.05, "by": "Wilson"}
        found = {
            "metrics": {"test/accuracy": accuracy, "test/loss": 0.5}, "intervals": {"test/accuracy": interval},
            "images": {"train": 30, "test": 20}, "seconds": {"test": 1.5}, "outputs": {"failed": []},
        }  # fmt: skip
        (folder / "metrics.json").write_text(json.dumps(found))
        (folder / "per_class.csv").write_text(f"class,accuracy\n<wren>,{accuracy}\n")
        (folder / "report.html").write_text("report")
    time = (folder / "config.yaml").stat().st_mtime - 3600 * age
    os.utime(folder / "config.yaml", (time, time))
    return folder


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "runs"
    write_run(root / "birds", 0.75, age=3)
    write_run(root / "tuned", 0.8, epochs=5, age=2, closing_fit=True)
    write_run(root / "compare" / "CL" / "0", 0.5, age=1)
    write_run(root / "begun", epochs=3)
    (root / "birds" / "wandb" / "files").mkdir(parents=True)
    (root / "birds" / "wandb" / "files" / "config.yaml").write_text("x: 1")
    (root / "features").mkdir()
    return root


def runs(*arguments: str, capsys: Capture, status: int = 0) -> str:
    capsys.readouterr()
    assert main(["runs", *arguments]) == status
    said = capsys.readouterr()
    return said.err if status else said.out


def found(*arguments: str, capsys: Capture) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = json.loads(runs(*arguments, "--json", capsys=capsys))
    return listed


def test_runs_are_found_in_subfolders_with_their_properties(root: Path, capsys: Capture) -> None:
    listed = {entry["name"]: entry for entry in found(capsys=capsys)}
    assert list(listed) == ["begun", "compare/CL/0", "tuned", "birds"]  # newest first
    tuned = listed["tuned"]
    assert tuned["mode"] == "5 gradient epochs, closing fit" and tuned["value"] == 0.8
    assert [tuned["data"], tuned["backbone"], tuned["head"]] == ["CUB-200-2011", "caffenet", "CrossLayerPooling"]
    assert [listed["birds"][key] for key in ("mode", "state")] == ["frozen", "done"]
    assert [listed["begun"][key] for key in ("value", "state", "interval")] == [None, "stopped", None]
    assert 3_000_000 < tuned["bytes"] < 3_100_000  # a checkpoint with two hard links counts once
    said = runs(capsys=capsys)
    assert "75.00%" in said and "70.00% to 80.00%" in said
    assert "4 runs" in said and "│ stopped │" in said.replace("  ", "")


def test_they_are_sorted_and_filtered(root: Path, capsys: Capture) -> None:
    def names(*arguments: str) -> list[str]:
        return [entry["name"] for entry in found(*arguments, capsys=capsys)]

    assert names("--sort", "accuracy") == ["tuned", "birds", "compare/CL/0", "begun"]
    assert names("--sort", "name", "--reverse") == ["tuned", "compare/CL/0", "birds", "begun"]
    assert names("--filter", "GRADIENT", "--filter", "done") == ["tuned"]
    assert "no run in runs contains nothing like it" in runs("--filter", "nothing like it", capsys=capsys, status=2)


def test_one_is_shown_with_all_its_metrics(root: Path, capsys: Capture) -> None:
    for name in ("birds", "runs/birds", "runs/birds/"):
        said = runs(name, capsys=capsys)
        assert "75.00%, 70.00% to 80.00% (Wilson)" in said and "test/loss" in said and "torch 2" in said
        assert "checkpoints/best.ckpt" in said and "runs/birds/report.html" in said
    assert "there is no run 'brids' in runs. Did you mean 'birds'?" in runs("brids", capsys=capsys, status=2)


def test_a_page_compares_them(root: Path, capsys: Capture) -> None:
    log = root / "tuned" / "csv" / "finetune" / "version_0"
    log.mkdir(parents=True)
    (log / "metrics.csv").write_text("step,epoch,val/accuracy\n1,1,0.5\n2,2,0.7\n")
    runs("birds", "tuned", "--html", "page.html", capsys=capsys)
    text = Path("page.html").read_text()
    page = Reader(text)
    assert {"runs/birds/report.html", "runs/tuned/report.html"} <= set(page.links)
    texts = [text.strip() for text in page.texts]
    assert {"data.bbox", "trainer.max_epochs", "model.closing_fit", "val/accuracy", "<wren>"} <= set(texts)
    assert "model.backbone.name" not in texts and "run.name" not in texts  # equal, and not part of the recipe
    assert "75.00%, 70.00% to 80.00% (Wilson)" in texts and "<script>alert" not in text
    (root / "many").mkdir()
    for k in range(31):
        write_run(root / "many" / str(k))
    assert "--html compares at most 30 runs" in runs("--html", "page.html", capsys=capsys, status=2)


def test_runs_are_deleted_only_after_confirmation(root: Path, capsys: Capture) -> None:
    assert "1 run would be deleted: add --yes" in runs("compare/CL/0", "--delete", capsys=capsys, status=2)
    assert "--delete: name the runs" in runs("--delete", "--yes", capsys=capsys, status=2)
    assert len(found(capsys=capsys)) == 4
    assert re.search(r"deleted \d+ MB\n", runs("compare/CL/0", "begun", "--delete", "--yes", capsys=capsys))
    assert sorted(path.name for path in root.iterdir()) == [
        "birds",
        "features",
        "tuned",
    ]  # empty parent folders are deleted, too


@pytest.mark.parametrize(
    ("word", "said"), [("show", "runs birds\n"), ("delete", "runs birds --delete --yes\n"), ("birds", None)]
)
def test_subcommands_of_other_programs_get_a_suggestion(
    root: Path, word: str, said: str | None, capsys: Capture
) -> None:
    answer = runs(word, "birds", capsys=capsys, status=2 if said else 0)
    assert "75.00%" in answer if said is None else answer.endswith(said)
    assert (root / "birds").is_dir()


def test_only_certain_runs_are_deleted(
    root: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A project with its own config; the root; folders outside of it or behind a link; the working directory."""

    def refuses(*arguments: str) -> str:
        before = {path for path in tmp_path.rglob("*") if path.name != ".lock"}
        said = runs(*arguments, "--delete", "--yes", capsys=capsys, status=2)
        assert {path for path in tmp_path.rglob("*") if path.name != ".lock"} == before
        return said

    site = root / "site"
    (site / "src").mkdir(parents=True)
    (site / "src" / "main.py").write_text("code")
    for text in ("site: x", "model: {}\ndata: {}", "{"):
        (site / "config.yaml").write_text(text)
        assert "there is no run 'runs/site'" in refuses("runs/site")
        assert "no run in runs/site" in refuses("--root", "runs/site", "--filter", "stopped")
    # with a config of train.py, and files that any trainer writes
    shutil.copyfile(root / "begun" / "config.yaml", site / "config.yaml")
    (site / "checkpoints").mkdir()
    (site / "metrics.json").write_text("{}")
    assert "neither provenance.json nor stages.json" in refuses("site")
    assert "is not in runs/birds, the folder of the runs" in refuses("--root", "runs/birds", "--filter", "done")
    outside = write_run(tmp_path / "elsewhere" / "run", 0.5)
    assert "is not in runs," in refuses("elsewhere/run", "birds")
    (root / "link").symlink_to(outside)
    (root / "again").symlink_to(root / "birds")
    (root / "all").symlink_to(root)
    for name in ("link", "runs/link"):
        assert "is not in runs," in refuses(name)
    for name in ("runs/again", "runs/all/birds", "runs/all/../runs/birds"):
        assert "path contains a link" in refuses(name)
    monkeypatch.chdir(root / "birds" / "checkpoints")
    assert "contains the working directory" in refuses("--root", str(root), "birds")
    assert "contains the working directory" in refuses("--root", str(root), "--filter", "birds")


def test_each_run_is_listed_and_deleted_once(root: Path, tmp_path: Path, capsys: Capture) -> None:
    (root / "loop").symlink_to(root)
    (root / "again").symlink_to(root / "birds")
    (root / "far").symlink_to(write_run(tmp_path / "elsewhere" / "run", 0.6))
    names = [entry["name"] for entry in found(capsys=capsys)]
    assert sorted(names) == ["begun", "birds", "compare/CL/0", "far", "tuned"]
    assert "1 run would be deleted" in runs("begun", "runs/begun", "--delete", capsys=capsys, status=2)
    runs("begun", "runs/begun", str(root / "begun"), "--delete", "--yes", capsys=capsys)
    assert not (root / "begun").exists()
    assert len(found("birds", "--html", "page.html", capsys=capsys)) == 1  # standard output has JSON only


def test_a_run_that_has_just_begun_can_be_deleted(root: Path, capsys: Capture) -> None:
    shutil.rmtree(root / "begun" / "checkpoints")
    (root / "begun" / "provenance.json").unlink()
    runs("begun", "--delete", "--yes", capsys=capsys)
    assert not (root / "begun").exists()


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("metrics.json", '{"metrics": null}'),
        ("metrics.json", '{"metrics": []}'),
        ("metrics.json", '{"metrics": {"test/accuracy": "abc"}}'),
        ("metrics.json", '{"metrics": {"test/accuracy": 0.5}, "intervals": null}'),
        ("metrics.json", '{"metrics": {"test/accuracy": 0.5}, "intervals": {"test/accuracy": {"low": "x"}}}'),
        ("metrics.json", '{"images": [1], "seconds": {"test": "x"}, "network": [], "trained_on": []}'),
        ("provenance.json", '{"data": null}'),
        ("provenance.json", '{"data": [], "git": [1]}'),
        ("provenance.json", "[]"),
        ("per_class.csv", "class\n"),
    ],
)
def test_broken_files_of_a_run_count_as_missing(root: Path, capsys: Capture, file: str, text: str) -> None:
    (root / "birds" / file).write_text(text)
    assert {entry["name"] for entry in found(capsys=capsys)} == {"begun", "birds", "compare/CL/0", "tuned"}
    assert "birds" in runs("--sort", "accuracy", capsys=capsys) and runs("birds", capsys=capsys)
    runs("birds", "tuned", "--html", "page.html", capsys=capsys)
    later = root / "later"
    later.mkdir()
    (later / "metrics.json").write_text(json.dumps({"metrics": [], "network": None, "test_of": "/r/birds/best.ckpt"}))
    assert "later" in runs(capsys=capsys)


def test_a_run_in_progress_is_not_deleted(root: Path, capsys: Capture) -> None:
    code = (
        "import sys, pathlib, cxlp.utils.locking as l; l.hold(pathlib.Path(sys.argv[1])); print(1, flush=True); input()"
    )
    place = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", code, str(root / "begun")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=place) as other:
        assert other.stdout is not None and other.stdout.readline()
        assert {entry["name"]: entry["state"] for entry in found(capsys=capsys)}["begun"] == "running"
        said = runs("birds", "begun", "--delete", "--yes", capsys=capsys, status=2)
        assert "another process is working in" in said
        assert len(found(capsys=capsys)) == 4  # no run is deleted
        other.communicate(b"\n")
    assert {entry["name"]: entry["state"] for entry in found(capsys=capsys)}["begun"] == "stopped"
    assert not list(root.rglob(".lock"))
    release_lock(hold(root / "begun"))


def test_refits_and_later_tests_are_listed_despite_broken_files(root: Path, capsys: Capture) -> None:
    refit = write_run(root / "birds" / "refit", 0.9)
    (root / "birds" / "metrics.json").unlink()
    later = root / "birds-on-photos-test"
    later.mkdir()
    told = {**json.loads((refit / "metrics.json").read_text()), "test_of": "/r/birds/refit/checkpoints/best.ckpt"}
    told["network"] = {"backbone": "caffenet", "head": "AveragePooling"}
    (later / "metrics.json").write_text(json.dumps(told))
    (root / "tuned" / "metrics.json").write_text("{")
    listed = {entry["name"]: entry for entry in found(capsys=capsys)}
    assert "birds/refit" not in listed and listed["birds"]["value"] == 0.9
    assert listed[later.name]["mode"] == "test of birds"
    (later / "metrics.json").write_text(json.dumps({**told, "trained_on": 40}))
    assert "test of birds, 40 of its images trained on" in runs(later.name, capsys=capsys)
    assert (listed[later.name]["head"], listed["tuned"]["value"]) == ("AveragePooling", None)
    runs("birds", "tuned", later.name, "--html", "page.html", capsys=capsys)
    assert "runs/birds/refit/report.html" in Reader(Path("page.html").read_text()).links


def test_torch_is_not_imported(root: Path) -> None:
    code = (
        "import sys; from cxlp.__main__ import main\n"
        "for more in ([], ['birds'], ['--html', 'page.html'], ['begun', '--delete', '--yes']):\n"
        "    assert main(['runs', *more]) == 0\n"
        "sys.exit(len({'torch', 'pytorch_lightning', 'wandb'} & set(sys.modules)))"
    )
    place = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    assert subprocess.run([sys.executable, "-c", code], env=place, timeout=60, capture_output=True).returncode == 0


def test_a_missing_folder(tmp_path: Path, capsys: Capture) -> None:
    assert "nowhere is not a folder: set --root" in runs("--root", "nowhere", capsys=capsys, status=2)
