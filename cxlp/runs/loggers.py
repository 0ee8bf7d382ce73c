"""Where a run's numbers go: wandb (online where a key is found, offline otherwise) and a CSV file."""

import netrc
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

import wandb
from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger

from cxlp.reports.outputs import Outputs
from cxlp.reports.predictions import Kept
from cxlp.utils.errors import CxlpError

#: Where the user has wandb gather what it uploads.
DATA_DIR = os.environ.get("WANDB_DATA_DIR")
#: The folder, within a run's, of the second run of ``run.refit: true``.
REFIT = "refit"


@dataclass(frozen=True)
class RunConfig:
    """One run.

    Attributes:
        root: Folder that gets one folder per run.
        name: Name of the run's folder and of the wandb run; null: from the configs and the time. A name
            that is taken gets a number.
        wandb: ``auto``: online where an API key is found, offline otherwise; ``online``; ``offline``;
            ``off``.
        project: The wandb project.
        group: Groups runs in wandb; null: by the data set.
        tags: Tags of the wandb run, besides benchmark, backbone, mode and method.
        log_model: Upload the tested checkpoint as an artifact, where wandb is online.
        refit: true: the best epoch is chosen on the held-out images (``data.validation``), then the same recipe is
            run on all training images, ended after that epoch of the same schedule, and tested; its folder is
            NAME/refit. Or the best checkpoint of an earlier run: do only the second.
        resume: When to go on with the run in ``root`` that has this ``name``, if there is one. ``restarted``: where
            SLURM or torchrun has started this job again; ``auto``: always, so that the same command begins a run and
            goes on with it. (``ckpt_path`` goes on with a run by its folder.)
        predictions: Of how many test images ``predictions.csv`` and ``scores.npz`` are written: ``all``, ``none``, or a
            number of them, evenly spread over the test split. All scores take 4 bytes per image and class, in memory,
            too.
        cost: Measure, after the test, what the representation of an image costs, see :mod:`cxlp.runs.cost`.
    """

    root: str = "runs"
    name: str | None = None
    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    project: str = "cxlp"
    group: str | None = None
    tags: tuple[str, ...] = ()
    refit: bool | str = False
    resume: Literal["restarted", "auto"] = "restarted"
    log_model: bool = True
    predictions: Kept = "all"
    cost: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.predictions, int) and self.predictions < 1:
            raise CxlpError(f"run.predictions is {self.predictions}: give a number of images from 1, all, or none")


def labelled(run: RunConfig, benchmark: str, *facts: str) -> RunConfig:
    """Group a run by its benchmark, unless the user groups it, and tag it by that and further facts."""
    tags = tuple(tag[:64] for tag in dict.fromkeys((*run.tags, benchmark, *facts)) if tag)  # what wandb takes
    return replace(run, group=run.group or benchmark or None, tags=tags)


def has_wandb_key() -> bool:
    """Whether wandb could log in without asking: a key in the environment or in the netrc file.

    Asking wandb itself prompts on a terminal and crashes elsewhere.
    """
    if os.environ.get("WANDB_API_KEY"):
        return True
    # wandb knows the host: from WANDB_BASE_URL, its settings file, or its own default, which has changed before.
    # (A fresh wandb.Settings would not have read them.) With its port: so wandb files it.
    host = urlparse(wandb.setup().settings.base_url).netloc
    # wandb's own service has moved: a key that is filed under its earlier name still counts
    hosts = [host, "api.wandb.ai"] if host.endswith(".coreweave.com") else [host]
    file = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    try:
        found = [netrc.netrc(str(file)).authenticators(host) for host in hosts]
    except (OSError, UnicodeError, netrc.NetrcParseError):
        return False
    return any(entry is not None and entry[2] for entry in found)


def wandb_id_of(run: RunConfig, known: str | None) -> str | None:
    """The id that a run has in wandb, which it may begin later; ``None`` where wandb is off.

    Args:
        run: What the user asked for.
        known: The id that it has already, on resume.
    """
    if _mode(run) in ("off", "disabled"):
        return None
    return known or os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)


def _mode(run: RunConfig) -> str | None:
    return os.environ.get("WANDB_MODE") if run.wandb == "auto" else run.wandb


def start_wandb(run: RunConfig, folder: Path, wandb_id: str | None = None) -> wandb.Run | None:
    """Start a wandb run; ``None`` where it is off.

    Args:
        run: What the user asked for.
        folder: The run's folder.
        wandb_id: The wandb run to continue, on resume; ``None``: a new one.
    """
    mode = _mode(run)
    if mode in ("off", "disabled"):
        return None
    # dryrun is wandb's older word for offline
    offline = mode in ("offline", "dryrun") or (mode != "online" and not has_wandb_key())
    return _start_wandb(run, folder, wandb_id, offline)


class _Forgiving(Logger):
    """Lets a run go on where its log cannot be written: training costs more than its curves."""

    outputs: Outputs


def _forgiving(name: str) -> Callable[..., None]:
    def attempt(self: _Forgiving, *args: Any, **kwargs: Any) -> None:
        with self.outputs.attempt(f"the log by {type(self).__name__}"):
            getattr(super(_Forgiving, self), name)(*args, **kwargs)  # that of the real logger, by the order of bases

    return attempt


for _name in ("log_metrics", "log_hyperparams", "save", "finalize"):
    setattr(_Forgiving, _name, _forgiving(_name))


class ForgivingCSVLogger(_Forgiving, CSVLogger):
    """Lightning's logger, whose failure does not stop the run."""


class LateWandbLogger(WandbLogger):
    """Lightning's logger, which begins the wandb run with the first figures that there are to log.

    So a run that fails before leaves none.

    Attributes:
        begin: Begins the run, or returns the one that has begun; ``None``: it cannot.
    """

    begin: Callable[[], wandb.Run | None]
    _waiting: tuple[Any, ...] = ()

    @property
    def experiment(self) -> Any:  # noqa: ANN401 (Lightning's type is wider)
        """The wandb run; what stands for it until it is used, since Trainers look at it before they begin."""
        return self._experiment or _NotBegun(self)

    def begun(self) -> wandb.Run | None:
        """Begin the run if it has not begun; ``None``: it cannot."""
        if self._experiment is None:
            self._experiment = self.begin()
            waiting, self._waiting = self._waiting, ()
            for params in waiting if self._experiment is not None else ():
                self.log_hyperparams(params)
        return self._experiment

    def log_hyperparams(self, params: Any) -> None:  # noqa: ANN401 (Lightning's type)
        """Put values into the run's config when it has begun."""
        if self._experiment is None:
            self._waiting += (params,)
        else:
            super().log_hyperparams(params)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log figures, if there can be a wandb run."""
        if self.begun() is not None:
            super().log_metrics(metrics, step)


@dataclass(frozen=True)
class _NotBegun:
    """Stands for a wandb run that begins when it is used."""

    logger: LateWandbLogger

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 (whatever a run has)
        return getattr(self.logger.begun(), name)


class ForgivingWandbLogger(_Forgiving, LateWandbLogger):
    """Lightning's logger, whose failure does not stop the run."""


def build_loggers(
    run: RunConfig, folder: Path, stage: str, begin: Callable[[], wandb.Run | None] | None, outputs: Outputs
) -> list[Logger]:
    """Make the loggers of a stage: CSV files of its own, and the one wandb run of all stages.

    Args:
        run: What the user asked for.
        folder: The run's folder.
        stage: Its name.
        begin: Begins the wandb run, or returns the one that has begun; ``None``: there is to be none.
        outputs: Notes what cannot be logged.
    """
    loggers: list[_Forgiving] = [ForgivingCSVLogger(folder / "csv", name=stage)]
    if begin is not None:
        # wandb first: Lightning takes the first logger's folder for what it writes itself.
        late = ForgivingWandbLogger(save_dir=folder, project=run.project)
        late.begin = begin
        loggers.insert(0, late)
    for logger in loggers:
        logger.outputs = outputs
    return list(loggers)


def _start_wandb(run: RunConfig, folder: Path, wandb_id: str | None, offline: bool) -> wandb.Run:
    """Start or continue a wandb run; offline where the server does not answer or refuses the key."""
    # The id in the environment, as of a sweep's agent, is one run's: the first one's, also where that has one already.
    given = os.environ.pop("WANDB_RUN_ID", None)
    wandb_id = wandb_id or given or secrets.token_hex(4)
    # Where wandb gathers tables and checkpoints before it uploads them: with the run, since HOME may not be writable.
    os.environ["WANDB_DATA_DIR"] = DATA_DIR or str(folder.absolute() / "wandb")
    try:
        started = wandb.init(
            dir=folder.absolute(),  # wandb's own process stays where the first run of this one began
            name=f"{folder.parent.name}-{REFIT}" if folder.name == REFIT else folder.name,
            project=run.project,
            group=run.group,
            tags=run.tags,
            id=wandb_id,
            resume="allow",
            mode="offline" if offline else "online",
            settings=wandb.Settings(init_timeout=30),
        )
        _define_axes(started)
        return started
    except wandb.Error as error:
        if offline:
            raise
        print(f"wandb cannot be started online, logging offline: {str(error).partition(chr(10))[0]}")  # noqa: T201
        return _start_wandb(run, folder, wandb_id, offline=True)


def _define_axes(run: wandb.Run) -> None:
    """Draw training over the images seen, and validation over epochs (in wandb's panels either can be chosen)."""
    for names, axis in {
        "train/*": "images_seen", "lr-*": "images_seen", "grad_norm/*": "images_seen", "val/*": "epoch",
    }.items():  # fmt: skip
        run.define_metric(names, step_metric=axis, step_sync=True)


def close_wandb(run: wandb.Run, summary: Mapping[str, Any], checkpoint: str | None) -> None:
    """End a wandb run.

    Args:
        run: Which.
        summary: As in ``metrics.json``: its metrics are those of the tested checkpoint, where the curves' last values
            would stand otherwise.
        checkpoint: What to upload as an artifact, if the run is online; ``None``: nothing.
    """
    summary = {**summary["metrics"], **{name: value for name, value in summary.items() if name != "metrics"}}
    for name, value in summary.items():
        run.summary.update(
            {f"{name}/{key}": v for key, v in value.items()} if isinstance(value, Mapping) else {name: value}
        )
    if checkpoint is not None and not run.offline:
        artifact = wandb.Artifact(f"model-{run.id}", type="model", metadata=dict(summary))
        artifact.add_file(checkpoint)
        run.log_artifact(artifact, aliases=["tested"])
    run.finish()
