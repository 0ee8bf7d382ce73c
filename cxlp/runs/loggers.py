"""Where a run's numbers go: wandb (online where a key is found, offline otherwise) and a CSV file."""

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
        notes: Notes of the wandb run; null: its images, and where its folder is.
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
    notes: str | None = None
    refit: bool | str = False
    resume: Literal["restarted", "auto"] = "restarted"
    log_model: bool = True
    predictions: Kept = "all"
    cost: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.predictions, int) and self.predictions < 1:
            raise CxlpError(f"run.predictions is {self.predictions}: give a number of images from 1, all, or none")


def labelled(run: RunConfig, benchmark: str, *facts: str, notes: str | None = None) -> RunConfig:
    """Group a run by its benchmark, unless the user groups it, and tag it by that and further facts.

    Args:
        run: What the user asked for.
        benchmark: The data set's name.
        facts: Further tags.
        notes: Where the user has none.
    """
    tags = tuple(tag[:64] for tag in dict.fromkeys((*run.tags, benchmark, *facts)) if tag)  # what wandb takes
    return replace(run, group=run.group or benchmark or None, tags=tags, notes=run.notes or notes)


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


class _CurvesLogger(WandbLogger):
    """Lightning's logger, which draws what the frozen fit has found as a curve, and draws nothing twice.

    Cross-validated accuracy (or mAP) becomes a row for each cost C that was tried, to be drawn over C; the other
    values of the fit are no curves, and go to the summary. Left out are the rates of parameters without weight decay,
    which are those of the others, and the Trainer's step, which begins anew with each stage.
    """

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log a row; ``step`` is not looked at."""
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
    """Begins the wandb run with the first figures that there are to log.

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

    def begun(self) -> Any:  # noqa: ANN401 (as above)
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
    """A run's wandb logger, whose failure does not stop the run."""


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
