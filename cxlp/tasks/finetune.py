"""The fine-tuning mode: gradient descent on the whole network."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchmetrics import MeanMetric

from cxlp.frozen.folds import FoldClassifiers
from cxlp.models.network import Network
from cxlp.tasks.base import ClassificationTask
from cxlp.tasks.ema import AverageWeights
from cxlp.tasks.mixing import Mix, Mixing
from cxlp.tasks.optim import OptimizerConfig, build_optimizer, warmup_cosine
from cxlp.utils.errors import CxlpError
from cxlp.utils.labels import classification_loss
from cxlp.utils.seeding import run_seed

#: Warning if gradient descent begins with a classifier of zeros.
UNFITTED = (
    "the network was not fitted before: its classifier is zero, its projection random. To start from the frozen "
    "solution, which saves most of the epochs, run the frozen fit first"
)


def check_options(label_smoothing: float, mix_alpha: float, ema: float, recompute: bool, compile: bool) -> None:
    """Check the ranges of the options of :class:`FineTune` before anything is fitted.

    Raises:
        CxlpError: If an option is out of its range; the error names the first one.
    """
    for name, value in (("label_smoothing", label_smoothing), ("ema", ema)):
        if not 0 <= value < 1:
            raise CxlpError(f"model.{name} is {value}: it must lie in [0, 1)")
    if not 0 < mix_alpha < math.inf:
        raise CxlpError(f"model.mix_alpha is {mix_alpha}: it must be greater than 0")
    if recompute and compile:
        raise CxlpError("model.recompute and model.compile are both true, but exclude each other: choose one")


class FineTune(ClassificationTask):
    """Trains a network end to end, usually from the solution of a frozen fit.

    Args:
        network: See :class:`~cxlp.tasks.base.ClassificationTask`.
        optimizer: Learning rates and schedule.
        folds: Classifiers of a frozen fit's cross-validation (:class:`~cxlp.frozen.folds.FoldClassifiers`, from
            ``Frozen(..., keep_folds=True)``). If given, the loss of each image is computed with the classifier that was
            not fitted to it. These classifiers are not trained, nor is the network's own classifier: fit it anew by a
            second frozen fit. The batches must contain each image's ``index``, as those of :mod:`cxlp.data` do.
        label_smoothing: Label smoothing factor of the cross-entropy, in [0, 1).
        mix: ``mixup``, ``cutmix`` or ``none``, see :class:`~cxlp.tasks.mixing.Mixing`; only for one label per image.
        mix_alpha: Parameter of the beta distribution from which the mixing proportions are drawn.
        ema: Decay of an exponential moving average of the weights (:class:`~cxlp.tasks.ema.AverageWeights`), which is
            then validated, tested and saved in place of the weights; 0: no average.
        freeze_batch_norm: Freeze the running statistics of the backbone's BatchNorm layers: small batches estimate
            them badly, and the network at step 0 would differ from the frozen solution.
        recompute: Gradient checkpointing of the backbone: store few maps and recompute the others in the backward pass.
            This allows larger batches or images at about a third more time, and does not change the results.
        compile: Compile backbone and heads by ``torch.compile`` in the first steps, which then take a minute or more.
            On the CPU this needs a C++ compiler. Results stay the same up to rounding.

    Raises:
        CxlpError: If an option is out of its range or contradicts another; the error names the option.
    """

    def __init__(
        self,
        network: Network | Mapping[str, Any],
        optimizer: OptimizerConfig | Mapping[str, Any] = OptimizerConfig(),
        folds: FoldClassifiers | None = None,
        label_smoothing: float = 0.0,
        mix: Mix = "none",
        mix_alpha: float = 0.2,
        ema: float = 0.0,
        freeze_batch_norm: bool = True,
        recompute: bool = False,
        compile: bool = False,
    ) -> None:
        check_options(label_smoothing, mix_alpha, ema, recompute, compile)
        super().__init__(network)
        if mix != "none" and self.network.multi_label:
            raise CxlpError(f"model.mix is {mix}, but an image may have several labels here: leave model.mix out")
        if mix != "none" and folds is not None:
            raise CxlpError(f"model.mix is {mix}, but a mixed image belongs to two folds: leave model.cross_fit out")
        self.optimizer_config = optimizer if isinstance(optimizer, OptimizerConfig) else OptimizerConfig(**optimizer)
        self.fold_classifiers = folds
        self.label_smoothing, self.ema, self.freeze_batch_norm = label_smoothing, ema, freeze_batch_norm
        self.mix, self.mix_alpha = mix, mix_alpha
        self.recompute, self.compile_parts = recompute, compile
        self._mixing = None if mix == "none" else Mixing(mix, mix_alpha, len(self.network.classes))
        self.train_loss = MeanMetric(nan_strategy="disable")  # a check for NaN would synchronise with the GPU
        self._finite = torch.ones((), dtype=torch.bool)
        self._compiled: list[nn.Module] = []
        self._held: list[nn.Parameter] = []  # the classifier's parameters, with cross-fitting

    def configure_callbacks(self) -> list[pl.Callback]:
        """Add the moving average of the weights, if there is one."""
        average = [AverageWeights(self.ema, self.trainer.strategy.root_device)] if self.ema else []
        return [*super().configure_callbacks(), *average]

    def setup(self, stage: str) -> None:
        """Prepare the network for training."""
        if stage != "fit":
            return
        self.network.backbone.recompute = self.recompute
        if self.fold_classifiers is not None:
            assert self.network.classifier is not None
            self._held = [p for p in self.network.classifier.parameters() if p.requires_grad]
            for parameter in self._held:  # already in setup, because DDP would wait for their gradients
                parameter.requires_grad_(False)
        if self.compile_parts:
            # In place, which keeps the names in checkpoints. Each module is compiled at its first call.
            self._compiled = [self.network.backbone, *self.network.heads]
            for module in self._compiled:
                module.compile()

    def undo(self) -> None:
        """Undo the changes of :meth:`setup`."""
        super().undo()
        self.network.backbone.recompute = False
        for parameter in self._held:
            parameter.requires_grad_(True)
        for module in self._compiled:
            vars(module).pop("_compiled_call_impl", None)  # set by Module.compile, which torch cannot undo
        self._held, self._compiled = [], []

    def train(self, mode: bool = True) -> "FineTune":
        """Set training mode; frozen BatchNorm layers stay in evaluation mode."""
        super().train(mode)
        if mode and self.freeze_batch_norm:
            for module in self.network.backbone.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    # --- gradient epochs --------------------------------------------------------------------------

    def on_train_start(self) -> None:
        """Check that training can begin, and move the classifiers of the folds to the device.

        Raises:
            CxlpError: If a head that gradients cannot fit has not been fitted; if the checkpoint was saved within an
                epoch, because it does not record which images of that epoch were already used; if the batch size is 1
                with mixing.
        """
        assert self.network.classifier is not None
        if self.current_epoch == 0 and self.fold_classifiers is None and not self.network.classifier.weight.any():
            rank_zero_warn(f"{UNFITTED}: pl.Trainer(max_epochs=1).fit(cxlp.Frozen(network), loader)")
        for head in self.network.each_head():  # not in setup, because a checkpoint is loaded after it
            if not head.is_fitted:
                raise CxlpError(
                    f"{head.name} is not fitted: fit Frozen(network) first, or load the checkpoint of a fitted network"
                )
        if self.trainer.fit_loop.restarted_mid_epoch:
            raise CxlpError(
                "this checkpoint was written within an epoch (val_check_interval?), and a run cannot resume there: "
                "resume from last.ckpt, which is written at the end of an epoch"
            )
        loader: Any = self.trainer.train_dataloader
        if self._mixing is not None and getattr(loader, "batch_size", None) == 1:
            raise CxlpError(f"model.mix is {self.mix}, but the batch size is 1: there is no other image to mix with")
        if self.fold_classifiers is not None:
            self.fold_classifiers = self.fold_classifiers.to(self.device)

    def on_train_epoch_start(self) -> None:
        """Start the timer of the epoch."""
        super().on_train_epoch_start()
        self.train()
        self._phase_start = self.times.now()
        self._finite = torch.ones((), dtype=torch.bool, device=self.device)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:  # noqa: ANN401 (whatever a loader yields)
        """Return the loss of a batch.

        Raises:
            CxlpError: If the loss is not finite on some rank, or if cross-fitting is on and batches have no ``index``.
        """
        read = self._checked(batch, batch_idx, self.image_size)
        images, labels = read.images, read.labels
        if self._mixing is not None:
            images, labels = self._mixing(images, labels, run_seed(), self.current_epoch, batch_idx, self.global_rank)
        features = self.network.features(images)
        if self.fold_classifiers is None:
            scores = self.network.classify(features)
        elif read.index is None:
            raise CxlpError("cross-fitting needs each image's position: pass a loader whose batches have 'index'")
        else:
            scores = self.fold_classifiers(features, read.index)
        loss = classification_loss(scores, labels, self.label_smoothing)
        self._finite &= torch.isfinite(loss.detach())
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and (batch_idx + 1) % every == 0:  # not at each step, because the check synchronises with the GPU
            self._stop_unless(bool(self._finite), "the training loss is not finite")
        # The loss of a step is that of rank 0; only the mean of the epoch is synchronised between the ranks.
        self.log("train/loss_step", loss.detach(), prog_bar=True, rank_zero_only=True)
        self.train_loss.update(loss.detach())
        self.log("train/loss_epoch", self.train_loss, on_step=False, on_epoch=True)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ANN401 (Lightning's types)
        """After the last batch, stop the timer and check that loss and weights are finite, before a checkpoint."""
        if self.trainer.is_last_batch:
            self._close_phase("fine-tuning")
            self._stop_unless_finite()

    def on_validation_start(self) -> None:
        """Check that loss and weights are finite: a checkpoint may follow a validation within an epoch."""
        super().on_validation_start()
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            self._stop_unless_finite()

    def _stop_unless_finite(self) -> None:
        self._stop_unless(bool(self._finite), "the training loss is not finite")
        finite = all(bool(torch.isfinite(p).all()) for p in self.network.parameters())
        self._stop_unless(finite, "a weight is not finite")

    def _stop_unless(self, good: bool, trouble: str) -> None:
        """Stop all ranks if ``good`` is false on one of them, so that the last checkpoint stays finite."""
        if not self.trainer.strategy.reduce_boolean_decision(good, all=True):
            raise CxlpError(
                f"{trouble} in gradient epoch {self.current_epoch + 1}, step {self.global_step}: stopped. The last "
                f"good checkpoint is {self._last_checkpoint()}. Try lower learning rates (model.optimizer.*), "
                "trainer.gradient_clip_val: 1, or trainer.precision: bf16-mixed instead of 16-mixed"
            )

    def _last_checkpoint(self) -> str:
        paths = [getattr(callback, "best_model_path", "") for callback in self.trainer.checkpoint_callbacks]
        # Prefer the best checkpoint: the last one may be finite, but saved when training had already diverged.
        return next((path for path in paths if path), "none yet")

    # --- optimizer --------------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:  # noqa: ANN401 (Lightning's type is a union of nine)
        """Build the optimizer, and a schedule of linear warm-up and cosine decay over all epochs."""
        config, trainer = self.optimizer_config, self.trainer
        if trainer.max_epochs in (None, -1):
            raise CxlpError("max_epochs is not set: the schedule needs it, even if max_steps is set")
        total = trainer.estimated_stepping_batches
        self._check_batches()
        if not math.isfinite(trainer.num_training_batches):
            raise CxlpError(
                "the training loader has no length, but the schedule needs one: pass a DataLoader of a data set with a "
                "length"
            )
        per_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        warmup, hold = (round(per_epoch * part) for part in (config.warmup_epochs, config.hold_epochs))
        if hold >= total:
            raise CxlpError(
                f"model.optimizer.hold_epochs is {config.hold_epochs}, but there are {total / per_epoch:g} gradient "
                "epochs: lower it. To train the classifier alone, set backbone_lr: 0 and projection_lr: 0"
            )
        weights = list(self.network.backbone.parameters())
        if config.backbone_lr and weights and not any(p.requires_grad for p in weights):
            rank_zero_warn(
                f"model.optimizer.backbone_lr is {config.backbone_lr}, but no parameter of the backbone requires "
                "gradients: it will not be trained. If this is intended, set backbone_lr: 0"
            )
        fused = not trainer.gradient_clip_val
        optimizer = build_optimizer(self.network, config, self._images_per_step(), fused=fused)
        schedule = warmup_cosine(optimizer, warmup, int(total), hold)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _images_per_step(self) -> int:
        """Return the global batch size: images per step, over all ranks and accumulated batches.

        Raises:
            CxlpError: If learning rates depend on it (``reference_batch``) and the loader has no ``batch_size``.
        """
        loader: Any = self.trainer.train_dataloader
        size = getattr(loader, "batch_size", None) or getattr(
            getattr(loader, "batch_sampler", None), "batch_size", None
        )
        if size is None and self.optimizer_config.reference_batch is not None:
            raise CxlpError(
                f"model.optimizer.reference_batch is {self.optimizer_config.reference_batch}, but the training loader "
                "has no batch_size: pass one DataLoader with batch_size, or leave reference_batch out and set the "
                "learning rates for your batch size"
            )
        return int((size or 1) * self.trainer.world_size * self.trainer.accumulate_grad_batches)

    # --- checkpoints ------------------------------------------------------------------------------

    def arguments(self) -> dict[str, Any]:
        """Return the constructor's arguments as plain values, except for the classifiers of the folds."""
        names = ("label_smoothing", "mix", "mix_alpha", "ema", "freeze_batch_norm", "recompute")
        options = {name: getattr(self, name) for name in names}
        return {
            **super().arguments(),
            **options,
            "compile": self.compile_parts,
            "optimizer": asdict(self.optimizer_config),
        }
