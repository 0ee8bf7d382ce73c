"""A run: a frozen fit, gradient epochs, a closing frozen fit, each a plain ``Trainer.fit``; then the test of the best.

Each stage leaves a checkpoint that the next one starts from, and ``stages.json`` tells which are done. A stage that is
done is not done again, which is also how a run resumes.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import wandb
from jsonargparse import Namespace
from pytorch_lightning.callbacks import LearningRateMonitor, ModelCheckpoint, ProgressBar
from pytorch_lightning.plugins.io import CheckpointIO

from cxlp.data.datamodule import ImageDataModule
from cxlp.frozen.fit import count_folds
from cxlp.frozen.folds import FoldClassifiers
from cxlp.metrics.classification import SELECTION
from cxlp.models.checkpoint import load_weights, read_checkpoint
from cxlp.models.network import Network
from cxlp.runs.callbacks import (
    EpochSeed,
    MovedCheckpoints,
    Progress,
    Record,
    StopWhereItStopped,
    TrainingBar,
    WholeCheckpoints,
    checkpoints,
)
from cxlp.runs.checks import check_trainer
from cxlp.runs.cli import build_parser
from cxlp.runs.evaluation import TestReport
from cxlp.runs.folder import (
    find_resumed,
    last_checkpoint,
    launched_rank,
    name_best,
    new_folder,
    read_run,
    refit_folder,
    say,
    take_up,
)
from cxlp.runs.loggers import RunConfig, build_loggers, labelled, start_wandb
from cxlp.runs.provenance import Provenance
from cxlp.runs.recipe import (
    GRADIENT_TRAINER_KEYS,
    ModelConfig,
    check_images,
    check_images_per_step,
    check_recipe,
    recipe_of,
)
from cxlp.runs.refit import Choice, StopAfter, read_choice, stage_of
from cxlp.runs.signals import Signals
from cxlp.runs.start import read_start
from cxlp.tasks import FineTune, Frozen
from cxlp.tasks.base import ClassificationTask
from cxlp.tasks.feature_reuse import FeatureReuse
from cxlp.utils.errors import CxlpError
from cxlp.utils.files import copy_whole, write_whole
from cxlp.utils.locking import hold
from cxlp.utils.profiling import PhaseTimes

#: What a run writes about its stages.
STAGES = "stages.json"


@dataclass(frozen=True)
class Done:
    """A stage that is done.

    Attributes:
        checkpoint: Its best one, below the run's folder; empty: none was saved.
        last: Its last one, which the next stage starts from.
        epoch: Of ``checkpoint``, counted over all stages: the frozen fit is epoch 0.
        epochs: How many the run had after the stage.
        validated: What the held-out images say of ``checkpoint``.
    """

    checkpoint: str
    last: str
    epoch: int
    epochs: int
    validated: dict[str, float]


class Run:
    """One run, in one folder.

    Args:
        config: Resolved, see :func:`cxlp.runs.cli.parse`.

    Attributes:
        folder: The run's.
        data: Set up.
        network: Built, and fitted as far as the run has come.
        done: The stages that are done, by name, in order.
        times: Seconds by phase.
        choice: Of a refit: the epoch to stop after.
        progress: How many images were seen.
        resumed: The checkpoint that this process went on from.
        experiment: The wandb run, on rank 0; ``None`` where it is off.
        reuse: Features of earlier runs, where they are kept.
        report: What the first frozen fit chose and found.
    """

    def __init__(self, config: Namespace) -> None:
        self.config = config
        self.settings = RunConfig(**config["run"].as_dict())
        parts = build_parser().instantiate(config.clone())
        self.model: ModelConfig = parts["model"]
        self.data: ImageDataModule = parts["data"]
        self.choice: Choice | None = read_choice(self.settings.refit) if isinstance(self.settings.refit, str) else None
        check_trainer(config, self.model, self.data.validation)
        pl.seed_everything(config["seed_everything"], workers=True)
        self.times, self.progress = PhaseTimes(), Progress()
        self.done: dict[str, Done] = {}
        self.resumed: Path | None = None
        self._seen: torch.Tensor | None = None
        self.report: dict[str, float] = {}
        self.experiment: wandb.Run | None = None
        self.reuse: FeatureReuse | None = None
        self._folds: FoldClassifiers | None = None
        self._trainer: pl.Trainer | None = None
        self._open()
        self.data.prepare_data()
        self.data.setup()
        if launched_rank() == 0:
            for line in self.data.remarks():
                print(line, file=sys.stderr)  # noqa: T201
        self.network: Network = self.model.build(self.data.classes, self.data.multi_label)
        self.data.resize(self.network.image_size, self.network.test_size)
        self._take_up()
        if self.choice is not None:
            try:
                check_recipe(self.choice.recipe, recipe_of(config))
            except CxlpError as error:
                raise CxlpError(f"run.refit: {error}") from error
        self._provenance = Provenance(self.folder, self.data)
        self._start_logging()

    # --- the folder -------------------------------------------------------------------------------

    def _open(self) -> None:
        """Make the run's folder, or find that of the run to go on with."""
        given, wandb_id = self.config["ckpt_path"], None
        folder = None
        if given is not None:
            folder, self.resumed, wandb_id = find_resumed(Path(given), self.settings)
        self._wandb_id: str | None = wandb_id
        self.folder = folder or new_folder(self.settings, self.config)
        if launched_rank() != 0:
            return
        hold(self.folder)
        again = (self.folder / "config.yaml").exists()  # a resumed run keeps its own
        config = self.config.clone()
        config["ckpt_path"] = None  # how to do the run again, not how to go on with it
        self._config_text = build_parser().dump(config, skip_unset=False)
        if not again:
            write_whole(self.folder / "config.yaml", self._config_text)

    def _take_up(self) -> None:
        """Find what is done already, and see that it belongs to this run.

        Raises:
            CxlpError: Names the first key that differs.
        """
        if self.resumed is None:
            return
        saved = read_run(self.resumed)
        self._check_same(saved)
        self.done = self._find_done(saved)
        self.times.update(saved["cxlp"]["times"])
        self.progress.images = saved["cxlp_run"]["images_seen"]
        self.progress.phases = dict(saved["cxlp_run"]["images_by_phase"])
        self.report, self._seen = saved["cxlp_run"]["report"], saved["cxlp_run"]["seen"]
        if launched_rank() == 0:  # now that it is known to belong to the run
            write_whole(self.folder / "config-resumed.yaml", self._config_text)
            if saved["cxlp_run"]["recipe"]["trainer.max_epochs"] != self.config["trainer"]["max_epochs"]:
                # Made longer: it is so for good, and not at its end.
                write_whole(self.folder / "config.yaml", self._config_text)
                (self.folder / "metrics.json").unlink(missing_ok=True)
            self._write_done()

    def _find_done(self, saved: Mapping[str, Any]) -> dict[str, Done]:
        """The stages that are done: those of ``stages.json``, and what the checkpoint itself tells.

        Args:
            saved: The checkpoint to go on from.
        """
        assert self.resumed is not None
        state = self.folder / STAGES
        found = json.loads(state.read_text()) if state.is_file() else {}
        done = {name: Done(**stage) for name, stage in found.items() if stage["checkpoint"]}
        run, stage = saved["cxlp_run"], stage_of(saved)
        path = os.path.relpath(os.path.realpath(self.resumed), os.path.realpath(self.folder))
        # Of a copy elsewhere, earlier stages are not here, nor needed.
        if stage != "frozen" and self.model.start != "scratch":
            done.setdefault("frozen", Done(path, path, 0, 1, {}))
        if stage == "closing":
            done.setdefault("finetune", Done(path, path, run["first_epoch"] - 1, run["first_epoch"], {}))
        if stage != "finetune":  # killed before stages.json was written
            epoch = run["first_epoch"]
            done.setdefault(stage, Done(path, path, epoch, epoch + 1, saved["cxlp"]["validated"]))
        elif run["recipe"]["trainer.max_epochs"] != self.config["trainer"]["max_epochs"]:
            done.pop("finetune", None)  # it is made longer
        return {name: done[name] for name in ("frozen", "finetune", "closing") if name in done}

    def _check_same(self, saved: Mapping[str, Any]) -> None:
        """Refuse a checkpoint of another recipe, other classes or other images."""
        recipe = recipe_of(self.config)
        known = saved["cxlp_run"]["recipe"]
        epochs = "trainer.max_epochs"
        if not self.model.closing_fit and recipe[epochs] > known[epochs]:  # such a run may be made longer
            known = {**known, epochs: recipe[epochs]}
        check_recipe(known, recipe)
        network = saved["cxlp"]["network"]
        if list(network["classes"]) != list(self.data.classes):
            raise CxlpError("the classes of the data are others than those of the checkpoint's run")
        check_images(saved["cxlp_run"]["trained_on"], self.data.fingerprints("train", labelled=True))

    # --- stages -----------------------------------------------------------------------------------

    def fit(self) -> Done:
        """Do the stages that are not done yet; returns the one whose checkpoint is to be tested.

        It is the best on the held-out images, ties keep the earlier one; without held-out images it is the last.
        """
        epochs = self.config["trainer"]["max_epochs"]
        until = None if self.choice is None else self.choice.stage
        plan: dict[str, Callable[[], Done]] = {}
        if self.model.fits_first or not epochs:
            plan["frozen"] = self._fit_first
        elif self.model.start != "scratch":
            plan["frozen"] = self._start_from_checkpoint
        if epochs and until != "frozen":
            plan["finetune"] = self._fit_gradients
        if self.model.closing_fit and until in (None, "closing"):
            plan["closing"] = self._fit_again
        for name, work in plan.items():
            if name not in self.done:
                self.done[name] = work()
                self._write_done()
        return self._choose()

    def _write_done(self) -> None:
        if launched_rank() == 0 and self.saves:
            found = {stage: asdict(done) for stage, done in self.done.items()}
            write_whole(self.folder / STAGES, json.dumps(found, indent=2) + "\n")

    def _choose(self) -> Done:
        key = f"val/{SELECTION[self.data.multi_label]}"
        last = self._previous()
        validated = [s for s in self.done.values() if key in s.validated and (s.checkpoint or s is last)]
        if self.choice is not None or not validated:
            return last
        return max(validated, key=lambda stage: stage.validated[key])  # of equals, max returns the first

    def _fit_first(self) -> Done:
        count_folds(
            torch.tensor([s.label for s in self.data.splits["train"].samples]),
            self.data.classes,
            self.model.frozen,
            self.model.cross_fit,
        )
        if self.model.frozen.store is not None:
            self.reuse = FeatureReuse(self.model.frozen, self.data)
        task = Frozen(self.network, self.model.frozen, keep_folds=self.model.cross_fit, reuse=self.reuse)
        done = self._fit_frozen("frozen", task, 0)
        self._folds = task.fold_classifiers
        return done

    def _fit_again(self) -> Done:
        """Fit without gradients behind the trained backbone."""
        before = self._previous()
        self._load(before.last)
        settled = self.report["C"], self.report["logit_scale"]
        return self._fit_frozen("closing", Frozen(self.network, self.model.frozen, settled=settled), before.epochs)

    def _fit_frozen(self, name: str, task: Frozen, epoch: int) -> Done:
        trainer = self._build_trainer(name, [], gradients=False, first_epoch=epoch)
        self._run(trainer, task)
        self.report = self.report or task.report
        path = f"checkpoints/{name}.ckpt" if self.saves else ""
        if path:
            trainer.save_checkpoint(self.folder / path)
        return Done(path, path, epoch, epoch + 1, task.validated)

    def _fit_gradients(self) -> Done:
        model = self.model
        folds = self._folds
        first = self._previous().epochs if self.done else 0
        resume = self._resumed_gradients()
        saved: dict[str, Any] = {}
        if resume is not None:
            saved = read_checkpoint(resume)
        elif self.done:
            saved = self._load(self._previous().last)
        if model.cross_fit and folds is None:
            folds = FoldClassifiers(**saved["cxlp"]["fold_classifiers"])
        if model.start == "projection":
            self.network.reset_classifier()
        task = FineTune(
            self.network,
            model.optimizer,
            folds,
            label_smoothing=model.label_smoothing,
            mix=model.mix,
            mix_alpha=model.mix_alpha,
            ema=model.ema,
            freeze_batch_norm=model.freeze_batch_norm,
            recompute=model.recompute,
            compile=model.compile,
        )
        own: list[pl.Callback] = [StopWhereItStopped()]
        if self.choice is not None:
            own.append(StopAfter(self.choice.last_gradient_epoch - first))
        trainer = self._build_trainer("finetune", own, gradients=True, first_epoch=first)
        if resume is not None:
            check_images_per_step(saved["cxlp_run"]["images_per_step"], self._images_per_step(trainer))
        self._run(trainer, task, resume)
        kept = trainer.checkpoint_callback
        best = kept.best_model_path if isinstance(kept, ModelCheckpoint) else ""
        epochs = first + trainer.current_epoch
        if not best:
            return Done("", "", epochs - 1, epochs, task.validated)
        found = read_checkpoint(best)
        last = self.folder / "checkpoints" / "last.ckpt"
        if not last.is_file():  # a callback of the user's own, or a copy from elsewhere whose epochs are all done
            last = Path(resume if resume is not None and saved["global_step"] == trainer.global_step else best)
        # Relative, also where the folder's path has links: it may be moved.
        where = os.path.realpath(self.folder)
        paths = [os.path.relpath(os.path.realpath(p), where) for p in (best, last)]
        return Done(paths[0], paths[1], first + int(found["epoch"]), epochs, found["cxlp"]["validated"])

    def _resumed_gradients(self) -> str | None:
        """Return what the gradient epochs go on from, if they began before: here, or in a copy from elsewhere."""
        if self.resumed is None:
            return None
        return str(self.resumed.absolute()) if read_checkpoint(self.resumed)["cxlp"]["task"] == "FineTune" else None

    def _start_from_checkpoint(self) -> Done:
        """Take over the network of an earlier run; its frozen fit, if it is of these images, counts as this run's."""
        start = read_start(self.model, self.network, self.data, recipe_of(self.config))
        load_weights(self.network, start.saved, str(start.path))
        self._seen, self.report = start.saved["cxlp_run"]["seen"], start.saved["cxlp_run"]["report"]
        if self.model.cross_fit:
            self._folds = FoldClassifiers(**start.saved["cxlp"]["fold_classifiers"])
        kept = "checkpoints/start.ckpt"
        if launched_rank() == 0:
            copy_whole(start.path, self.folder / kept)
        # The gradient epochs start from the original: other processes do not know this run's folder yet.
        return Done(kept, str(start.path.absolute()), 0, 1, start.validated)

    def test(self, stage: Done) -> dict[str, float]:
        """Score the test images by the checkpoint of a stage."""
        self._load(stage.checkpoint)
        frozen = list(self.done) == ["frozen"]
        task = Frozen(self.network, self.model.frozen, reuse=self.reuse) if frozen else ClassificationTask(self.network)
        trainer = self._build_trainer("test", [TestReport(self.folder, self.data)], False, first_epoch=stage.epoch)
        task.times = self.times
        (tested,) = trainer.test(task, self.data, verbose=False)
        if stage.checkpoint and trainer.is_global_zero:
            name_best(self.folder, stage.checkpoint)
        return {key: value for key, value in tested.items() if key.startswith("test/")}

    # --- Trainers ---------------------------------------------------------------------------------

    @property
    def trainer(self) -> pl.Trainer:
        """The latest stage's."""
        assert self._trainer is not None
        return self._trainer

    @property
    def saves(self) -> bool:
        """Whether checkpoints are written."""
        return self.config["trainer"]["enable_checkpointing"] is not False

    def _run(self, trainer: pl.Trainer, task: ClassificationTask, resume: str | None = None) -> None:
        task.times = self.times
        trainer.fit(task, self.data, ckpt_path=resume, weights_only=True if resume else None)
        # Lightning's launcher starts other processes with the first fit: only now do they know the folder.
        self.folder = Path(trainer.strategy.broadcast(str(self.folder)))

    def _build_trainer(self, stage: str, own: list[pl.Callback], gradients: bool, first_epoch: int = 0) -> pl.Trainer:
        """Make the Trainer of a stage from the options of ``trainer``; those of gradient epochs apply there only."""
        # Anew for each stage: strategies, plugins and the user's callbacks belong to one Trainer.
        given = build_parser().instantiate(self.config.clone())["trainer"].as_dict()
        users = given.pop("callbacks") or []
        users = list(users) if isinstance(users, list | tuple) else [users]
        epochs = given.pop("max_epochs")
        if gradients:
            if self.choice is not None:  # nothing is held out that could end the run, or choose
                users = [c for c in users if not str(getattr(c, "monitor", "")).startswith("val/")]
                given |= {"min_epochs": None, "min_steps": None}
            own = [*own, *self._checkpoints(users)]
            if given["logger"] is not False:
                own.append(LearningRateMonitor("step"))
        else:
            epochs = 1
            defaults = build_parser().get_defaults()["trainer"]
            given |= {key: defaults[key] for key in GRADIENT_TRAINER_KEYS}
            if stage == "test":
                users = [c for c in users if not isinstance(c, ModelCheckpoint)]
            elif self.config["trainer"]["max_epochs"]:
                users = [c for c in users if isinstance(c, ProgressBar)]  # meant for the gradient epochs
        if not any(isinstance(c, ProgressBar) for c in users) and given["enable_progress_bar"] is not False:
            own.append(TrainingBar())  # as the fit's own bars: a live display would clash with them
        plugins = given.pop("plugins") or []
        plugins = list(plugins) if isinstance(plugins, list | tuple) else [plugins]
        if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
            plugins.append(WholeCheckpoints())
        if given["logger"] in (None, True):
            given["logger"] = build_loggers(self.settings, self.folder, stage, self.experiment)
        image = {
            "size": self.network.test_size,
            "aspect": self.data.aspect,
            "boxes": any(sample.box is not None for sample in self.data.splits["test"].samples),
        }
        self.progress.first_epoch = first_epoch
        record = Record(self._facts, image)
        shared = [self.progress, EpochSeed(), record, self._provenance, MovedCheckpoints(), Signals()]
        theirs = [c for c in users if isinstance(c, ModelCheckpoint)]
        for callback in theirs:
            callback.dirpath = callback.dirpath or os.path.realpath(self.folder / "checkpoints")
        if not gradients and not theirs:
            given["enable_checkpointing"] = False
        given["default_root_dir"] = str(self.folder)
        built = pl.Trainer(
            **given,
            max_epochs=epochs,
            callbacks=[*users, *shared, *own],
            plugins=plugins,
        )
        if self.choice is not None and self.choice.stage != "frozen":
            check_images_per_step(self.choice.images_per_step, self._images_per_step(built))
        self._trainer = built
        return built

    def _checkpoints(self, users: list[pl.Callback]) -> list[pl.Callback]:
        """The run's own checkpoints: the last, and the best unless the user has said which that is."""
        if not self.saves:
            return []
        theirs = any(isinstance(c, ModelCheckpoint) for c in users)
        monitor = f"val/{SELECTION[self.data.multi_label]}" if self.data.validation and not theirs else None
        return list(checkpoints(self.folder / "checkpoints", monitor))

    def _images_per_step(self, trainer: pl.Trainer) -> int:
        return int(self.data.batch_size * trainer.world_size * (self.config["trainer"]["accumulate_grad_batches"] or 1))

    def _start_logging(self) -> None:
        if launched_rank() != 0 or self.config["trainer"]["logger"] not in (None, True):
            return
        mode = "FineTune" if self.config["trainer"]["max_epochs"] else "Frozen"
        logged = labelled(self.settings, self.data.name, *self.model.labels, mode)
        self.experiment = start_wandb(logged, self.folder, self._wandb_id)
        if self.experiment is not None:
            self.experiment.config.update(self.config.as_dict(), allow_val_change=True)  # type: ignore[no-untyped-call]

    # --- checkpoints ------------------------------------------------------------------------------

    def _facts(self) -> dict[str, Any]:
        """What a checkpoint of this run tells of it."""
        mine = self.data.fingerprints("train")
        return {
            "wandb_id": None if self.experiment is None else self.experiment.id,
            "recipe": recipe_of(self.config),
            "images_per_step": self._images_per_step(self.trainer),
            "report": self.report or getattr(self.trainer.lightning_module, "report", {}),
            "trained_on": self.data.fingerprints("train", labelled=True),
            # with those of the runs whose weights this one began with
            "seen": torch.unique(mine if self._seen is None else torch.cat([mine, self._seen])),
            "images_seen": self.progress.images,
            "images_by_phase": dict(self.progress.phases),
            "first_epoch": self.progress.first_epoch,
        }

    def _previous(self) -> Done:
        return list(self.done.values())[-1]

    def _load(self, checkpoint: str) -> dict[str, Any]:
        """Give the network the weights of a checkpoint of this run; none was saved: it has the latest."""
        if not checkpoint:
            return {}
        saved = read_checkpoint(self.folder / checkpoint)
        load_weights(self.network, saved, checkpoint)
        return saved


def choose_epoch(run: Run, arguments: Sequence[str]) -> list[str]:
    """Do the first run of ``run.refit: true``.

    Args:
        run: With held-out images.
        arguments: Its own.

    Returns:
        The arguments of the second run, on all training images.
    """
    chosen = run.fit()
    folder = refit_folder(run.folder)
    best = str(run.folder / chosen.checkpoint)
    # Without a Trainer: where the first run was done before, there was none. Only rank 0 clears away.
    last = take_up(folder) if launched_rank() == 0 else last_checkpoint(folder)
    if launched_rank() == 0:
        if run.experiment is not None:
            run.experiment.finish()
        say(f"{run.folder} has chosen epoch {chosen.epoch}: now all training images, in {folder}")
    place = ["--run.root", str(folder.parent), "--run.name", folder.name]
    resumed = "null" if last is None else str(folder)
    return [*arguments, *place, "--run.refit", best, "--data.validation", "0", "--ckpt_path", resumed]
