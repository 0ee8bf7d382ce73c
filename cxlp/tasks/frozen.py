"""The frozen mode: PCA and SVMs are fitted in one pass over the training images, without gradients."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pytorch_lightning.callbacks import StochasticWeightAveraging, WeightAveraging
from torch import Tensor

from cxlp.frozen.config import FrozenConfig
from cxlp.frozen.fit import FrozenFit
from cxlp.models.network import Network
from cxlp.tasks.base import ClassificationTask
from cxlp.tasks.batch import Batch
from cxlp.tasks.feature_reuse import FeatureReuse
from cxlp.tasks.loaders import count_images, counted_loader
from cxlp.utils.errors import CxlpError


class Frozen(ClassificationTask):
    """Fits a network as in the paper: PCA of local features, pooled vectors, SVMs on a precomputed kernel.

    The fit takes one epoch: each image passes through the backbone once, and the ranks share the images. The network
    holds the solution before validation begins. Nothing is trained by gradient descent.

    Args:
        network: See :class:`~cxlp.tasks.base.ClassificationTask`. The fit changes its heads and classifier.
        config: Options of the fit.
        keep_folds: Whether to keep the classifiers of the cross-validation as :attr:`fold_classifiers`.
        settled: C and the logit scale of an earlier fit. If given, the fit does no cross-validation.
        reuse: Stored features of earlier runs, see :mod:`cxlp.tasks.feature_reuse`; not part of a checkpoint.

    Example:
        ``pl.Trainer(max_epochs=1).fit(Frozen(network), loader)`` with any loader of ``(image, label)`` pairs.
    """

    augment = False
    #: The fit in progress.
    fit_class: ClassVar[type[FrozenFit]] = FrozenFit

    def __init__(
        self,
        network: Network | Mapping[str, Any],
        config: FrozenConfig | Mapping[str, Any] = FrozenConfig(),
        keep_folds: bool = False,
        settled: tuple[float, float] | None = None,
        reuse: FeatureReuse | None = None,
    ) -> None:
        super().__init__(network)
        self.config = config if isinstance(config, FrozenConfig) else FrozenConfig(**config)
        self.keep_folds, self.settled, self.reuse = keep_folds, settled, reuse
        self.automatic_optimization = False  # there is no loss
        self._fit: FrozenFit | None = None
        self._trainable: list[torch.nn.Parameter] = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return an optimizer with learning rate 0: its one step makes the Trainer save a checkpoint."""
        assert self.network.classifier is not None
        return torch.optim.SGD([self.network.classifier.bias], lr=0.0)

    def setup(self, stage: str) -> None:
        """Look for stored features, and freeze the backbone's parameters, so that DDP ignores them."""
        if self.reuse is not None and stage in ("fit", "test"):
            self.reuse.open(self.network, str(self.trainer.precision))
            # Workers may start before any later hook, so the data must know now which images need not be decoded.
            if stage == "fit" and self.reuse.found:
                self.reuse.load_heads()
            self.reuse.use_stored("val" if stage == "fit" else "test")
        if stage == "fit":
            self._trainable = [p for p in self.network.backbone.parameters() if p.requires_grad]
            for parameter in self._trainable:
                parameter.requires_grad_(False)

    def undo(self) -> None:
        """Restore parameters and data, because the network may be trained next, and delete unfinished features."""
        super().undo()
        if self._fit is not None:
            self._fit.close(keep=False)
            self._fit = None
        if self.reuse is not None:
            self.reuse.abort()
            self.reuse.use_images()
        for parameter in self._trainable:
            parameter.requires_grad_(True)
        self._trainable = []

    def train(self, mode: bool = True) -> "Frozen":
        """Set training mode; the network stays in evaluation mode."""
        super().train(mode)
        self.network.eval()
        return self

    # --- the fit ----------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        """Check that no option of the Trainer shortens the epoch or overwrites the solution.

        Raises:
            CxlpError: If one does; the error names the option.
        """
        trainer = self.trainer
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, WeightAveraging | StochasticWeightAveraging):
                raise CxlpError(
                    f"{type(callback).__name__} averages weights of gradient steps, and would replace the solution of "
                    "the frozen fit: remove this callback from the Trainer"
                )
        validated_at = trainer.val_check_batch
        if validated_at is not None and validated_at < trainer.num_training_batches:
            raise CxlpError(
                f"val_check_interval is {trainer.val_check_interval}: the frozen fit has nothing to validate before "
                "the end of its epoch: leave val_check_interval out"
            )
        batches, given = len(counted_loader(trainer.train_dataloader)), trainer.num_training_batches
        if given < batches:
            raise CxlpError(
                f"the frozen fit needs each training image, {batches} batches of them, but the Trainer is limited to "
                f"{given}: leave out limit_train_batches and fast_dev_run"
            )

    def on_train_epoch_start(self) -> None:
        """Begin the fit."""
        super().on_train_epoch_start()
        self.train()  # Lightning does not change the mode of a module
        self._hold_backbone()
        self._phase_start = self.times.now()
        self._seen = 0
        folder = Path(self.trainer.strategy.broadcast(self.trainer.default_root_dir)) / "features"
        found = self.reuse is not None and self.reuse.found
        if self.reuse is not None:
            folder = self.reuse.entry.folder if found else self.reuse.begin()
        self._fit = self.fit_class(
            self.network,
            self.config,
            count_images(counted_loader(self.trainer.train_dataloader)),
            folder,
            self.times,
            progress=self.trainer.progress_bar_callback is not None,
            stored=found,
            keep=self.reuse is not None,
            cross=self.keep_folds,
            settled=self.settled,
        )

    def training_step(self, batch: Any, batch_idx: int) -> None:  # noqa: ANN401 (whatever a loader yields)
        """Pass a batch to the fit."""
        assert self._fit is not None
        read = self._checked(batch, batch_idx, self.image_size)
        positions, new = self._positions(read, self._fit.images)
        self._fit.observe(read.images[new], read.labels[new], positions[new])
        if self.trainer.is_last_batch:
            self.trainer.should_stop = True  # the fit takes one epoch, whatever max_epochs is
            self._count_step()

    def _count_step(self) -> None:
        optimizer: Any = self.optimizers()
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is not None:  # the scaler of float16 only steps after it has scaled, and if there are gradients
            assert self.network.classifier is not None
            scaler.scale(torch.zeros((), device=self.device))
            self.network.classifier.bias.grad = torch.zeros_like(self.network.classifier.bias)
        optimizer.step()
        optimizer.zero_grad()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ANN401 (Lightning's types)
        """Solve after the last batch, so that validation uses the solution."""
        if not self.trainer.is_last_batch or self._fit is None:
            return
        self._close_phase("extraction")
        # Autocast would round the solution.
        with torch.autocast(self.device.type, enabled=False):
            self.report = self._fit.finish()
        self.fold_classifiers = self._fit.fold_classifiers
        self._fit = None
        if self.reuse is not None and not self.reuse.found:
            own = ("Gram matrix", "SVM", "validation")  # each run repeats these, even with stored features
            self.reuse.commit({phase: spent for phase, spent in self.times.items() if phase not in own})
        self.log_dict({f"frozen/{k}": v for k, v in self.report.items() if k != "primal"}, rank_zero_only=True)

    def on_train_epoch_end(self) -> None:
        """Check that the epoch was not stopped before its last batch.

        Raises:
            CxlpError: On every rank, if the epoch was stopped and there is no solution.
        """
        if self._fit is not None:
            raise CxlpError(
                "the frozen fit was stopped before it had seen each training image (max_time, a callback?): nothing "
                "was fitted. Let its one epoch end"
            )

    # --- features for later runs ------------------------------------------------------------------

    def _begin_evaluation(self) -> None:
        super()._begin_evaluation()
        if self.reuse is not None and not self.trainer.sanity_checking and self.trainer.state.fn in ("fit", "test"):
            self.reuse.begin_scored("test" if self.trainer.testing else "val")

    def _close_evaluation(self, name: Literal["validation", "test"]) -> None:
        if self.reuse is not None:
            self.reuse.end_scored()
        super()._close_evaluation(name)

    def _features(self, batch: Batch, count: int) -> Tensor:
        features = super()._features(batch, count)
        if self.reuse is not None and not batch.stored and batch.index is not None:
            self.reuse.write_scored(batch.index[batch.new], features)
        return features

    # --- checkpoints ------------------------------------------------------------------------------

    def arguments(self) -> dict[str, Any]:
        """Return the constructor's arguments, as plain values."""
        settled = None if self.settled is None else list(self.settled)
        config = {**asdict(self.config), "c_candidates": list(self.config.c_candidates)}
        return {**super().arguments(), "config": config, "keep_folds": self.keep_folds, "settled": settled}
