"""The loggers of a run: wandb (online if a key is found, offline otherwise) and CSV files."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import wandb
from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from cxlp.reports.outputs import Outputs
from cxlp.reports.predictions import Kept
from cxlp.runs.wandb_runs import AT_COST, curve_of_costs
from cxlp.utils.errors import CxlpError


@dataclass(frozen=True)
class RunConfig:
    """Options of a run: its folder, logging and outputs.

    Attributes:
        root: Folder that contains one folder per run.
        name: Name of the run's folder and of the wandb run; null: derived from the configs and the time. If the name
            is taken, a number is appended.
        wandb: ``auto``: online if an API key is found, offline otherwise; ``online``; ``offline``;
            ``off``.
        project: The wandb project.
        group: Group of the run in wandb; null: the data set's name.
        tags: Tags of the wandb run, in addition to benchmark, backbone, mode and method.
        notes: Notes of the wandb run; null: the number of images and the path of the run's folder.
        log_model: Upload the tested checkpoint as an artifact if wandb is online.
        refit: true: choose the best epoch on the held-out images (``data.validation``), then run the same recipe on
            all training images, stop after that epoch of the same schedule, and test; the second run's folder is
            NAME/refit. The path of an earlier run's best checkpoint: do only the second run.
        resume: When to resume the run called ``name`` in ``root``, if it exists. ``restarted``: only if SLURM or
            torchrun has restarted this job; ``auto``: always, so that the same command starts and resumes a run.
            (``ckpt_path`` resumes a run by its folder.)
        predictions: Number of test images that ``predictions.csv`` and ``scores.npz`` contain: ``all``, ``none``, or an
            integer, for images evenly spaced over the test split. Scores take 4 bytes per image and class, on disk and
            in memory.
        cost: After the test, measure the cost of computing an image's representation, see :mod:`cxlp.runs.cost`.
    """

    root: str = "runs"
    name: str | None = None
    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    project: str = "cxlp"
    group: str | None = None
    tags: tuple[str, ...] = ()
    notes: str | None = None
    refit: bool | str = False
    resume: Literal["restarted", "auto"] = "restarted"
    log_model: bool = True
    predictions: Kept = "all"
    cost: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.predictions, int) and self.predictions < 1:
            raise CxlpError(
                f"run.predictions is {self.predictions}: give all, none, or a number of images of at least 1"
            )


def labelled(run: RunConfig, benchmark: str, *facts: str, notes: str | None = None) -> RunConfig:
    """Set the wandb group to the benchmark, unless the user has set one, and add tags and notes.

    Args:
        run: The user's options.
        benchmark: The data set's name.
        facts: Further tags.
        notes: The notes to use if the user has given none.
    """
    tags = tuple(tag[:64] for tag in dict.fromkeys((*run.tags, benchmark, *facts)) if tag)  # wandb's limit
    return replace(run, group=run.group or benchmark or None, tags=tags, notes=run.notes or notes)


class _Forgiving(Logger):
    """Mixin for loggers: a run continues if its log cannot be written."""

    outputs: Outputs


def _forgiving(name: str) -> Callable[..., None]:
    def attempt(self: _Forgiving, *args: Any, **kwargs: Any) -> None:
        with self.outputs.attempt(f"the log by {type(self).__name__}"):
            getattr(super(_Forgiving, self), name)(*args, **kwargs)  # the real logger's method, next in the MRO

    return attempt


for _name in ("log_metrics", "log_hyperparams", "save", "finalize"):
    setattr(_Forgiving, _name, _forgiving(_name))


class ForgivingCSVLogger(_Forgiving, CSVLogger):
    """Lightning's CSV logger; a failure to write does not stop the run."""


class _CurvesLogger(WandbLogger):
    """Lightning's wandb logger, plus a curve of cross-validation over C, minus duplicate curves.

    Cross-validated accuracy (or mAP) is logged as one row per cost C, to be plotted against C. The frozen fit's other
    values are not curves and go to the summary. Omitted are the learning rates of parameters without weight decay,
    which equal those of the others, and the Trainer's step, which restarts with each stage.
    """

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log a row; ``step`` is ignored."""
        found = {key: value for key, value in metrics.items() if key.startswith("frozen/")}
        if found:
            for point in curve_of_costs(found):
                self.experiment.log(point)
            self.experiment.summary.update({key: v for key, v in found.items() if not AT_COST.fullmatch(key)})
        rest = {key: value for key, value in metrics.items() if key not in found}
        row = {key: value for key, value in rest.items() if not (key.startswith("lr-") and key.endswith("/no_decay"))}
        if row:
            self.experiment.log(row)


class LateWandbLogger(_CurvesLogger):
    """Starts the wandb run when the first metrics are logged.

    A run that fails earlier therefore leaves no wandb run.

    Attributes:
        begin: Starts the wandb run, or returns the one already started; ``None`` if it cannot be started.
    """

    begin: Callable[[], wandb.Run | None]
    _waiting: tuple[Any, ...] = ()

    @property
    def experiment(self) -> Any:  # noqa: ANN401 (Lightning's type is wider)
        """The wandb run, or a placeholder until its first use, since Trainers access it before they start."""
        return self._experiment or _NotBegun(self)

    def begun(self) -> Any:  # noqa: ANN401 (as above)
        """Start the wandb run if it has not started; return ``None`` if it cannot be started."""
        if self._experiment is None:
            self._experiment = self.begin()
            waiting, self._waiting = self._waiting, ()
            for params in waiting if self._experiment is not None else ():
                self.log_hyperparams(params)
        return self._experiment

    def log_hyperparams(self, params: Any) -> None:  # noqa: ANN401 (Lightning's type)
        """Add values to the wandb run's config, as soon as the run has started."""
        if self._experiment is None:
            self._waiting += (params,)
        else:
            super().log_hyperparams(params)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics, if the wandb run could be started."""
        if self.begun() is not None:
            super().log_metrics(metrics, step)


@dataclass(frozen=True)
class _NotBegun:
    """Placeholder for a wandb run that starts at its first use."""

    logger: LateWandbLogger

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 (whatever a run has)
        return getattr(self.logger.begun(), name)


class ForgivingWandbLogger(_Forgiving, LateWandbLogger):
    """A run's wandb logger; a failure to log does not stop the run."""


def build_loggers(
    run: RunConfig, folder: Path, stage: str, begin: Callable[[], wandb.Run | None] | None, outputs: Outputs
) -> list[Logger]:
    """Build the loggers of a stage: its own CSV files, and the wandb run that all stages share.

    Args:
        run: The user's options.
        folder: The run's folder.
        stage: The stage's name.
        begin: Starts the wandb run, or returns the one already started; ``None``: log no wandb run.
        outputs: Records what could not be logged.
    """
    loggers: list[_Forgiving] = [ForgivingCSVLogger(folder / "csv", name=stage)]
    if begin is not None:
        # wandb first: Lightning writes its own files into the first logger's folder.
        late = ForgivingWandbLogger(save_dir=folder, project=run.project)
        late.begin = begin
        loggers.insert(0, late)
    for logger in loggers:
        logger.outputs = outputs
    return list(loggers)
