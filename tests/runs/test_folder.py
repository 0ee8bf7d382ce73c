"""Folders of runs: which files are reused, and which are left alone; processes of a series."""

import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
from jsonargparse import Namespace

from cxlp.data.cub200 import CUB200
from cxlp.data.folder import Folder
from cxlp.runs.folder import finished, names_of_configs, refit_folder, run_in, run_name, take_up
from cxlp.runs.loggers import RunConfig
from cxlp.runs.places import last_checkpoint
from cxlp.utils.errors import CxlpError
from cxlp.utils.locking import hold, release_lock


def with_file(folder: Path, name: str) -> Path:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).touch()
    return folder


def test_a_stopped_run_is_continued(tmp_path: Path) -> None:
    folder = with_file(tmp_path / "a", "checkpoints/last.ckpt")
    assert take_up(folder) == last_checkpoint(folder) == folder / "checkpoints" / "last.ckpt"


@pytest.mark.parametrize(
    ("there", "newest"),
    [
        (["frozen"], "frozen"),
        (["frozen", "finetuned"], "frozen"),  # the first gradient epoch was not complete
        (["frozen", "finetuned", "last"], "last"),
        (["frozen", "finetuned", "last", "closing", "best"], "closing"),
        (["start", "finetuned"], None),
    ],
)
def test_a_run_continues_from_its_newest_stage(tmp_path: Path, there: list[str], newest: str | None) -> None:
    for name in there:
        with_file(tmp_path, f"checkpoints/{name}.ckpt")
    found = last_checkpoint(tmp_path)
    assert (found and found.stem) == newest


def begun(folder: Path) -> Path:
    """Write a folder as left by a run that is killed while saving its first checkpoint, with incomplete features."""
    for name in (
        "checkpoints/.last.ckpt.part", "checkpoints/start.ckpt", "features/features.bin", "provenance.json", ".job",
        "csv/frozen/version_0/metrics.csv", "wandb/offline-run-1/run-1.wandb",
    ):  # fmt: skip
        with_file(folder, name)
    (folder / "config.yaml").write_text("seed_everything: 0\nckpt_path: null\n")
    (folder / "stages.json").write_text('{"frozen": {"checkpoint": "checkpoints/start.ckpt"}}')
    return folder


def test_runs_that_cannot_be_continued_are_deleted(tmp_path: Path) -> None:
    folder = begun(tmp_path / "a")
    assert take_up(folder) is None and not folder.exists()
    assert take_up(folder) is None


@pytest.mark.parametrize("epoch", [0, 1])
def test_the_first_epoch_is_repeated_and_a_later_one_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epoch: int
) -> None:
    folder = with_file(begun(tmp_path / "a"), "checkpoints/finetuned.ckpt")
    monkeypatch.setattr("cxlp.runs.folder.read_run", lambda path: {"epoch": epoch})
    with nullcontext() if not epoch else pytest.raises(CxlpError, match=r"no checkpoint.* finetuned\.ckpt: move"):
        take_up(folder)
    assert folder.exists() == bool(epoch)


@pytest.mark.parametrize(
    "name",
    ["notes.txt", "csv/mine.csv", "checkpoints/best.ckpt", "metrics.json", "sub/config.yaml", "wandb/x/model.ckpt",
     "checkpoints/finetuned.ckpt", "refit/config.yaml"],
)  # fmt: skip
def test_other_files_are_never_deleted(tmp_path: Path, name: str) -> None:
    folder = with_file(begun(tmp_path / "a"), name)
    before = sorted(folder.rglob("*"))
    with pytest.raises(CxlpError):
        take_up(folder)
    assert sorted(folder.rglob("*")) == before
    (folder / name).unlink()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.yaml", "data: {init_args: {root: mine}}\n"),  # the user's own config
        ("stages.json", '{"frozen": {"checkpoint": "checkpoints/frozen.ckpt"}}'),  # which the user has deleted
    ],
)
def test_user_configs_and_runs_with_checkpoints_are_not_deleted(tmp_path: Path, name: str, text: str) -> None:
    folder = begun(tmp_path / "a")
    (folder / name).write_text(text)
    with pytest.raises(CxlpError, match=f"{folder} .*no checkpoint.*{name}: move"):
        take_up(folder)
    assert (folder / name).read_text() == text


def test_a_run_in_progress_is_not_changed(tmp_path: Path) -> None:
    folder = with_file(tmp_path / "a", "config.yaml")
    held = hold(folder)
    try:
        with pytest.raises(CxlpError, match="another process is working in"):
            take_up(folder)
    finally:
        release_lock(held)
    assert (folder / "config.yaml").exists()


def test_results_are_found_in_the_run_or_its_refit(tmp_path: Path) -> None:
    folder = with_file(tmp_path / "a", "config.yaml")
    assert finished(folder) is None
    result = with_file(refit_folder(folder), "metrics.json") / "metrics.json"
    for text in ("", "[1]", '{"metrics": {}}'):  # killed before its tables, its report, the end of its wandb run
        result.write_text(text)
        assert finished(folder) is None
    result.write_text('{"metrics": {}, "outputs": {"failed": []}}')
    assert finished(folder) == tmp_path / "a" / "refit"
    result.rename(folder / "metrics.json")
    assert finished(folder) == folder


@pytest.mark.parametrize(("status", "leaves"), [(1, True), (0, False)], ids=["status", "nothing left"])
def test_a_failed_process_is_reported_with_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, leaves: bool
) -> None:
    folder = with_file(tmp_path / "a", "checkpoints/last.ckpt")
    seen: list[list[str]] = []
    start = subprocess.Popen

    def instead(command: list[str], **options: object) -> "subprocess.Popen[bytes]":
        seen.append(command)
        if leaves:
            (folder / "metrics.json").write_text('{"outputs": {"failed": []}}')
        return start([sys.executable, "-c", f"print('what it says'); raise SystemExit({status})"], **options)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(subprocess, "Popen", instead)
    with pytest.raises(CxlpError, match=r"failed, see above and .*a\.txt"):
        run_in(folder, ["--config", "x"], tmp_path / "logs" / "a.txt")
    assert (tmp_path / "logs" / "a.txt").read_text() == "what it says\n"
    assert seen[0][4:] == [
        *("--config", "x", "--run.root", str(tmp_path), "--run.name", "a"),
        *("--ckpt_path", str(folder / "checkpoints" / "last.ckpt")),
    ]


def test_a_stopped_run_with_custom_checkpoints_is_not_deleted(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    own = tmp_path / "run" / "checkpoints" / "epoch=19.ckpt"
    own.touch()
    with pytest.raises(CxlpError, match=r"no checkpoint.* checkpoints/epoch=19\.ckpt: move"):
        take_up(tmp_path / "run")
    assert own.is_file()
    own.unlink()
    assert take_up(tmp_path / "run") is None and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("configs", "root", "name"),
    [
        (["folder.yaml"], "photos/birds of prey", "birds-of-prey"),
        (["folder.yaml", "finetune.yaml"], "birds", "birds-finetune"),
        (["MINE"], "birds", "mine"),
        (["MINE", "finetune.yaml"], "birds", "mine-finetune"),
        (["RUN"], "birds", "birds"),
        (["squeezenet.yaml", "finetune.yaml"], "birds", "birds-squeezenet-finetune"),  # they affect data only
        ([], "birds", "birds"),
    ],
)
def test_a_run_with_a_generic_config_is_named_after_its_data(
    tmp_path: Path, configs: list[str], root: str, name: str
) -> None:
    own = {"MINE": tmp_path / "mine.yaml", "RUN": tmp_path / "config.yaml"}
    for file in own.values():
        file.write_text("data:\n  class_path: Folder\n")
    config = Namespace(config=[own.get(file, Path("configs", file)) for file in configs])  # type: ignore[no-untyped-call]
    assert "-".join(names_of_configs(config, Folder(root))) == name
    assert run_name(RunConfig(), config, Folder(root)).rpartition("-")[0].rpartition("-")[0] == name
    assert run_name(RunConfig(name="own"), config, Folder(root)) == "own"


def test_a_run_on_a_benchmark_is_named_after_its_config() -> None:
    config = Namespace(config=["configs/cub200.yaml"])  # type: ignore[no-untyped-call]
    assert names_of_configs(config, CUB200()) == ["cub200"]
    config = Namespace(config=["configs/squeezenet.yaml"])  # type: ignore[no-untyped-call]
    assert names_of_configs(config, CUB200()) == ["CUB-200-2011", "squeezenet"]
