"""What both modes share: the frozen fit inside the Trainer, evaluation, and what a checkpoint holds."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, WeightAveraging
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection

from cxlp.data.dataset import Split
from cxlp.frozen.fit import FrozenConfig, FrozenFit, count_folds
from cxlp.frozen.folds import FoldClassifiers
from cxlp.metrics.classification import (
    confusion_matrix,
    multi_label_metrics,
    per_class_average_precision,
    single_label_metrics,
)
from cxlp.models.network import Network, NetworkConfig
from cxlp.tasks.compatibility import Saved, check_images, check_network, check_recipe, plain
from cxlp.tasks.ema import AverageWeights
from cxlp.tasks.feature_reuse import KeptFeatures
from cxlp.utils.errors import CxlpError
from cxlp.utils.labels import classification_loss
from cxlp.utils.profiling import PhaseTimes

Batch = dict[str, Tensor]


class CrossLayerTask(pl.LightningModule):
    """A network, and its fit without gradients, in the first epoch and perhaps again in a later one.

    The frozen fit is an epoch like any other, so ranks share its images, the Trainer's precision and
    progress bar apply, and validation and checkpoints follow it. All other epochs, where a subclass has any, are those
    of gradient descent.

    Args:
        network: Backbone and pooling.
        frozen: Options of the fit without gradients.

    Attributes:
        frozen_epochs: The epochs that fit without gradients; their images come in order and without augmentation.
        times: Seconds by phase.
        report: What the latest frozen fit chose and found.
        validated: The latest validation's metrics; of a loaded checkpoint, that checkpoint's.
        epoch_tested: Of the loaded checkpoint; ``None``: none was loaded.
        fold_classifiers: Of the first frozen fit's cross-validation, where a subclass trains with them.
        first_epoch: Where a resumed run goes on: known before the Trainer's own count is.
        resuming: Told by the command line: a checkpoint will be restored, so that no other start is looked for.
    """

    def __init__(self, network: NetworkConfig = NetworkConfig(), frozen: FrozenConfig = FrozenConfig()) -> None:
        super().__init__()
        self.network = Network(network)
        self.frozen = frozen
        self.frozen_epochs = frozenset({0})
        self.times = PhaseTimes()
        self.report: dict[str, float] = {}
        self.validated: dict[str, float] = {}
        self.epoch_tested: int | None = None
        self.resuming = False
        self.first_epoch = 0
        self.fold_classifiers: FoldClassifiers | None = None
        self._seen: Tensor | None = None
        self._fit: FrozenFit | None = None
        self._kept: KeptFeatures | None = None
        self._phase_start = self._evaluation_start = 0.0

    # --- setting up -------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Make the metrics; the DataModule, which is set up before, has told the network its classes."""
        classes, multi_label = len(self.network.classes), self.network.multi_label
        build = multi_label_metrics if multi_label else single_label_metrics
        self.val_metrics, self.test_metrics = build(classes, "val/"), build(classes, "test/")
        self.val_loss, self.test_loss = MeanMetric(), MeanMetric()
        self.per_class = per_class_average_precision(classes) if multi_label else confusion_matrix(classes)
        if stage == "fit":
            self._check_plan()
        # Features that others may want are those of the network as it came: of the first epoch alone.
        if self.frozen.store is not None and stage in ("fit", "test") and self.frozen_epochs == {0}:
            self._look_for_features(stage)

    def _check_plan(self) -> None:
        """Refuse what would be found out only after the pass over the images, or not at all.

        Raises:
            CxlpError: Names it.
        """
        trainer = self.trainer
        averages = [c for c in trainer.callbacks if isinstance(c, WeightAveraging)]  # type: ignore[attr-defined]
        foreign = [c for c in averages if not isinstance(c, AverageWeights)]
        if foreign and (self.frozen_epochs or len(averages) > len(foreign)):
            raise CxlpError(
                f"{type(foreign[0]).__name__} averages the weights before the frozen fit, too, or beside model.ema: "
                "leave it out, and take model.ema"
            )
        if 0 in self.frozen_epochs:
            samples = trainer.datamodule.splits["train"].samples  # type: ignore[attr-defined]
            labels = torch.tensor([sample.label for sample in samples])
            count_folds(labels, self.network.classes, self.frozen, self.cross_fit)

    def _look_for_features(self, stage: str) -> None:
        """Tell the data which pictures need not be decoded: workers may start before any later hook."""
        if self._kept is None:
            data = self.trainer.datamodule  # type: ignore[attr-defined]
            self._kept = KeptFeatures(self.frozen, self.network, data, str(self.trainer.precision))
            if stage == "fit" and self._kept.found and not self.resuming:
                self._kept.take_up()
        if self.scores_kept:
            self._kept.offer("val" if stage == "fit" else "test")

    #: Whether gradient epochs want the classifiers of the frozen fit's cross-validation.
    cross_fit = False

    #: Whether held-out and test images are scored by the frozen solution only, so that features of theirs can be kept.
    scores_kept = False

    @property
    def in_frozen_epoch(self) -> bool:
        """Whether the current epoch fits without gradients."""
        return self.current_epoch in self.frozen_epochs

    def train(self, mode: bool = True) -> "CrossLayerTask":
        """Set training mode, except for a network that is fitted without gradients."""
        super().train(mode)
        if mode and self._trainer is not None and self.in_frozen_epoch:
            self.network.eval()
        return self

    def on_train_start(self) -> None:
        """Look where a resumed run is, and whether the frozen epochs ahead will see each image.

        Raises:
            CxlpError: If it was saved within an epoch: which images were drawn then is not known any more. Or where
                options of the Trainer would spoil a frozen fit, also one that comes last.
        """
        if self.trainer.fit_loop.restarted_mid_epoch:
            raise CxlpError(
                "this checkpoint was written within an epoch (trainer.val_check_interval?), where no run can be taken "
                "up: resume from last.ckpt, which is written when an epoch is over"
            )
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, EarlyStopping) and self._had_ended_by(callback):
                self.trainer.should_stop = True
        if any(epoch >= self.current_epoch for epoch in self.frozen_epochs):
            self._check_frozen_pass()
        if self.fold_classifiers is not None:  # of a checkpoint, which is read before the network is moved
            self.fold_classifiers = self.fold_classifiers.to(self.device)

    def _had_ended_by(self, callback: EarlyStopping) -> bool:
        enough, last = callback.stopping_threshold, self.validated.get(callback.monitor)
        if enough is not None and last is not None and callback.monitor_op(torch.tensor(last), torch.tensor(enough)):
            return True  # perhaps in epoch 0, which the callback does not tell from none
        return bool(callback.stopped_epoch)

    # --- the frozen epochs ------------------------------------------------------------------------

    def _check_frozen_pass(self) -> None:
        validated_at = self.trainer.val_check_batch
        if validated_at is not None and validated_at < self.trainer.num_training_batches:
            raise CxlpError(
                f"trainer.val_check_interval is {self.trainer.val_check_interval}: the frozen fit has nothing to "
                "validate before its pass is over; leave it out"
            )
        batches, given = len(self.trainer.train_dataloader), self.trainer.num_training_batches  # type: ignore[arg-type]
        if given < batches:
            raise CxlpError(
                f"the frozen fit needs each training image, {batches} batches of them, and was given {given}: "
                "leave out trainer.limit_train_batches and trainer.fast_dev_run"
            )
        if (self.trainer.check_val_every_n_epoch or 1) > 1:
            raise CxlpError(
                f"trainer.check_val_every_n_epoch is {self.trainer.check_val_every_n_epoch}: the frozen solution is "
                "validated and saved after its own epoch; leave it out"
            )

    def on_train_epoch_start(self) -> None:
        """Begin the frozen fit, or time a gradient epoch."""
        self.train()
        self._phase_start = self.times.now()
        if not self.in_frozen_epoch:
            return
        folder = Path(self.trainer.strategy.broadcast(self.trainer.default_root_dir)) / "features"
        images = len(self.trainer.datamodule.splits["train"])  # type: ignore[attr-defined]
        found = self._kept is not None and self._kept.found
        if self._kept is not None:
            folder = self._kept.entry.folder if found else self._kept.begin()
        first = self.current_epoch == 0
        self._fit = FrozenFit(
            self.network,
            self.frozen,
            images,
            folder,
            self.times,
            progress=self.trainer.progress_bar_callback is not None,
            stored=found,
            keep=self._kept is not None,
            cross=self.cross_fit and first,
            # A later fit sees features that were trained with the labels: a cross-validation of them would flatter.
            settled=None if first else (self.report["C"], self.report["logit_scale"]),
        )

    def observe(self, batch: Batch) -> None:
        """Feed a batch to the frozen fit."""
        assert self._fit is not None
        new = ~batch["repeat"]
        pictures = batch["image"] if "image" in batch else batch["features"]
        self._fit.observe(pictures[new], batch["label"][new], batch["index"][new])

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ANN401 (Lightning's types)
        """After the frozen epoch's last batch: solve, so that validation sees the solution."""
        if self.trainer.is_last_batch and self._fit is not None:
            self._close_phase("extraction")
            # Full precision: autocast would round the solution.
            with torch.autocast(self.device.type, enabled=False):
                self.report = self._fit.finish()
            self.fold_classifiers = self._fit.fold_classifiers
            self._fit = None
            if self._kept is not None and not self._kept.found:
                own = ("Gram matrix", "SVM", "validation")  # of each run, also on features that are there
                self._kept.commit({phase: spent for phase, spent in self.times.items() if phase not in own})
            self.log_dict({f"frozen/{k}": v for k, v in self.report.items()}, rank_zero_only=True)

    def on_train_epoch_end(self) -> None:
        """Refuse a pass that something has ended early: there is no solution.

        Raises:
            CxlpError: On every rank.
        """
        if self._fit is not None:
            self.abandon_fit()
            raise CxlpError(
                "the frozen fit was stopped before it had seen each training image (trainer.max_time, a callback?): "
                "nothing was fitted"
            )

    def configure_callbacks(self) -> list[pl.Callback]:
        """Have Lightning tell of exceptions: it tells callbacks only."""
        return [_LeaveNothingHalfMade()]

    def abandon_fit(self) -> None:
        """Delete what an interrupted frozen fit has on disk."""
        if self._fit is not None:
            self._fit.close(keep=False)
            self._fit = None
        if self._kept is not None:
            self._kept.give_up()

    def _close_phase(self, name: str) -> None:
        self.times[name] = self.times.get(name, 0.0) + self.times.now() - self._phase_start

    def _close_evaluation(self, name: str) -> None:
        spent = self.times.now() - self._evaluation_start
        self.times[name] = self.times.get(name, 0.0) + spent
        self._phase_start += spent  # validation within a training epoch is no part of that

    # --- evaluation -------------------------------------------------------------------------------

    def forward(self, images: Tensor) -> Tensor:
        """Score images, see :class:`~cxlp.models.network.Network`."""
        scores: Tensor = self.network(images)
        return scores

    def on_validation_start(self) -> None:
        """Time validation."""
        self._evaluation_start = self.times.now()

    def on_validation_epoch_start(self) -> None:
        """Make room for the features of the held-out images."""
        self._begin_rows("val")

    def on_test_epoch_start(self) -> None:
        """Make room for the features of the test images."""
        self._begin_rows("test")

    def on_validation_epoch_end(self) -> None:
        """Keep the features of the held-out images."""
        self._keep_rows()

    def on_test_epoch_end(self) -> None:
        """Keep the features of the test images, and time the test; tables and pictures come after it."""
        self._keep_rows()
        self._close_evaluation("test")

    def _begin_rows(self, split: Split) -> None:
        if self._kept is not None and self.scores_kept and not self.trainer.sanity_checking:
            self._kept.begin_scored(split)

    def _keep_rows(self) -> None:
        if self._kept is not None:
            self._kept.end_scored()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Score held-out training images."""
        self._evaluate(batch, self.val_metrics, self.val_loss, "val/loss")

    def on_validation_end(self) -> None:
        """Time validation."""
        self._close_evaluation("validation")

    def on_validation_model_train(self) -> None:
        """Return to training mode by :meth:`train`, which knows what stays frozen."""
        self.train()

    def on_test_start(self) -> None:
        """Time the test."""
        self._evaluation_start = self.times.now()

    def test_step(self, batch: Batch, batch_idx: int) -> Batch:
        """Score test images; returns their ``score``, ``label`` and ``index``, repeats left out."""
        scores, labels = self._evaluate(batch, self.test_metrics, self.test_loss, "test/loss")
        if len(labels):
            self.per_class.update(scores, labels)
        return {"score": scores, "label": labels, "index": batch["index"][~batch["repeat"]]}

    def _evaluate(self, batch: Batch, metrics: MetricCollection, loss: MeanMetric, name: str) -> tuple[Tensor, Tensor]:
        new = ~batch["repeat"]
        labels = batch["label"][new]
        if "features" in batch:
            features = batch["features"][new]
        else:
            # Where all are repeats, one of them is passed through: not every network takes an empty batch.
            images = batch["image"][new] if len(labels) else batch["image"][:1]
            features = self.network.test_features(images)[: len(labels)]
            if self._kept is not None:
                self._kept.write_scored(batch["index"][new], features)
        scores = self.network.classify(features).float()
        if len(labels):
            metrics.update(scores, labels)
            loss.update(classification_loss(scores, labels), weight=len(labels))
        # The objects, not their values: Lightning computes and resets them when the epoch ends.
        self.log_dict(dict(metrics.items()), on_step=False, on_epoch=True, batch_size=len(labels))
        self.log(name, loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(labels))
        return scores, labels

    # --- checkpoints ------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what prediction needs beside the weights: all of it plain values."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        checkpoint["cxlp"] = {
            "task": type(self).__name__,
            "network": self.network.spec(),
            "image": {
                "size": data.splits["test"].transform.size,
                "aspect": data.aspect,
                "boxes": any(sample.box is not None for sample in data.splits["test"].samples),
            },
            "recipe": self.recipe(),
            "report": self.report,
            "validated": self._latest_validation(),
            "trained_on": data.fingerprints("train"),
            "seen": self._all_seen(),
            "times": dict(self.times),
            "frozen_epochs": sorted(self.frozen_epochs),
            "fold_classifiers": None if self.fold_classifiers is None else vars(self.fold_classifiers),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over what the frozen fit found and how long the phases took.

        Raises:
            CxlpError: If the checkpoint is of another mode, network or classes than this run's.
        """
        saved = checkpoint["cxlp"]
        check_network(saved, type(self).__name__, self.network)
        if self.trainer.state.fn == "fit":
            # A run may be made longer, if no closing fit is in the way.
            recipe = {key: value for key, value in self.recipe().items() if key != "trainer.max_epochs"}
            check_recipe(saved, recipe, self.frozen_epochs)
        check_images(saved, self.trainer.datamodule.fingerprints("train"))  # type: ignore[attr-defined]
        self.report, self.validated, self.epoch_tested = saved["report"], saved["validated"], int(checkpoint["epoch"])
        if self.trainer.state.fn == "fit":
            self.times.update(saved["times"])
            self.first_epoch = int(checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])
            self._seen = saved["seen"]
            folds = saved["fold_classifiers"]
            self.fold_classifiers = None if folds is None else FoldClassifiers(**folds)

    def _all_seen(self) -> Tensor:
        """The training images' fingerprints, and those of the runs whose weights this one began with."""
        mine: Tensor = self.trainer.datamodule.fingerprints("train")  # type: ignore[attr-defined]
        return mine if self._seen is None else torch.unique(torch.cat([mine, self._seen]))

    def check_recipe(self, saved: Saved) -> None:
        """Refuse to repeat a run of another network or recipe.

        Args:
            saved: Of a checkpoint of that run.

        Raises:
            CxlpError: Names the first key that differs.
        """
        check_network(saved, type(self).__name__, self.network)
        check_recipe(saved, self.recipe(), self.frozen_epochs)

    @property
    def made_earlier(self) -> dict[str, Any]:
        """Of training features that an earlier run left: what they took there (seconds by phase, memory)."""
        return self._kept.entry.facts() if self._kept is not None and self._kept.taken_up else {}

    def recipe(self) -> dict[str, Any]:
        """What the weights hang on besides network and images, by key, as plain values."""
        options = asdict(self.frozen)
        del options["store"]  # where features are kept changes nothing
        return {f"model.frozen.{key}": plain(value) for key, value in options.items()}

    def _latest_validation(self) -> dict[str, float]:
        return {k: float(v) for k, v in self.trainer.callback_metrics.items() if k.startswith("val/")}


class _LeaveNothingHalfMade(pl.Callback):
    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        assert isinstance(pl_module, CrossLayerTask)
        pl_module.abandon_fit()


def set_requires_grad(module: nn.Module, value: bool) -> None:
    """Set ``requires_grad`` of all parameters; once, before a run, since DDP looks at it only then."""
    for parameter in module.parameters():
        parameter.requires_grad_(value)
