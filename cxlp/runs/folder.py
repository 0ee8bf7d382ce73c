"""The folder of a run: create it, find it for resuming, and run in it in a separate process."""

import json
import os
import re
import shutil
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from cxlp.data.datamodule import ImageDataModule
from cxlp.models.checkpoint import read_checkpoint
from cxlp.runs.arguments import describes_data, read_yaml
from cxlp.runs.launch import job_id, launched_rank
from cxlp.runs.loggers import RunConfig
from cxlp.runs.places import NEWEST, REFIT, check_run_name, last_checkpoint, resumed_checkpoint
from cxlp.utils.errors import CxlpError
from cxlp.utils.locking import hold, release_lock
from cxlp.utils.processes import run_to_end
from cxlp.utils.program import was_restarted
from cxlp.utils.progress import say

#: File in a run's folder with the ID of the scheduler's job that created it.
JOB = ".job"


def run_name(run: RunConfig, config: Namespace | None = None, data: ImageDataModule | None = None) -> str:
    """The name of a run: ``run.name``, or the names of its configs and the time.

    See :func:`names_of_configs`.

    Raises:
        CxlpError: If the user's name is a path.
    """
    if run.name:
        check_run_name(run.name)
    names = names_of_configs(config, data) if config is not None and data is not None else []
    return run.name or "-".join([*names, datetime.now().strftime("%Y%m%d-%H%M%S")])


def names_of_configs(config: Namespace, data: ImageDataModule) -> list[str]:
    """The names of the config files, including the name of the data set.

    The name of the data set replaces ``config``, since every run writes a ``config.yaml``, and the name of a generic
    data class, such as ``folder``. It is put first if all configs are overlays.
    """
    paths = [Path(str(c)) for c in config.get("config") or [] if c is not None]
    own = re.sub(r"[^\w.+-]+", "-", data.name).strip("-.")[:64] or type(data).name
    names = [own if path.stem in (type(data).name, "config") else path.stem for path in paths]
    named = own in names or any(describes_data(read_yaml(str(path))) for path in paths)
    return names if named else [own, *names]


def new_folder(run: RunConfig, config: Namespace, data: ImageDataModule) -> Path:
    """Create a new folder for a run, also if other runs create theirs at the same moment.

    Raises:
        CxlpError: If no folder can be created in ``run.root``.
    """
    root = Path(run.root)
    if launched_rank() != 0:
        return root  # rank 0 broadcasts its folder when the run begins
    name = run_name(run, config, data)
    for number in range(1, 10_000):
        folder = root / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            if folder.is_dir():
                continue
            raise CxlpError(f"cannot create the run's folder: {folder} is a file. Give another --run.root") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", error)
            raise CxlpError(f"cannot create {folder}: {reason}. Give another --run.root") from error
        job = job_id()
        if job is not None:
            (folder / JOB).write_text(job)
        if number > 1:
            print(f"{root / name} already contains a run: this run is stored in {folder}")  # noqa: T201
        return folder
    raise CxlpError(f"{root} contains 9,999 runs called {name}: choose another --run.name")


def may_resume(run: RunConfig) -> bool:
    """Whether a run, or a series of runs, should resume an earlier one of the same name.

    Raises:
        CxlpError: If ``run.resume`` is ``auto`` and there is no name.
    """
    if run.resume != "auto" and not was_restarted():
        return False
    if not run.name:
        if run.resume == "auto":
            raise CxlpError("run.resume is auto, which finds a run by its name: set run.name")
        if launched_rank() == 0:
            say(
                "this job was restarted, but the run has no name and cannot be found: a new run begins. Give --run.name"
            )
    return bool(run.name)


def find_earlier(run: RunConfig) -> Path | None:
    """Find the run that ``run.resume`` resumes; the folder of a run that saved no checkpoint is deleted.

    Returns:
        The folder of the run; ``None`` if a new run begins.

    Raises:
        CxlpError: If the folder contains no run, or other files but no checkpoint.
    """
    if not may_resume(run):
        return None
    folder = _first_attempt(run)
    if folder is None:
        return None
    if launched_rank() != 0:
        return folder if last_checkpoint(folder) is not None else None
    there = {path.name for path in folder.iterdir()} - {".lock"} if folder.is_dir() else set()
    if there and "config.yaml" not in there:
        raise CxlpError(f"{folder} contains no run: choose another --run.name")
    if take_up(folder) is None:
        return None
    say(f"resuming {folder}")
    return folder


def _first_attempt(run: RunConfig) -> Path | None:
    """The folder that ``run.resume: auto`` resumes, or that an earlier start of this job created."""
    folder, job = Path(run.root) / run_name(run), job_id()
    if run.resume == "auto":
        return folder
    if job is None:
        if folder.with_name(f"{folder.name}-2").exists():
            raise CxlpError(
                f"this job was restarted, but it is unknown whether its folder is {folder} or {folder}-2. Give another "
                "--run.name, or the folder as --ckpt_path"
            )
        return folder
    number = re.compile(re.escape(folder.name) + r"(-\d+)?")  # new_folder appends a number if a name is taken
    jobs = [file for file in sorted(folder.parent.glob(f"*/{JOB}")) if number.fullmatch(file.parent.name)]
    own = [file.parent for file in jobs if file.read_text() == job]
    return next((place for place in own if finished(place) is None), own[-1] if own else None)


def find_resumed(given: Path, run: RunConfig) -> tuple[Path | None, Path, str | None]:
    """Find the checkpoint to resume from.

    Args:
        given: A run's folder, a checkpoint in it, or a checkpoint outside any run's folder.
        run: The options of the run, whose ``root`` is searched for similar names.

    Returns:
        The run's folder (``None`` if the checkpoint is in no run's folder), its newest checkpoint, and its wandb ID.

    Raises:
        CxlpError: If there is no such checkpoint.
    """
    given = resumed_checkpoint(given, run.root)
    saved = read_run(given)
    folder = given.absolute().parent.parent
    if given.absolute().parent.name != "checkpoints" or not (folder / "config.yaml").is_file():
        return None, given, None
    newest = last_checkpoint(folder)
    if newest is None or (given.name not in _OWN and newest.name == "frozen.ckpt"):
        newest = given  # a checkpoint of the user's own ModelCheckpoint
    return folder, newest, saved["cxlp_run"]["wandb_id"]


def read_run(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint that a run wrote, with its metadata on the run.

    Raises:
        CxlpError: If there is no such checkpoint, or it was written by a Trainer outside a run.
    """
    saved = read_checkpoint(path)
    if "cxlp_run" not in saved:
        raise CxlpError(
            f"{path} was written by your own Trainer, not by cxlp train, so its images and options are unknown. Use it "
            "with predict and explain, or continue training in your own script with load_from_checkpoint"
        )
    return saved


#: Names of the checkpoints that a run writes. A run cannot be resumed from start.ckpt, which belongs to another run, or
#: from finetuned.ckpt, which may have been written within an epoch.
_OWN = (*NEWEST, "start.ckpt", "finetuned.ckpt", "best.ckpt")


def name_best(folder: Path, checkpoint: str) -> None:
    """Make ``best.ckpt`` a hard link to a checkpoint, or a copy if hard links are not supported."""
    best, part = (folder / "checkpoints" / name for name in ("best.ckpt", ".best.ckpt.part"))
    best.parent.mkdir(exist_ok=True)
    part.unlink(missing_ok=True)
    try:
        os.link(folder / checkpoint, part)
    except OSError:
        shutil.copyfile(folder / checkpoint, part)
    part.replace(best)
    part.unlink(missing_ok=True)  # if both were already links to one file, renaming had no effect


def refit_folder(folder: Path) -> Path:
    """The folder of the second run of ``run.refit: true``, which is the one that is tested."""
    return folder / REFIT


def finished(folder: Path) -> Path | None:
    """The folder with a run's results, its own or its refit's; ``None`` if the run is not finished."""
    return next((place for place in (folder, refit_folder(folder)) if _is_complete(place / "metrics.json")), None)


def _is_complete(metrics: Path) -> bool:
    """Whether a ``metrics.json`` has the key that a run writes last, after its tables and pictures."""
    try:
        found = json.loads(metrics.read_text())
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and "outputs" in found


#: All files that a run may write before its first checkpoint to resume from.
_BEGUN = re.compile(
    r"\.lock|\.job|log\.txt|config(-resumed)?\.yaml|provenance\.json|stages\.json|broken\.txt|layers\.csv|features/[^/]*"
    r"|(checkpoints/)?\.[^/]*\.part|checkpoints/(start|finetuned)\.ckpt"
    r"|csv/\w+/version_\d+/(metrics\.csv|hparams\.yaml)|wandb/.*(?<!\.ckpt)"
)


def take_up(folder: Path) -> Path | None:
    """Find the checkpoint to resume a stopped run from; without one, delete the folder.

    Raises:
        CxlpError: If another process uses the folder, or there is no checkpoint but other files.
    """
    if not folder.is_dir():
        return None
    held = hold(folder)
    try:
        last = last_checkpoint(folder)
        if last is None:
            files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
            others = [file for file in files if not _BEGUN.fullmatch(file)]
            others += [path for path in ("config.yaml", "stages.json") if not _is_initial(folder / path)]
            trained = folder / "checkpoints" / "finetuned.ckpt"
            if (
                not others and trained.is_file() and read_run(trained)["epoch"]
            ):  # if only the first epoch was trained, it is repeated
                others.append("finetuned.ckpt")
            if others:
                raise CxlpError(f"{folder} has no checkpoint to resume from, but contains {others[0]}: move it away")
            shutil.rmtree(folder)
    finally:
        release_lock(held)
    return last


def _is_initial(file: Path) -> bool:
    """Whether ``config.yaml`` or ``stages.json`` is missing or as written before the first checkpoint."""
    text = file.read_text(errors="replace") if file.is_file() else None
    return text is None or ("\nckpt_path:" in text if file.suffix == ".yaml" else "frozen.ckpt" not in text)


def run_in(folder: Path, arguments: Sequence[str], log: Path) -> Path:
    """Start or resume a run in a separate process, and wait for its end.

    Args:
        folder: The run's folder.
        arguments: Arguments of ``train.py``, without ``run.root`` and ``run.name``.
        log: The file for the run's output, except errors.

    Returns:
        The folder of the results, see :func:`finished`.

    Raises:
        CxlpError: If the run failed, or is already running.
    """
    last = take_up(folder)
    place = ["--run.root", str(folder.parent), "--run.name", folder.name]
    command = [sys.executable, "-m", "cxlp", "train", *arguments, *place, *(["--ckpt_path", str(last)] if last else [])]
    # The package may be beside train.py instead of installed.
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        status = run_to_end(command, file, environment)
    results = finished(folder)
    if status not in (0, 3) or results is None:  # 3: an optional output is missing
        raise CxlpError(f"failed, see above and {log}")
    return results
