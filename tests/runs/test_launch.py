"""The number of processes of a run, the rank of this process, and the effect of a scheduler's environment on them."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import Namespace
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_utilities.core.rank_zero import rank_zero_only

from cxlp.commands.train import main
from cxlp.data.folder import Folder
from cxlp.runs import launch
from cxlp.runs.cli import parse
from cxlp.runs.folder import find_earlier, new_folder
from cxlp.runs.launch import launched_rank, requeue_on_signal, settle_launch
from cxlp.runs.loggers import RunConfig
from cxlp.tasks import FineTune
from cxlp.utils import distributed
from cxlp.utils.errors import CxlpError
from cxlp.utils.program import was_restarted
from tests.small_run import ARGUMENTS, FINETUNE, metrics, prepared

TASK = {"SLURM_JOB_ID": "77", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "3", "SLURM_PROCID": "1", "SLURM_LOCALID": "1",
        "SLURM_STEP_ID": "0"}  # fmt: skip
ELASTIC = {"TORCHELASTIC_RUN_ID": "1", "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
CHILD = {"LOCAL_RANK": "1", "NODE_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1234"}
BATCH = {"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_STEP_ID": ""}  # without srun
LEFT_OVER = ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_LOCALID")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No launcher around the tests; changes of the environment are undone."""
    before, rank = dict(os.environ), launched_rank()
    for name in [name for name in os.environ if name.startswith("SLURM_") or name in (*ELASTIC, *CHILD)]:
        del os.environ[name]
    launch._UNSET.clear()
    yield
    os.environ.clear()
    os.environ.update(before)
    rank_zero_only.rank = rank  # type: ignore[attr-defined]


def settle(devices: int, nodes: int, variables: dict[str, str]) -> int:
    os.environ.update(variables)
    rank_zero_only.rank = 9  # type: ignore[attr-defined]
    settle_launch(Namespace(accelerator="cpu", devices=devices, num_nodes=nodes))  # type: ignore[no-untyped-call]
    return launched_rank()


@pytest.mark.parametrize(
    ("devices", "nodes", "variables", "rank"),
    [
        (1, 1, {}, 0),
        *((1, 1, {name: "2"}, 0) for name in LEFT_OVER),
        *((2, 1, {name: "2"}, 0) for name in LEFT_OVER),  # Lightning starts the second process later
        (1, 1, dict.fromkeys(LEFT_OVER, "2"), 0),
        (1, 1, TASK, 0),  # independent runs in one job
        (3, 1, TASK, 1),
        (3, 1, {**TASK, "SLURM_JOB_NAME": "bash"}, 0),  # an interactive session
        (2, 1, {**TASK, "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, 0),
        (2, 1, ELASTIC, 1),
        (1, 1, {**ELASTIC, "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}, 0),
        (2, 1, CHILD, 1),
        (2, 2, {**CHILD, "NODE_RANK": "1", "WORLD_SIZE": "4"}, 3),
        (2, 2, {"NODE_RANK": "1", "MASTER_ADDR": "host0", "MASTER_PORT": "1234"}, 2),
        # left over, or from a launcher that did not start this process
        (4, 1, {"SLURM_JOB_NAME": "mine", "SLURM_NTASKS": "4"}, 0),  # salloc
        (8, 1, {**TASK, **BATCH}, 0),
        *((n, 1, {"TORCHELASTIC_RUN_ID": "none"}, 0) for n in (1, 2)),
        *((n, 1, dict.fromkeys((*LEFT_OVER, "SLURM_NTASKS"), text), 0) for n in (1, 2) for text in ("", "x")),
    ],
)
def test_the_rank_in_this_run(devices: int, nodes: int, variables: dict[str, str], rank: int) -> None:
    assert settle(devices, nodes, variables) == rank
    # variables that are not this run's are removed, so that Lightning does not wait for them
    known = devices > 1 and rank > 0 and variables.keys() & {"LOCAL_RANK", "SLURM_PROCID"}
    kept = [name for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "SLURM_PROCID") if name in os.environ]
    assert bool(kept) == bool(known)


def test_rendezvous_variables_are_removed_on_one_machine() -> None:
    meeting = {"MASTER_ADDR": "elsewhere", "MASTER_PORT": "1234"}
    for devices in (1, 2):
        settle(devices, 1, meeting)
        assert not meeting.keys() & os.environ.keys()
    settle(2, 2, {**meeting, "NODE_RANK": "1"})
    assert meeting.items() <= os.environ.items()


def test_a_batch_script_is_not_a_slurm_task(capsys: pytest.CaptureFixture[str]) -> None:
    assert settle(1, 1, {**TASK, **BATCH}) == 0
    assert not capsys.readouterr().out


class Cluster(TorchElasticEnvironment):
    """A user's own cluster environment."""

    def __init__(self, offset: int = 0) -> None:
        super().__init__()
        self.offset = offset

    def global_rank(self) -> int:
        """Reads variables of its own choice."""
        return int(os.environ["RANK"]) + self.offset


@pytest.mark.parametrize("listed", [True, False])
def test_a_custom_cluster_environment_is_used(listed: bool) -> None:
    plugin = Namespace(class_path=f"{__name__}.Cluster", init_args=Namespace(offset=3))  # type: ignore[no-untyped-call]
    os.environ.update({"RANK": "2", "WORLD_SIZE": "8"})
    settle_launch(Namespace(accelerator="cpu", devices=2, num_nodes=4, plugins=[plugin] if listed else plugin))  # type: ignore[no-untyped-call]
    own = "lightning_fabric.plugins.environments.LightningEnvironment"
    child = Namespace(class_path=own, init_args=Namespace())  # type: ignore[no-untyped-call]
    assert launched_rank() == 5 and os.environ["RANK"] == "2" and os.environ["WORLD_SIZE"] == "8"
    os.environ.update(CHILD)  # Lightning's own, whose launcher has set this variable
    settle_launch(Namespace(accelerator="cpu", devices=2, num_nodes=1, plugins=[child]))  # type: ignore[no-untyped-call]
    assert launched_rank() == 1 and os.environ["LOCAL_RANK"] == "1"


@pytest.mark.parametrize(
    ("devices", "variables", "said"),
    [
        (1, ELASTIC, "torchrun.* 2 processes.* 1:.*trainer.devices"),
        (4, ELASTIC, "torchrun.* 2 processes.* 4:.*trainer.devices"),
        (2, TASK, "SLURM.* 3 processes.* 2:.*trainer.devices"),
    ],
)
def test_another_number_of_processes_is_refused(devices: int, variables: dict[str, str], said: str) -> None:
    with pytest.raises(CxlpError, match=said):
        settle(devices, 1, variables)


def test_only_the_first_task_of_independent_runs_has_the_wandb_run_of_the_environment(
    capsys: pytest.CaptureFixture[str],
) -> None:
    settle(1, 1, {**TASK, "WANDB_RUN_ID": "abc"})
    assert "WANDB_RUN_ID" not in os.environ and not capsys.readouterr().out
    settle(1, 1, {**TASK, "SLURM_PROCID": "0", "WANDB_RUN_ID": "abc"})
    assert os.environ["WANDB_RUN_ID"] == "abc"
    assert "--trainer.devices 3" in capsys.readouterr().out


@pytest.mark.parametrize("variables", [TASK, {"RANK": "3", "LOCAL_RANK": "3", "NODE_RANK": "2", "WORLD_SIZE": "4"}])
def test_a_run_with_one_process_ignores_its_launcher(work: Path, variables: dict[str, str]) -> None:
    os.environ.update(variables)
    rank_zero_only.rank = 3  # type: ignore[attr-defined]  # as Lightning reads it when it is imported
    assert main([*ARGUMENTS, "--run.name", "a"]) == 0
    assert [path.name for path in Path("runs").iterdir()] == ["a"]
    assert metrics(Path("runs/a"))["images"]["test"] == 9 and Path("runs/a/csv/test/version_0/metrics.csv").is_file()


# --- restarts


@pytest.mark.parametrize(
    ("variables", "restarted"),
    [
        ({}, False),
        ({"SLURM_RESTART_COUNT": "0"}, False),
        ({"SLURM_RESTART_COUNT": ""}, False),
        ({"SLURM_RESTART_COUNT": "2"}, True),
        ({"TORCHELASTIC_RESTART_COUNT": "1"}, True),
    ],
)
def test_a_restarted_job_is_detected(variables: dict[str, str], restarted: bool) -> None:
    os.environ.update(variables)
    assert was_restarted() == restarted


@pytest.mark.parametrize(
    ("more", "variables"),
    [(["--run.resume", "auto"], {}), ([], {"SLURM_RESTART_COUNT": "1"})],
    ids=["auto", "requeued by SLURM"],
)
def test_the_same_command_continues_its_run(
    work: Path, monkeypatch: pytest.MonkeyPatch, more: list[str], variables: dict[str, str]
) -> None:
    command = [*ARGUMENTS, *FINETUNE, *more, "--run.name", "job"]
    whole = prepared("whole", *FINETUNE).rename("whole")
    start = FineTune.on_train_epoch_start

    def preempted(task: FineTune) -> None:
        if task.current_epoch == 1:
            raise KeyboardInterrupt
        start(task)

    with monkeypatch.context() as patch:
        patch.setattr(FineTune, "on_train_epoch_start", preempted)
        assert main(command) == 130
    os.environ.update(variables)
    epochs: list[int] = []

    def counted(task: FineTune) -> None:
        epochs.append(task.current_epoch)
        start(task)

    monkeypatch.setattr(FineTune, "on_train_epoch_start", counted)
    assert main(command) == 0
    assert epochs == [1] and [path.name for path in Path("runs").iterdir()] == ["job"]
    assert metrics(Path("runs/job"))["metrics"] == metrics(whole)["metrics"]
    assert main(command) == 0  # finished: tested again
    assert epochs == [1] and not Path("runs/job-2").exists()


ALONE = {**ELASTIC, "TORCHELASTIC_RUN_ID": "none", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1",
         "GROUP_WORLD_SIZE": "1", "TORCHELASTIC_RESTART_COUNT": "0"}  # fmt: skip
JOBS = [
    ({"SLURM_JOB_ID": "1"}, {"SLURM_JOB_ID": "2"}, {"SLURM_RESTART_COUNT": "1"}),
    ({**TASK, "SLURM_PROCID": "0"}, TASK, {"SLURM_RESTART_COUNT": "1"}),  # independent runs in one job
    ({**ALONE, "TORCHELASTIC_RUN_ID": "1"}, ALONE, {"TORCHELASTIC_RESTART_COUNT": "1"}),
]


@pytest.mark.parametrize(("other", "own", "again"), JOBS)
def test_a_restarted_job_resumes_its_own_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: dict[str, str], own: dict[str, str], again: dict[str, str]
) -> None:
    monkeypatch.chdir(tmp_path)
    config, before = parse([*ARGUMENTS, "--run.name", "job"]), dict(os.environ)
    named = RunConfig(name="job")
    for number, variables in enumerate((other, own), 1):
        settle(1, 1, variables)
        folder = new_folder(named, config, Folder())
        assert folder == Path("runs", "job" if number == 1 else "job-2")
        (folder / "checkpoints").mkdir()
        for name in ("config.yaml", "checkpoints/last.ckpt"):
            (folder / name).touch()
        os.environ.clear()
        os.environ.update(before)
    (Path("runs") / "job-other").mkdir()  # of another name
    for variables, place in ((other, "job"), (own, "job-2")):
        settle(1, 1, {**variables, **again})
        assert find_earlier(named) == Path("runs", place)
        assert find_earlier(RunConfig(name="job", resume="auto")) == Path("runs", "job")
        os.environ.clear()
        os.environ.update(before)
    settle(1, 1, {**own, **again})
    assert find_earlier(RunConfig(name="job-2")) == Path("runs", "job-2")
    shutil.rmtree("runs/job-2")  # the job was stopped before its run started: the existing run belongs to another job
    assert find_earlier(named) is None


def test_a_job_without_a_number_does_not_guess_among_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.environ["SLURM_RESTART_COUNT"] = "1"
    for name in ("job", "job-2"):
        Path("runs", name).mkdir(parents=True)
    with pytest.raises(CxlpError, match=r"job or .*job-2.*--run.name.*--ckpt_path"):
        find_earlier(RunConfig(name="job"))


def test_without_a_restart_the_same_command_starts_a_new_run(work: Path) -> None:
    prepared("job")
    assert main([*ARGUMENTS, "--run.name", "job"]) == 0
    assert Path("runs/job-2/metrics.json").is_file()


def test_processes_of_an_earlier_run_are_known_by_their_group(monkeypatch: pytest.MonkeyPatch) -> None:
    # Lightning removes WORLD_SIZE when a run ends.
    monkeypatch.setattr(distributed, "is_distributed", lambda: True)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    trainer = parse(ARGUMENTS)["trainer"]
    with pytest.raises(CxlpError, match=r"an earlier run of this script.* 2 processes.* 1:"):
        settle_launch(trainer)
    trainer["devices"], trainer["strategy"] = 2, "ddp"
    settle_launch(trainer)
    assert launched_rank() == 1


def test_a_run_without_checkpoints_starts_again_in_its_folder(work: Path) -> None:
    folder = Path("runs/job")
    (folder / "csv").mkdir(parents=True)
    (folder / "config.yaml").write_text("seed_everything: 0\nckpt_path: null\n")
    assert find_earlier(RunConfig(name="job", resume="auto")) is None and not folder.exists()


@pytest.mark.parametrize(
    ("there", "run", "said"),
    [
        ("photo.jpg", RunConfig(name="job", resume="auto"), "runs/job .*no run: .*--run.name"),
        ("metrics.json", RunConfig(name="job", resume="auto"), "runs/job .*no checkpoint.*metrics.json"),
        ("config.yaml", RunConfig(resume="auto"), "run.resume is auto.*run.name"),
        ("config.yaml", RunConfig(name="../job", resume="auto"), "without slashes"),
    ],
)
def test_other_folders_are_not_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: str, run: RunConfig, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("runs/job")
    folder.mkdir(parents=True)
    (folder / there).touch()
    if there == "metrics.json":
        (folder / "config.yaml").touch()
    with pytest.raises(CxlpError, match=said):
        find_earlier(run)
    assert (folder / there).is_file()


def test_a_restarted_job_without_a_name_warns_that_it_starts_again(capsys: pytest.CaptureFixture[str]) -> None:
    os.environ["SLURM_RESTART_COUNT"] = "1"
    assert find_earlier(RunConfig()) is None
    assert "Give --run.name" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("status", "array", "job", "said"),
    [(0, {}, "77", "is requeued"), (1, {}, "77", "cannot be requeued: scontrol ended with status 1"),
     (0, {"SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "4"}, "70_4", "is requeued"),
     (None, {}, "77", "cannot be requeued: scontrol: No such file")],
)  # fmt: skip
def test_slurms_warning_requeues_the_job(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    status: int | None,
    array: dict[str, str],
    job: str,
    said: str,
) -> None:
    before: Any = signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    shell = shutil.which("sh")
    if status is not None:
        (tmp_path / "scontrol").write_text(f"#!{shell}\necho $@ > {tmp_path}/told\nexit {status}\n")
        (tmp_path / "scontrol").chmod(0o755)
    os.environ.update({"SLURM_JOB_ID": "77", "PATH": str(tmp_path), **array})
    rank_zero_only.rank = 0  # type: ignore[attr-defined]
    try:
        requeue_on_signal()
        os.kill(os.getpid(), signal.SIGUSR1)
        assert f"SLURM job {job} {said}" in capsys.readouterr().err
        if status is not None:
            assert (tmp_path / "told").read_text() == f"requeue {job}\n"
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_outside_slurm_the_signal_is_not_handled() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    requeue_on_signal()
    assert signal.getsignal(signal.SIGUSR1) is before
