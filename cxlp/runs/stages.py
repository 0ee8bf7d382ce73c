"""The stages of a run: frozen fit, gradient epochs, closing frozen fit, and a test of the best.

Each fit is a plain ``Trainer.fit`` and saves a checkpoint that the next stage starts from. ``stages.json`` lists the
finished stages. A run skips these, which is also how it resumes.
"""

import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint

from cxlp.frozen.config import count_folds
from cxlp.frozen.folds import FoldClassifiers
from cxlp.frozen.solvers import solver_of
from cxlp.models.checkpoint import load_weights, read_checkpoint
from cxlp.runs import summary
from cxlp.runs.callbacks import Record, RestoreEarlyStop
from cxlp.runs.done import Done, path_in_run
from cxlp.runs.evaluation import TestRecorder
from cxlp.runs.folder import name_best
from cxlp.runs.launch import launched_rank
from cxlp.runs.loggers import build_loggers
from cxlp.runs.opening import OpenedRun
from cxlp.runs.places import STARTS
from cxlp.runs.protocol import check_images_per_step, recipe_of
from cxlp.runs.refit import StopAfter
from cxlp.runs.trainers import build_trainer, describe_precision
from cxlp.runs.wandb_runs import wandb_id_of
from cxlp.tasks import FineTune, Frozen
from cxlp.tasks.base import ClassificationTask
from cxlp.tasks.feature_reuse import FeatureReuse
from cxlp.utils.errors import CxlpError
from cxlp.utils.files import copy_whole
from cxlp.utils.progress import say
from cxlp.utils.starting import watching_start


class Run(OpenedRun):
    """One run, in one folder; see :class:`~cxlp.runs.opening.OpenedRun` for its attributes.

    Args:
        config: The resolved config, see :func:`cxlp.runs.cli.parse`.
    """

    # --- stages -----------------------------------------------------------------------------------

    def fit(self) -> Done:
        """Run the stages that are not finished, and return the stage whose checkpoint is to be tested.

        That is the best stage on the held-out images, or the last stage without held-out images. Ties keep the earlier
        stage.
        """
        if launched_rank() == 0 and self.config["trainer"]["logger"] in (None, True):
            self._wandb_id = wandb_id_of(self.settings, self._wandb_id)
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
        chosen_by = self._monitor if self.choice is None else f"{self.choice.checkpoint}"
        self._plan = summary.plan(plan, self.done, epochs, self.model.start, chosen_by)
        for name, work in plan.items():
            if name not in self.done:
                self.done[name] = work()
                self._write_done()
        return self._choose()

    def _choose(self) -> Done:
        key, last = self.lines.metric, self._previous()
        validated = [s for s in self.done.values() if key in s.validated and (s.checkpoint or s is last)]
        if self.choice is not None or not validated:
            return last
        return max(validated, key=lambda stage: stage.validated[key])  # ties: max returns the first

    def _fit_first(self) -> Done:
        count_folds(
            torch.tensor([s.label for s in self.data.splits["train"].samples]),
            self.data.classes,
            self.model.frozen,
            "model.cross_fit" if self.model.cross_fit else "",
        )
        if self.model.frozen.store is not None:
            self.reuse = FeatureReuse(self.model.frozen, self.data)
        task = Frozen(self.network, self.model.frozen, keep_folds=self.model.cross_fit, reuse=self.reuse)
        done = self._fit_frozen("frozen", task, 0)
        self._folds = task.fold_classifiers
        return done

    def _fit_again(self) -> Done:
        """Fit again without gradients, on the features of the fine-tuned backbone."""
        before = self._previous()
        self._load(before.last)
        settled = self.report["C"], self.report["logit_scale"]
        config = self.model.frozen
        if config.solver == "auto":  # both fits need the same objective, even if the free memory has changed
            config = replace(config, solver=solver_of(self.report))
        return self._fit_frozen("closing", Frozen(self.network, config, settled=settled), before.epochs)

    def _fit_frozen(self, name: str, task: Frozen, epoch: int) -> Done:
        trainer = self._build_trainer(name, [], epoch)
        self._run(trainer, task)
        self.report = self.report or task.report
        path = f"checkpoints/{name}.ckpt" if self.saves else ""
        if path:
            trainer.save_checkpoint(self.folder / path)
        return Done(path, path, epoch, epoch + 1, task.validated, str(trainer.precision))

    def _fit_gradients(self) -> Done:
        model = self.model
        folds = self._folds
        first = self._previous().epochs if self.done else 1
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
        own: list[Callback] = [RestoreEarlyStop()]
        if self.choice is not None:
            own.append(StopAfter(self.choice.last_gradient_epoch - first))
        trainer = self._build_trainer("finetune", own, first)
        if resume is not None:
            check_images_per_step(saved["cxlp_run"]["images_per_step"], self._images_per_step(trainer))
        elif launched_rank() == 0 and model.start in STARTS:  # other checkpoints may be trained, or on other images
            for line in summary.possible_gain(self.report, len(self.data.splits["train"])):
                say(line)
        self._run(trainer, task, resume)
        if not trainer.global_step:
            raise CxlpError("gradient descent ended before its first step: raise trainer.max_time, if set")
        kept = trainer.checkpoint_callback
        last = self.folder / "checkpoints" / "last.ckpt"
        best = kept.best_model_path if isinstance(kept, ModelCheckpoint) else ""
        if not best and last.is_file():  # training ended before the first validation
            best = str(last)
        epochs = first + trainer.current_epoch
        if not best:
            return Done("", "", epochs - 1, epochs, task.validated, str(trainer.precision))
        found = read_checkpoint(best)
        if not last.is_file():  # resumed from a user's own checkpoint whose epochs are all finished
            last = Path(resume or best)
        epoch = first + int(found["epoch"])
        validated, precision = found["cxlp"]["validated"], found["cxlp_run"]["precision"]
        return Done(path_in_run(self.folder, best), path_in_run(self.folder, last), epoch, epochs, validated, precision)

    def _resumed_gradients(self) -> str | None:
        """Return the checkpoint to resume gradient epochs from; ``None`` if they have not started yet."""
        if self.resumed is None:
            return None
        return str(self.resumed.absolute()) if read_checkpoint(self.resumed)["cxlp"]["task"] == "FineTune" else None

    def _start_from_checkpoint(self) -> Done:
        """Load an earlier run's network; its validation metrics count if both runs hold out the same images."""
        start, self._start = self._start, None
        assert start is not None  # a resumed run has already finished this stage
        load_weights(self.network, start.saved, str(start.path))
        run = start.saved["cxlp_run"]
        self._seen, self.report = torch.unique(torch.cat([self._seen, run["seen"]])), run["report"]
        if self.model.cross_fit:
            self._folds = FoldClassifiers(**start.saved["cxlp"]["fold_classifiers"])
        kept = "checkpoints/start.ckpt"
        if launched_rank() == 0:
            copy_whole(start.path, self.folder / kept)
        # The gradient epochs start from the original file: other processes do not know this run's folder yet.
        return Done(kept, str(start.path.absolute()), 0, 1, start.validated, run["precision"])

    def test(self, stage: Done) -> dict[str, float]:
        """Test the checkpoint of a stage, and return the metrics."""
        self._load(stage.checkpoint)
        frozen = list(self.done) == ["frozen"]
        task = Frozen(self.network, self.model.frozen, reuse=self.reuse) if frozen else ClassificationTask(self.network)
        recorder = TestRecorder(self.data, self.settings.predictions)
        trainer = self._build_trainer("test", [recorder], stage.epoch, stage.precision)
        task.times = self.times
        chosen = self.config["trainer"]["precision"] is None
        if launched_rank() == 0 and chosen and stage.precision == "bf16-mixed" != self._precision.name:
            say("Testing in bf16-mixed, the precision of the fit, although it may be slow on this hardware")
        (tested,) = trainer.test(task, self.data, verbose=False)
        if stage.checkpoint and trainer.is_global_zero:
            with self.outputs.attempt("checkpoints/best.ckpt"):
                name_best(self.folder, stage.checkpoint)
        self.tested = recorder.result
        return {key: value for key, value in tested.items() if key.startswith("test/")}

    # --- Trainers ---------------------------------------------------------------------------------

    @property
    def trainer(self) -> pl.Trainer:
        """The Trainer of the latest stage."""
        assert self._trainer is not None
        return self._trainer

    def _run(self, trainer: pl.Trainer, task: ClassificationTask, resume: str | None = None) -> None:
        task.times = self.times
        launcher = trainer.strategy.launcher
        with watching_start(lambda: getattr(launcher, "procs", []), self.discard) as self.progress.have_met:
            trainer.fit(task, self.data, ckpt_path=resume, weights_only=True if resume else None)
        # Lightning's launcher starts the other processes in the first fit: tell them the folder now.
        self.folder = Path(trainer.strategy.broadcast(str(self.folder)))

    def _build_trainer(
        self, stage: str, own: list[Callback], first_epoch: int, precision: str | None = None
    ) -> pl.Trainer:
        """Build the Trainer of a stage whose first epoch is ``first_epoch``, counted over all stages.

        The default precision is the fastest one, and 32-true for gradient epochs.
        """
        self._stage, self.progress.first_epoch = stage, first_epoch
        self.lines.stage, self.lines.first_epoch = stage, first_epoch
        image = {
            "size": self.network.test_size,
            "aspect": self.data.aspect,
            "transform": list(self.data.transform),
            "boxes": any(sample.box is not None for sample in self.data.splits["test"].samples),
        }
        begin_wandb = None if self._wandb_id is None else self._begin_wandb
        trainer = self._trainer = build_trainer(
            self.config,
            stage,
            self.folder,
            [self.progress, self.lines, Record(self._facts, image), self._provenance, *own],
            build_loggers(self.settings, self.folder, stage, begin_wandb, self.outputs),
            self._monitor,
            refit=self.choice is not None,
            precision=precision or ("32-true" if stage == "finetune" else self._precision.name),
        )
        if self._plan and launched_rank() == 0:
            why = describe_precision(self.config["trainer"], self._precision)
            summary.print_facts(summary.run_facts(self.data, self.network, trainer, why, self._plan, self.folder))
            self._plan = ""
        if self.choice is not None and self.choice.stage != "frozen":
            check_images_per_step(self.choice.images_per_step, self._images_per_step(trainer))
        return trainer

    @property
    def _monitor(self) -> str | None:
        """The metric that chooses the best epoch; ``None`` if no images are held out."""
        return self.lines.metric if len(self.data.splits["val"]) else None

    def _images_per_step(self, trainer: pl.Trainer) -> int:
        return int(self.data.batch_size * trainer.world_size * (self.config["trainer"]["accumulate_grad_batches"] or 1))

    # --- checkpoints ------------------------------------------------------------------------------

    def _facts(self) -> dict[str, Any]:
        """The metadata of this run in its checkpoints."""
        return {
            "wandb_id": self._wandb_id,
            "recipe": recipe_of(self.config),
            "images": vars(self._images),
            "weights": self._weights,
            "choice": None if self.choice is None else asdict(self.choice),
            "images_per_step": self._images_per_step(self.trainer),
            "precision": str(self.trainer.precision),
            "report": self.report or getattr(self.trainer.lightning_module, "report", {}),
            "seen": self._seen,  # training images, including those of the runs that this run started from
            "images_seen": self.progress.images,
            "images_by_phase": dict(self.progress.phases),
            "first_epoch": self.progress.first_epoch,
            "stages": {name: asdict(done) for name, done in self.done.items()},
            "folder": os.path.realpath(self.folder),
        }

    def _previous(self) -> Done:
        return list(self.done.values())[-1]

    def _load(self, checkpoint: str) -> dict[str, Any]:
        """Load the weights of a checkpoint of this run; with an empty path, keep the current weights."""
        if not checkpoint:
            return {}
        saved = read_checkpoint(self.folder / checkpoint)
        load_weights(self.network, saved, checkpoint)
        return saved
