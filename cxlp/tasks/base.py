"""The common base of both tasks: scoring images, metrics, and the content of checkpoints."""

from collections.abc import Mapping
from dataclasses import replace
from textwrap import indent
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric, MetricCollection

from cxlp.backbones.inputs import check_images
from cxlp.frozen.checks import check_labels
from cxlp.frozen.folds import FoldClassifiers
from cxlp.heads.description import changed_options
from cxlp.metrics.classification import (
    confusion_matrix,
    multi_label_metrics,
    per_class_average_precision,
    single_label_metrics,
)
from cxlp.models.checkpoint import network_from_spec
from cxlp.models.network import Network
from cxlp.tasks.batch import Batch, read_batch, read_images
from cxlp.tasks.loaders import count_images, only_loader, sampler_of, warn_if_incomplete
from cxlp.utils.distributed import rank, world_size
from cxlp.utils.errors import CxlpError
from cxlp.utils.labels import classification_loss
from cxlp.utils.profiling import PhaseTimes


class ClassificationTask(pl.LightningModule):
    """Evaluates a network that classifies images; subclasses fit the network.

    The task works with any loader of ``(image, label)`` pairs, with the DataModules of :mod:`cxlp.data`, and with any
    logger and callback. Its checkpoints describe the network in plain values, so that ``load_from_checkpoint(path)``
    needs no further argument, unless the backbone is an ``nn.Module`` of your own.

    Args:
        network: A network with classes, or its plain values (:meth:`~cxlp.models.network.Network.spec`).

    Attributes:
        augment: Whether the DataModules of cxlp shuffle and augment the training images.
        times: Seconds by phase.
        report: Results of the frozen fit: ``C``, ``logit_scale``, and the cross-validated accuracy.
        validated: Metrics of the latest validation. Loading a checkpoint restores the metrics of its weights.
        fold_classifiers: Classifiers of a frozen fit's cross-validation, or ``None`` if they are not kept.

    Raises:
        CxlpError: If the network has no classes.
    """

    augment = True

    def __init__(self, network: Network | Mapping[str, Any]) -> None:
        super().__init__()
        self.network = network if isinstance(network, Network) else network_from_spec(network)
        if self.network.classifier is None:
            raise CxlpError("the network has no classes: pass them, Network(..., classes=data.classes)")
        classes, multi_label = len(self.network.classes), self.network.multi_label
        build = multi_label_metrics if multi_label else single_label_metrics
        self.val_metrics, self.test_metrics = build(classes, "val/"), build(classes, "test/")
        self.val_loss, self.test_loss = MeanMetric(), MeanMetric()
        self.per_class = per_class_average_precision(classes) if multi_label else confusion_matrix(classes)
        self.times = PhaseTimes()
        self.report: dict[str, float] = {}
        self.validated: dict[str, float] = {}
        self.fold_classifiers: FoldClassifiers | None = None
        self._phase_start = self._evaluation_start = 0.0
        self._holds_backbone = False
        self._seen = 0  # images that the loader has yielded on this rank so far
        self._scored = torch.zeros(classes + 1, dtype=torch.long)  # scored images of this rank, positives by class

    def __repr__(self) -> str:
        options = {name: value for name, value in self.arguments().items() if name != "network"}
        return f"{type(self).__name__}({changed_options(type(self), options)})\n{indent(repr(self.network), '  ')}"

    @property
    def image_size(self) -> int:
        """Side of the square training images in pixels."""
        return self.network.image_size

    @property
    def test_size(self) -> int:
        """Side of the square validation and test images in pixels."""
        return self.network.test_size

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores of images, see :class:`~cxlp.models.network.Network`."""
        scores: Tensor = self.network(images)
        return scores

    def configure_callbacks(self) -> list[pl.Callback]:
        """Return a callback that calls :meth:`undo` after an exception, when Lightning calls no ``teardown``."""
        return [UndoOnException()]

    def teardown(self, stage: str) -> None:
        """Restore the state of network and data before ``setup``."""
        self.undo()

    def undo(self) -> None:
        """Undo the changes of ``setup`` and delete unfinished files. A second call has no effect."""
        self._hold_backbone(False)

    def _hold_backbone(self, hold: bool = True) -> None:
        """Hold the backbone's weights, or release them. A second call has no effect."""
        if hold != self._holds_backbone:
            self._holds_backbone = hold
            (self.network.backbone.hold if hold else self.network.backbone.release)()

    def on_train_epoch_start(self) -> None:
        """Clear the metrics of earlier epochs: a checkpoint must hold the metrics of its own weights."""
        self.validated = {}

    def on_fit_end(self) -> None:
        """Raise an error if there were no batches: the Trainer then skips all earlier hooks of the fit."""
        self._check_batches()

    def _check_batches(self) -> None:
        """Raise an error if there are no training batches."""
        if self.trainer.num_training_batches == 0:
            raise CxlpError("the training loader yields no batches (an empty data set, drop_last?): nothing was fitted")

    # --- evaluation -------------------------------------------------------------------------------

    def on_validation_start(self) -> None:
        """Start the timer of validation.

        Raises:
            CxlpError: If there are several loaders.
        """
        only_loader(self.trainer.val_dataloaders)
        self._begin_evaluation()
        # trainer.validate resets the metrics to inference tensors, which a later fit cannot update.
        self.val_metrics.reset()
        self.val_loss.reset()

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:  # noqa: ANN401 (whatever a loader yields)
        """Score held-out images and update the metrics."""
        read = self._read(batch, batch_idx, self.trainer.val_dataloaders)
        self._evaluate(read, self.val_metrics, self.val_loss, "val/loss")

    def on_validation_epoch_end(self) -> None:
        """Store the metrics for the next checkpoint; Lightning logs them afterwards."""
        if not self.trainer.sanity_checking:
            warn_if_incomplete("validation", self.trainer.val_dataloaders, self._scored)
            found = {**self.val_metrics.compute(), "val/loss": self.val_loss.compute()}
            self.validated = {name: float(value) for name, value in found.items()}

    def on_validation_end(self) -> None:
        """Stop the timer of validation."""
        self._close_evaluation("validation")

    def on_test_start(self) -> None:
        """Start the timer of the test.

        Raises:
            CxlpError: If there are several loaders.
        """
        only_loader(self.trainer.test_dataloaders)
        self._begin_evaluation()

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor | None]:  # noqa: ANN401 (as above)
        """Score test images, and return ``score``, ``label`` and ``index`` of each image that is not a repeat."""
        read = self._read(batch, batch_idx, self.trainer.test_dataloaders)
        scores, labels = self._evaluate(read, self.test_metrics, self.test_loss, "test/loss")
        if len(labels):
            self.per_class.update(scores, labels)
        return {"score": scores, "label": labels, "index": None if read.index is None else read.index[read.new]}

    def on_test_epoch_end(self) -> None:
        """Stop the timer of the test, before tables and pictures are made."""
        self._close_evaluation("test")
        warn_if_incomplete("test", self.trainer.test_dataloaders, self._scored)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:  # noqa: ANN401 (as above)
        """Return probabilities ``(B, K)``: the softmax of the scores, or with several labels their sigmoid.

        Scores are computed from the test views. A batch may be images alone, ``(B, 3, T, T)``; labels are ignored.
        """
        images = read_images(batch)
        if batch_idx == 0:
            self._hold_backbone()
            check_images(images, self.test_size)
        scores = self.network.score(images).float()
        return scores.sigmoid() if self.network.multi_label else scores.softmax(dim=1)

    def _begin_evaluation(self) -> None:
        self._evaluation_start, self._seen = self.times.now(), 0
        self._hold_backbone()
        self._scored = torch.zeros_like(self._scored, device=self.device)

    def _checked(self, batch: Any, batch_idx: int, side: int) -> Batch:  # noqa: ANN401 (whatever a loader yields)
        """Read a batch and check it; on a GPU, check the first batch of an epoch only, because checks synchronise."""
        read = read_batch(batch)
        if batch_idx == 0 and not read.stored:
            check_images(read.images, side)
        if batch_idx == 0 or read.labels.device.type == "cpu":
            positions = torch.arange(len(read.labels)) if read.index is None else read.index
            check_labels(self.network, read.labels, positions)
        return read

    def _read(self, batch: Any, batch_idx: int, loaders: Any) -> Batch:  # noqa: ANN401 (whatever a loader yields)
        """Read a batch of images to score, and mark repeats of images that another rank scores."""
        read = self._checked(batch, batch_idx, self.test_size)
        loader = only_loader(loaders)
        # Only a distributed sampler is known to divide one data set among the ranks; an iterable one has no sampler.
        if not isinstance(loader, DataLoader) or not hasattr(sampler_of(loader), "num_replicas"):
            return read
        return replace(read, new=self._positions(read, count_images(loader))[1])

    def _positions(self, batch: Batch, images: int) -> tuple[Tensor, Tensor]:
        """Return the position of each image in the data set, and whether the image is new.

        If the batches have no ``index``, the images are assumed to be dealt in turn, as by torch's DistributedSampler:
        with W ranks, image k of rank r is at position ``k W + r``, and positions beyond the last image are repeats.
        """
        if batch.index is not None:
            return batch.index, batch.new
        count, ranks = len(batch.labels), world_size()
        positions = (self._seen + torch.arange(count, device=batch.labels.device)) * ranks + rank()
        self._seen += count
        return positions, positions < images if ranks > 1 else batch.new

    def _evaluate(self, batch: Batch, metrics: MetricCollection, loss: MeanMetric, name: str) -> tuple[Tensor, Tensor]:
        labels = batch.labels[batch.new]
        scores = self.network.classify(self._features(batch, len(labels))).float()
        if len(labels):
            metrics.update(scores, labels)
            loss.update(classification_loss(scores, labels), weight=len(labels))
            self._scored[0] += len(labels)
            if labels.ndim == 1:
                self._scored.index_add_(0, labels + 1, self._scored.new_ones(len(labels)))
            else:
                self._scored[1:] += (labels > 0).sum(dim=0)
        # Log the metric objects, not their values: Lightning computes and resets them at the end of the epoch.
        self.log_dict(dict(metrics.items()), on_step=False, on_epoch=True, batch_size=len(labels))
        self.log(name, loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(labels))
        return scores, labels

    def _features(self, batch: Batch, count: int) -> Tensor:
        """Return the features of the ``count`` new images."""
        if batch.stored:
            return batch.images[batch.new]
        # If all images are repeats, pass one of them: not every network accepts an empty batch.
        images = batch.images[batch.new] if count else batch.images[:1]
        return self.network.test_features(images)[:count]

    def _close_phase(self, name: str) -> None:
        self.times[name] = self.times.get(name, 0.0) + self.times.now() - self._phase_start

    def _close_evaluation(self, name: Literal["validation", "test"]) -> None:
        self._hold_backbone(False)
        spent = self.times.now() - self._evaluation_start
        self.times[name] = self.times.get(name, 0.0) + spent
        self._phase_start += spent  # validation within a training epoch does not count as training

    # --- checkpoints ------------------------------------------------------------------------------

    def arguments(self) -> dict[str, Any]:
        """Return the constructor's arguments, as plain values."""
        return {"network": self.network.spec()}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the description of network and task as plain values, which load without running code."""
        folds = self.fold_classifiers
        checkpoint[self.CHECKPOINT_HYPER_PARAMS_KEY] = self.arguments()
        checkpoint.setdefault("cxlp", {}).update(
            task=type(self).__name__,
            network=self.network.spec(),
            report=self.report,
            validated=self.validated,
            times=dict(self.times),
            fold_classifiers=None if folds is None else vars(folds),
        )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the results, metrics and times of the checkpoint.

        Raises:
            CxlpError: If another class of task wrote the checkpoint.
        """
        saved = checkpoint["cxlp"]
        if saved["task"] != type(self).__name__:
            raise CxlpError(f"the checkpoint is of {saved['task']}, not {type(self).__name__}: load it as the former")
        self.report, self.validated = dict(saved["report"]), dict(saved["validated"])
        self.times.update(saved["times"])
        folds = saved["fold_classifiers"]
        self.fold_classifiers = None if folds is None else FoldClassifiers(**folds)


class UndoOnException(pl.Callback):
    """Calls :meth:`ClassificationTask.undo` after an exception."""

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Restore the state of network and data before ``setup``."""
        # A Trainer keeps the callbacks of earlier modules.
        if isinstance(pl_module, ClassificationTask):
            pl_module.undo()
