"""The fine-tuning mode: gradients through all of the network."""

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

#: What is said where gradient descent begins with a classifier of zeros.
UNFITTED = (
    "the network was not fitted before: its classifier is zero, its projection random. To begin at the frozen "
    "solution, which saves most of the epochs, fit that first"
)


def check_options(label_smoothing: float, mix_alpha: float, ema: float, recompute: bool, compile: bool) -> None:
    """Refuse options of :class:`FineTune` that are out of their range, before anything is fitted.

    Raises:
        CxlpError: Names the first one.
    """
    for name, value in (("label_smoothing", label_smoothing), ("ema", ema)):
        if not 0 <= value < 1:
            raise CxlpError(f"model.{name} is {value}: it must lie in [0, 1)")
    if not 0 < mix_alpha < math.inf:
        raise CxlpError(f"model.mix_alpha is {mix_alpha}: it must be greater than 0")
    if recompute and compile:
        raise CxlpError("model.recompute and model.compile exclude each other: choose less memory or more speed")


class FineTune(ClassificationTask):
    """Trains a network end to end, usually from the solution of a frozen fit.

    Args:
        network: See :class:`~cxlp.tasks.base.ClassificationTask`.
        optimizer: Learning rates and schedule.
        folds: Train backbone and heads by the classifiers of a frozen fit's cross-validation, each image by those that
            have not seen it (:class:`~cxlp.frozen.folds.FoldClassifiers`, from ``Frozen(..., keep_folds=True)``). They
            stay as they are, as does the network's own classifier, which a second frozen fit is to replace. The
            loader must tell each image's ``index``, as those of :mod:`cxlp.data` do.
        label_smoothing: Label smoothing factor of the cross-entropy, in [0, 1).
        mix: ``mixup``, ``cutmix`` or ``none``, see :class:`~cxlp.tasks.mixing.Mixing`; one label per image only.
        mix_alpha: Parameter of the distribution of mixing proportions.
        ema: Decay of a moving average of the weights, which is what is validated, tested and saved; 0: none. See
            :class:`~cxlp.tasks.ema.AverageWeights`.
        freeze_batch_norm: Keep the backbone's BatchNorm statistics as they are: small batches
            estimate them badly, and step 0 would not be the frozen solution.
        recompute: Gradient checkpointing of the backbone: store few maps and compute the others again in the backward
            pass, for larger batches or images at about a third more time. Changes no value.
        compile: Compile backbone and heads by ``torch.compile`` within the first steps (which then take a minute or
            more; on the CPU it needs a C++ compiler). Values stay the same up to rounding.

    Raises:
        CxlpError: If an option is out of its range or contradicts another; it is named.
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
            raise CxlpError(f"model.mix is {mix}, but these images show several classes each: leave it out")
        if mix != "none" and folds is not None:
            raise CxlpError(f"model.mix is {mix}, but a mixed image belongs to two folds: leave model.cross_fit out")
        self.optimizer_config = optimizer if isinstance(optimizer, OptimizerConfig) else OptimizerConfig(**optimizer)
        self.fold_classifiers = folds
        self.label_smoothing, self.ema, self.freeze_batch_norm = label_smoothing, ema, freeze_batch_norm
        self.mix, self.mix_alpha = mix, mix_alpha
        self.recompute, self.compile_parts = recompute, compile
        self._mixing = None if mix == "none" else Mixing(mix, mix_alpha, len(self.network.classes))
        self.train_loss = MeanMetric(nan_strategy="disable")  # what looks for NaN waits for the GPU
        self._finite = torch.ones((), dtype=torch.bool)
        self._compiled: list[nn.Module] = []
        self._held: list[nn.Parameter] = []  # of the classifier, under cross-fitting

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
            for parameter in self._held:  # before the fit: DDP would wait for their gradients
                parameter.requires_grad_(False)
        if self.compile_parts:
            # In place, so that names in checkpoints stay; each is compiled when it is first called.
            self._compiled = [self.network.backbone, *self.network.heads]
            for module in self._compiled:
                module.compile()

    def undo(self) -> None:
        """Undo what :meth:`setup` has changed."""
        super().undo()
        self.network.backbone.recompute = False
        for parameter in self._held:
            parameter.requires_grad_(True)
        for module in self._compiled:
            vars(module).pop("_compiled_call_impl", None)  # set by Module.compile, which torch cannot undo
        self._held, self._compiled = [], []

    def train(self, mode: bool = True) -> "FineTune":
        """Set training mode; BatchNorm keeps evaluating where it is frozen."""
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
                epoch, so that the images drawn before are not known any more; if batches are too small to mix.
        """
        assert self.network.classifier is not None
        if self.current_epoch == 0 and self.fold_classifiers is None and not self.network.classifier.weight.any():
            rank_zero_warn(f"{UNFITTED}: pl.Trainer(max_epochs=1).fit(cxlp.Frozen(network), loader)")
        for head in self.network.each_head():  # here, not in setup: a checkpoint may have brought it
            if not head.is_fitted:
                raise CxlpError(f"{head.name} is not fitted: fit Frozen(network) first, or load a fitted checkpoint")
        if self.trainer.fit_loop.restarted_mid_epoch:
            raise CxlpError(
                "this checkpoint was written within an epoch (val_check_interval?), where no run can go on: resume "
                "from last.ckpt, which is written at the end of an epoch"
            )
        loader: Any = self.trainer.train_dataloader
        if self._mixing is not None and getattr(loader, "batch_size", None) == 1:
            raise CxlpError(f"model.mix is {self.mix}, but the batch size is 1: there is no other image to mix with")
        if self.fold_classifiers is not None:
            self.fold_classifiers = self.fold_classifiers.to(self.device)

    def on_train_epoch_start(self) -> None:
        """Time the epoch."""
        super().on_train_epoch_start()
        self.train()
        self._phase_start = self.times.now()
        self._finite = torch.ones((), dtype=torch.bool, device=self.device)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:  # noqa: ANN401 (whatever a loader yields)
        """Return the loss.

        Raises:
            CxlpError: If it is not finite on a rank, or if cross-fitting is asked for and batches have no ``index``.
        """
        read = self._checked(batch, batch_idx, self.image_size)
        images, labels = read.images, read.labels
        if self._mixing is not None:
            images, labels = self._mixing(images, labels, run_seed(), self.current_epoch, batch_idx, self.global_rank)
        features = self.network.features(images)
        if self.fold_classifiers is None:
            scores = self.network.classify(features)
        elif read.index is None:
            raise CxlpError("cross-fitting needs to know each image's place: give a loader whose batches have 'index'")
        else:
            scores = self.fold_classifiers(features, read.index)
        loss = classification_loss(scores, labels, self.label_smoothing)
        self._finite &= torch.isfinite(loss.detach())
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and (batch_idx + 1) % every == 0:  # not at each step: asking waits for the GPU
            self._stop_unless(bool(self._finite), "the training loss is not finite")
        # At each step that of this rank; at the end of the epoch the mean over all ranks, which have to wait for it.
        self.log("train/loss_step", loss.detach(), prog_bar=True, rank_zero_only=True)
        self.train_loss.update(loss.detach())
        self.log("train/loss_epoch", self.train_loss, on_step=False, on_epoch=True)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ANN401 (Lightning's types)
        """Time the epoch, and look for values that are not finite before a checkpoint is saved."""
        if self.trainer.is_last_batch:
            self._close_phase("fine-tuning")
            self._stop_unless_finite()

    def on_validation_start(self) -> None:
        """Look for values that are not finite within an epoch, too: checkpoints follow validation."""
        super().on_validation_start()
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            self._stop_unless_finite()

    def _stop_unless_finite(self) -> None:
        self._stop_unless(bool(self._finite), "the training loss is not finite")
        finite = all(bool(torch.isfinite(p).all()) for p in self.network.parameters())
        self._stop_unless(finite, "a weight is not finite")

    def _stop_unless(self, good: bool, trouble: str) -> None:
        """Stop all ranks together where one is in trouble, so that the last checkpoint stays a good one."""
        if not self.trainer.strategy.reduce_boolean_decision(good, all=True):
            raise CxlpError(
                f"{trouble} in gradient epoch {self.current_epoch + 1}, step {self.global_step}: stopped. The last "
                f"good checkpoint is {self._last_checkpoint()}. Try lower learning rates (model.optimizer.*), "
                "trainer.gradient_clip_val: 1, or trainer.precision: bf16-mixed instead of 16-mixed"
            )

    def _last_checkpoint(self) -> str:
        paths = [getattr(callback, "best_model_path", "") for callback in self.trainer.checkpoint_callbacks]
        # The best one first: the last one may have been saved when training had diverged already, still finite.
        return next((path for path in paths if path), "none yet")

    # --- optimizer --------------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:  # noqa: ANN401 (Lightning's type is a union of nine)
        """Build the optimizer, and a schedule of warm-up and cosine over all epochs."""
        config, trainer = self.optimizer_config, self.trainer
        if trainer.max_epochs in (None, -1):
            raise CxlpError("max_epochs is not set: the schedule needs it, also where max_steps is")
        total = trainer.estimated_stepping_batches
        self._check_batches()
        if not math.isfinite(trainer.num_training_batches):
            raise CxlpError("the length of the loader is not known, but the schedule needs it")
        per_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        warmup, hold = (round(per_epoch * part) for part in (config.warmup_epochs, config.hold_epochs))
        if hold >= total:
            raise CxlpError(
                f"model.optimizer.hold_epochs is {config.hold_epochs}, but there are {total / per_epoch:g} gradient "
                "epochs: the classifier alone would learn. For that, set backbone_lr and projection_lr: 0"
            )
        weights = list(self.network.backbone.parameters())
        if config.backbone_lr and weights and not any(p.requires_grad for p in weights):
            rank_zero_warn(
                f"model.optimizer.backbone_lr is {config.backbone_lr}, but no parameter of the backbone requires "
                "gradients: it will stay as it is. If that is meant, set backbone_lr: 0"
            )
        fused = not trainer.gradient_clip_val
        optimizer = build_optimizer(self.network, config, self._images_per_step(), fused=fused)
        schedule = warmup_cosine(optimizer, warmup, int(total), hold)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _images_per_step(self) -> int:
        """Count the images of one step, over all ranks and accumulated batches.

        Raises:
            CxlpError: If learning rates depend on the number, and the loader does not tell its batch size.
        """
        loader: Any = self.trainer.train_dataloader
        size = getattr(loader, "batch_size", None) or getattr(
            getattr(loader, "batch_sampler", None), "batch_size", None
        )
        if size is None and self.optimizer_config.reference_batch is not None:
            raise CxlpError(
                f"model.optimizer.reference_batch is {self.optimizer_config.reference_batch}, but the training loader "
                "does not tell its batch size: give one DataLoader with batch_size, or leave reference_batch out and "
                "set the learning rates for your batch"
            )
        return int((size or 1) * self.trainer.world_size * self.trainer.accumulate_grad_batches)

    # --- checkpoints ------------------------------------------------------------------------------

    def arguments(self) -> dict[str, Any]:
        """Return the constructor's arguments as plain values, but for the classifiers of the folds."""
        names = ("label_smoothing", "mix", "mix_alpha", "ema", "freeze_batch_norm", "recompute")
        options = {name: getattr(self, name) for name in names}
        return {
            **super().arguments(),
            **options,
            "compile": self.compile_parts,
            "optimizer": asdict(self.optimizer_config),
        }
