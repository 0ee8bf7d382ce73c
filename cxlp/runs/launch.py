"""Detection of launchers and schedulers: rank of this process, job ID, and requeueing."""

import inspect
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping
from typing import Any

import pytorch_lightning as pl
from jsonargparse import Namespace
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.lsf import LSFEnvironment
from lightning_fabric.plugins.environments.mpi import MPIEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning_utilities.core.rank_zero import rank_zero_only

from cxlp.utils import distributed
from cxlp.utils.errors import CxlpError
from cxlp.utils.fingerprint import digest
from cxlp.utils.importing import import_object
from cxlp.utils.program import unset_invalid_ranks

#: Environment variables with which launchers set the rank of a process.
_RANK_VARIABLES = (
    "RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID",
    "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID",
)  # fmt: skip
#: Environment variables with the address of the rendezvous.
_RENDEZVOUS = ("MASTER_ADDR", "MASTER_PORT")
#: Removed variables of the launcher that :func:`job_id` needs: the task's number in the job, torchrun's ID.
_UNSET: dict[str, str] = {}

#: Options of the Trainer that are objects or are checked elsewhere.
_NOT_PROBED = ("fast_dev_run", "barebones", "overfit_batches", "default_root_dir", "callbacks", "plugins")
#: Error messages for strategies that would fork or spawn processes for each stage.
_ENDS_WITH_A_STAGE = (
    ": forked and spawned processes end after each stage of a run, and their results are lost. Use ddp, in a script or "
    "with cxlp train"
)
_IN_A_NOTEBOOK = (
    ": a notebook can only fork processes, which end after each stage of a run, and their results are lost. Set "
    "trainer.devices to 1, or run the command in a cell, !cxlp train ... --trainer.devices 4 --run.name NAME, and read "
    'the results with cxlp.RunResult("runs/NAME")'
)


def launched_rank() -> int:
    """The rank of this process, known before the process group exists, see :func:`settle_launch`."""
    return int(getattr(rank_zero_only, "rank", 0))


def job_id() -> str | None:
    """An ID of this job that stays the same when a scheduler restarts the job; ``None`` if unknown."""
    elastic, slurm = ({**_UNSET, **os.environ}.get(name) for name in ("TORCHELASTIC_RUN_ID", "SLURM_JOB_ID"))
    known: tuple[object, ...] = ()
    if slurm:
        known = ("slurm", slurm, _UNSET.get("SLURM_PROCID"))
    elif "TORCHELASTIC_RESTART_COUNT" in os.environ and os.environ.get("GROUP_WORLD_SIZE") == "1":
        known = ("torchrun", elastic, socket.gethostname(), os.getppid())
    elif "TORCHELASTIC_RESTART_COUNT" in os.environ and elastic not in (None, "none"):
        known = ("torchrun", elastic)
    return digest(*known, *sys.argv) if known else None  # a job may contain several runs


def started_by_srun() -> bool:
    """Whether this process is one of several tasks started by SLURM; the batch script itself is not."""
    told = all(os.environ.get(name) for name in ("SLURM_STEP_ID", "SLURM_PROCID"))
    return bool(SLURMEnvironment.detect()) and told and os.environ["SLURM_NTASKS"] != "1"


def settle_launch(trainer: Namespace) -> None:
    """Set the rank of this process, and remove environment variables about ranks of other runs.

    ``trainer.devices`` and ``trainer.num_nodes`` determine the number of processes of a run. A run with one process is
    independent of the other tasks of a SLURM job. Variables left over from another launcher would make Lightning wait
    for processes that do not exist, or write no files. Call this function before each run.

    Args:
        trainer: Options of the Trainer.

    Raises:
        CxlpError: If an option is invalid, or a launcher has started a different number of processes.
    """
    if re.search("fork|spawn|notebook", str(trainer.get("strategy"))):
        raise CxlpError(f"trainer.strategy {trainer['strategy']}{_ENDS_WITH_A_STAGE}")
    if LSFEnvironment.detect() or MPIEnvironment.detect():
        return
    unset_invalid_ranks()
    plugins = trainer.get("plugins")
    for plugin in plugins if isinstance(plugins, list) else [plugins]:
        kind: Any = import_object(plugin["class_path"], "trainer.plugins") if isinstance(plugin, Namespace) else None
        known = inspect.isclass(kind) and issubclass(kind, ClusterEnvironment)
        if known and not issubclass(kind, LightningEnvironment):  # the environment of a cluster knows the rank
            rank = kind(**dict(plugin.get("init_args") or {})).global_rank()
            rank_zero_only.rank = rank  # type: ignore[attr-defined]
            return
    place = {name: os.environ.pop(name) for name in (*_RANK_VARIABLES, *_RENDEZVOUS) if name in os.environ}
    # All options with plain values, so that an invalid one is reported before anything is fitted.
    plain = {key: value for key, value in vars(trainer).items() if isinstance(value, int | float | str | list | None)}
    options: dict[str, Any] = {key: value for key, value in plain.items() if key not in _NOT_PROBED}
    options |= dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    try:
        probe = pl.Trainer(**options)
    except Exception as error:  # TypeError, ValueError, MisconfigurationException and others, depending on the option
        if "interactive environment" in str(error):  # Lightning advises a strategy that forks
            raise CxlpError(f"trainer.strategy {trainer['strategy']}{_IN_A_NOTEBOOK}") from error
        given = ", ".join(f"{key} {options[key]}" for key in ("accelerator", "devices", "strategy") if key in options)
        raise CxlpError(f"trainer ({given}, ...): {' '.join(str(error).split())}") from error
    finally:
        os.environ.update(place)
    devices, nodes = int(probe.num_devices), int(probe.num_nodes)
    if devices * nodes > 1 and (hasattr(sys, "ps1") or sys.flags.interactive):  # Lightning would fork
        raise CxlpError(f"trainer.devices {trainer['devices']}{_IN_A_NOTEBOOK}")
    rank_zero_only.rank = _rank(place, devices, nodes)  # type: ignore[attr-defined]


def _rank(place: Mapping[str, str], devices: int, nodes: int) -> int:
    """The rank of this process in a run with ``devices`` processes on each of ``nodes`` machines."""
    count = devices * nodes
    if distributed.is_distributed():  # set up by an earlier run, which removed WORLD_SIZE at its end
        _check_started("an earlier run of this script", distributed.world_size(), count)
        return distributed.rank()
    if TorchElasticEnvironment.detect() and {"RANK", "WORLD_SIZE"} <= place.keys():
        _check_started("torchrun", int(place["WORLD_SIZE"]), count)
        rank = int(place["RANK"])
        _UNSET["TORCHELASTIC_RUN_ID"] = os.environ["TORCHELASTIC_RUN_ID"]
        return rank if count > 1 else _single_process()
    if started_by_srun():
        if count == 1:
            return _single_process_in_slurm(int(place["SLURM_NTASKS"]), int(place["SLURM_PROCID"]))
        _check_started("SLURM", int(place["SLURM_NTASKS"]), count)
        os.environ.setdefault("SLURM_NTASKS_PER_NODE", str(devices))  # Lightning requires it
        return int(place["SLURM_PROCID"])
    if count == 1:
        return _single_process()
    # Started by Lightning's own launcher, which sets all of these variables for its child processes.
    if {"LOCAL_RANK", "MASTER_PORT"} <= os.environ.keys() and place.get("WORLD_SIZE") == str(count):
        return int(place.get("NODE_RANK", 0)) * devices + int(place["LOCAL_RANK"])
    _unset(
        (*_RANK_VARIABLES, *_RENDEZVOUS) if nodes == 1 else (name for name in _RANK_VARIABLES if name != "NODE_RANK")
    )
    return int(os.environ.get("NODE_RANK", 0)) * devices


def _single_process() -> int:
    _unset((*_RANK_VARIABLES, *_RENDEZVOUS))
    return 0


def _single_process_in_slurm(tasks: int, task: int) -> int:
    _UNSET["SLURM_PROCID"] = str(task)
    if task == 0:
        print(  # noqa: T201
            f"SLURM has started {tasks} tasks, but trainer.devices is 1: each task does its own run. To use all tasks "
            f"for one run, give --trainer.devices {tasks}"
        )
    else:
        os.environ.pop("WANDB_RUN_ID", None)  # an ID belongs to a single run
    return _single_process()


def _unset(names: Iterable[str]) -> None:
    for name in names:
        os.environ.pop(name, None)


def _check_started(launcher: str, started: int, count: int) -> None:
    if started != count:
        raise CxlpError(
            f"{launcher} has started {started} processes, but the run needs {count}: set trainer.devices to the number "
            "of processes per machine and trainer.num_nodes to the number of machines"
        )


def requeue_on_signal() -> None:
    """Requeue this job when SLURM signals its time limit (``#SBATCH --signal=USR1@90``).

    SLURM then starts the same command again, which resumes by ``run.resume``. Outside SLURM nothing changes.
    """
    job, alone = os.environ.get("SLURM_JOB_ID"), threading.current_thread() is threading.main_thread()
    if not job or not alone or sys.platform == "win32" or signal.getsignal(signal.SIGUSR1) is not signal.SIG_DFL:
        return
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    process = os.getpid()

    def requeue(*_: object) -> None:
        if os.getpid() != process or launched_rank() != 0:  # DataLoader workers receive the signal as well
            return
        try:
            status = subprocess.run(["scontrol", "requeue", job], check=False).returncode
            said = "is requeued" if status == 0 else f"cannot be requeued: scontrol ended with status {status}"
        except OSError as error:
            said = f"cannot be requeued: scontrol: {error.strerror}"
        print(f"SLURM job {job} {said}", file=sys.stderr, flush=True)  # noqa: T201

    signal.signal(signal.SIGUSR1, requeue)
