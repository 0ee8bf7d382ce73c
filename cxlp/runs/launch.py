"""How this process was started: alone or as one of several of a run; for the first time, or again by a scheduler."""

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
from cxlp.utils.program import forget_ranks_without_number

#: What launchers tell a process of its place among others.
_PLACE = (
    "RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID",
    "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID",
)  # fmt: skip
#: Where they have the processes meet.
_MEETING = ("MASTER_ADDR", "MASTER_PORT")
#: What a run of one process has forgotten of its launcher: its number among the tasks of the job, torchrun's id.
_FORGOTTEN: dict[str, str] = {}

#: Options of the Trainer that are refused elsewhere, or objects.
_NOT_PROBED = ("fast_dev_run", "barebones", "overfit_batches", "default_root_dir", "callbacks", "plugins")
#: What is said where processes would be forked or spawned, stage by stage.
_ENDS_WITH_A_STAGE = (
    ": forked and spawned processes end with each stage of a run, and what they have found is lost. Take ddp, in a "
    "script or by cxlp train"
)
_IN_A_NOTEBOOK = (
    ": a notebook can only fork processes, which end with each stage of a run, and what they have found is lost. Take "
    "trainer.devices 1 here; for several, give the command in a cell, !cxlp train ... --trainer.devices 4 --run.name "
    'NAME, and then cxlp.RunResult("runs/NAME")'
)


def launched_rank() -> int:
    """This process's rank before there is a process group, see :func:`settle_launch`."""
    return int(getattr(rank_zero_only, "rank", 0))


def job_id() -> str | None:
    """What stays the same where a scheduler starts this job again, and is another for each other; ``None``: unknown."""
    elastic, slurm = ({**_FORGOTTEN, **os.environ}.get(name) for name in ("TORCHELASTIC_RUN_ID", "SLURM_JOB_ID"))
    known: tuple[object, ...] = ()
    if slurm:
        known = ("slurm", slurm, _FORGOTTEN.get("SLURM_PROCID"))
    elif "TORCHELASTIC_RESTART_COUNT" in os.environ and os.environ.get("GROUP_WORLD_SIZE") == "1":
        known = ("torchrun", elastic, socket.gethostname(), os.getppid())
    elif "TORCHELASTIC_RESTART_COUNT" in os.environ and elastic not in (None, "none"):
        known = ("torchrun", elastic)
    return digest(*known, *sys.argv) if known else None  # a job may do several runs


def started_by_srun() -> bool:
    """Whether this is one of several tasks that SLURM has started; a batch script itself is not."""
    told = all(os.environ.get(name) for name in ("SLURM_STEP_ID", "SLURM_PROCID"))
    return bool(SLURMEnvironment.detect()) and told and os.environ["SLURM_NTASKS"] != "1"


def settle_launch(trainer: Namespace) -> None:
    """Find this process's rank, and forget what the environment says of ranks that are not this run's.

    A run has as many processes as ``trainer.devices`` and ``trainer.num_nodes`` say. Where that is one, it is
    independent of the other tasks of a SLURM job. Variables that another launcher has left over would make Lightning
    wait for processes that do not exist, or write nothing. To be called before each run.

    Args:
        trainer: Options of the Trainer.

    Raises:
        CxlpError: If a launcher has started another number of processes than the run takes.
    """
    if re.search("fork|spawn|notebook", str(trainer.get("strategy"))):
        raise CxlpError(f"trainer.strategy {trainer['strategy']}{_ENDS_WITH_A_STAGE}")
    if LSFEnvironment.detect() or MPIEnvironment.detect():
        return
    forget_ranks_without_number()
    plugins = trainer.get("plugins")
    for plugin in plugins if isinstance(plugins, list) else [plugins]:
        kind: Any = import_object(plugin["class_path"], "trainer.plugins") if isinstance(plugin, Namespace) else None
        known = inspect.isclass(kind) and issubclass(kind, ClusterEnvironment)
        if known and not issubclass(kind, LightningEnvironment):  # a cluster's, which knows
            rank = kind(**dict(plugin.get("init_args") or {})).global_rank()
            rank_zero_only.rank = rank  # type: ignore[attr-defined]
            return
    place = {name: os.environ.pop(name) for name in (*_PLACE, *_MEETING) if name in os.environ}
    # All options that are plain values, so that a wrong one is told before anything is fitted.
    plain = {key: value for key, value in vars(trainer).items() if isinstance(value, int | float | str | list | None)}
    options: dict[str, Any] = {key: value for key, value in plain.items() if key not in _NOT_PROBED}
    options |= dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    try:
        probe = pl.Trainer(**options)
    except Exception as error:  # TypeError, ValueError, MisconfigurationException and others, by the option
        if "interactive environment" in str(error):  # whose advice is a strategy that forks
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
    """This process's rank in a run with so many devices on so many machines."""
    count = devices * nodes
    if distributed.is_distributed():  # by an earlier run, whose end has taken WORLD_SIZE away
        _check_started("an earlier run of this script", distributed.world_size(), count)
        return distributed.rank()
    if TorchElasticEnvironment.detect() and {"RANK", "WORLD_SIZE"} <= place.keys():
        _check_started("torchrun", int(place["WORLD_SIZE"]), count)
        rank = int(place["RANK"])
        _FORGOTTEN["TORCHELASTIC_RUN_ID"] = os.environ["TORCHELASTIC_RUN_ID"]
        return rank if count > 1 else _alone()
    if started_by_srun():
        if count == 1:
            return _alone_in_slurm(int(place["SLURM_NTASKS"]), int(place["SLURM_PROCID"]))
        _check_started("SLURM", int(place["SLURM_NTASKS"]), count)
        os.environ.setdefault("SLURM_NTASKS_PER_NODE", str(devices))  # which Lightning asks for
        return int(place["SLURM_PROCID"])
    if count == 1:
        return _alone()
    # Lightning's own launcher, on each machine: it tells its children all of this.
    if {"LOCAL_RANK", "MASTER_PORT"} <= os.environ.keys() and place.get("WORLD_SIZE") == str(count):
        return int(place.get("NODE_RANK", 0)) * devices + int(place["LOCAL_RANK"])
    _forget((*_PLACE, *_MEETING) if nodes == 1 else (name for name in _PLACE if name != "NODE_RANK"))
    return int(os.environ.get("NODE_RANK", 0)) * devices


def _alone() -> int:
    _forget((*_PLACE, *_MEETING))
    return 0


def _alone_in_slurm(tasks: int, task: int) -> int:
    _FORGOTTEN["SLURM_PROCID"] = str(task)
    if task == 0:
        print(  # noqa: T201
            f"SLURM has started {tasks} tasks, and this run takes one process: each task does a run of its own. For "
            f"one run of all: --trainer.devices {tasks}"
        )
    else:
        os.environ.pop("WANDB_RUN_ID", None)  # it is one run's
    return _alone()


def _forget(names: Iterable[str]) -> None:
    for name in names:
        os.environ.pop(name, None)


def _check_started(launcher: str, started: int, count: int) -> None:
    if started != count:
        raise CxlpError(
            f"{launcher} has started {started} processes, but the run takes {count}: trainer.devices is the number of "
            "processes per machine, trainer.num_nodes that of machines"
        )


def requeue_on_signal() -> None:
    """Put this job back into SLURM's queue where SLURM warns it of its end (``#SBATCH --signal=USR1@90``).

    Then the same command is started again, and goes on by ``run.resume``. Elsewhere nothing changes.
    """
    job, alone = os.environ.get("SLURM_JOB_ID"), threading.current_thread() is threading.main_thread()
    if not job or not alone or sys.platform == "win32" or signal.getsignal(signal.SIGUSR1) is not signal.SIG_DFL:
        return
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    process = os.getpid()

    def requeue(*_: object) -> None:
        if os.getpid() != process or launched_rank() != 0:  # workers of loaders get the signal, too
            return
        try:
            status = subprocess.run(["scontrol", "requeue", job], check=False).returncode
            said = "is requeued" if status == 0 else f"cannot be requeued: scontrol ended with status {status}"
        except OSError as error:
            said = f"cannot be requeued: scontrol: {error.strerror}"
        print(f"SLURM job {job} {said}", file=sys.stderr, flush=True)  # noqa: T201

    signal.signal(signal.SIGUSR1, requeue)
