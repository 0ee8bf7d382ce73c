"""The fine-tuning mode: gradients through all of it, from the frozen solution or from scratch."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, StochasticWeightAveraging, Timer
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from cxlp.data.datamodule import run_seed
from cxlp.frozen.fit import FrozenConfig
from cxlp.heads.fisher_vector import Codebook
from cxlp.models.checkpoint import load_network, read_checkpoint
from cxlp.models.network import NetworkConfig
from cxlp.tasks.base import Batch, CrossLayerTask, set_requires_grad
from cxlp.tasks.ema import AverageWeights
from cxlp.tasks.mixing import Mix, Mixing
from cxlp.tasks.optim import OptimizerConfig, build_optimizer, warmup_cosine
from cxlp.utils.errors import CxlpError
from cxlp.utils.labels import classification_loss


class FineTune(CrossLayerTask):
    """End-to-end training.

    From the frozen solution, epoch 0 is the frozen fit: its validation is step 0 of the curves, and
    its checkpoint competes for the best one. ``trainer.max_epochs`` counts it. Gradient epochs follow. A closing fit
    is the last epoch.

    Args:
        network: Backbone and pooling.
        frozen: Options of the frozen fit.
        optimizer: Learning rates and schedule.
        start: ``frozen``; ``projection``: the frozen fit, but its classifier is put back to zero (two-stage recipes);
            ``scratch`` (pretrained backbone, random projection, zero classifier); or the checkpoint of an earlier run
            with the same network and classes.
        closing_fit: After the gradient epochs, fit PCA and SVMs once more to what the backbone gives now (SVMs, after
            Lin et al., ICCV 2015), with the first fit's C and scale of the logits. ``trainer.max_epochs`` counts that
            epoch, too. Of equals on the held-out images, an earlier epoch is the best one still. Such a run neither
            uses nor fills ``frozen.store``.
        cross_fit: Train backbone and projections by the SVMs of the frozen fit's cross-validation, each image by those
            that have not seen it, see :class:`~cxlp.frozen.folds.FoldClassifiers`. They stay as they are, as does the
            classifier, until the closing fit, which this needs. Until then each checkpoint holds them, too:
            ``frozen.folds`` times the size of the classifier.
        label_smoothing: Of the cross-entropy, in [0, 1).
        mix: ``mixup``, ``cutmix`` or ``none``, see :class:`~cxlp.tasks.mixing.Mixing`; one label per image only.
        mix_alpha: Its alpha.
        ema: Decay of a moving average of the weights, which is what is validated, tested and saved; 0: none. See
            :class:`~cxlp.tasks.ema.AverageWeights`.
        freeze_batch_norm: Keep the backbone's BatchNorm statistics as they are: small batches
            estimate them badly, and step 0 would not be the frozen solution.
        recompute: Gradient checkpointing of the backbone: hold few maps and compute the others again in the backward
            pass, for larger batches or images at about a third more time. Changes no value.
        compile: Have ``torch.compile`` make faster code for backbone and pooling, within the first steps (which take
            a minute or more; on the CPU it needs a C++ compiler). Values stay up to rounding.
    """

    def __init__(
        self,
        network: NetworkConfig = NetworkConfig(),
        frozen: FrozenConfig = FrozenConfig(),
        optimizer: OptimizerConfig = OptimizerConfig(),
        start: str = "frozen",
        closing_fit: bool = False,
        cross_fit: bool = False,
        label_smoothing: float = 0.0,
        mix: Mix = "none",
        mix_alpha: float = 0.2,
        ema: float = 0.0,
        freeze_batch_norm: bool = True,
        recompute: bool = False,
        compile: bool = False,
    ) -> None:
        for name, value in (("label_smoothing", label_smoothing), ("ema", ema)):
            if not 0 <= value < 1:
                raise CxlpError(f"model.{name} is {value}: it must lie in [0, 1)")
        if not mix_alpha > 0:
            raise CxlpError(f"model.mix_alpha is {mix_alpha}: it must be greater than 0")
        if recompute and compile:
            raise CxlpError("model.recompute and model.compile exclude each other: choose less memory or more speed")
        if cross_fit and not (closing_fit and start == "frozen" and mix == "none"):
            raise CxlpError(
                "model.cross_fit trains by the frozen fit's cross-validation: it takes start: frozen, closing_fit: "
                "true (else the classifier stays that of the first epoch), mix: none (a mixed image is of two folds)"
            )
        if closing_fit and start not in ("frozen", "projection"):
            raise CxlpError(
                f"model.closing_fit takes C and the scale of the logits from a first fit, but model.start is {start}: "
                "start from frozen or projection"
            )
        super().__init__(network, frozen)
        self.network.backbone.recompute, self.compile_parts = recompute, compile
        self.optimizer_config = optimizer
        self.start, self.closing_fit, self.cross_fit = start, closing_fit, cross_fit
        self.label_smoothing, self.freeze_batch_norm = label_smoothing, freeze_batch_norm
        self.mix, self.mix_alpha, self.ema = mix, mix_alpha, ema
        self.frozen_epochs = frozenset({0} if start in ("frozen", "projection") else ())
        self._mixing: Mixing | None = None
        self._finite = torch.ones((), dtype=torch.bool)

    def setup(self, stage: str) -> None:
        """Take over an earlier run's weights; a resumed run has its own."""
        if stage == "fit" and self.closing_fit:
            self._plan_closing_fit()
        super().setup(stage)
        if self.cross_fit:
            assert self.network.classifier is not None
            set_requires_grad(self.network.classifier, False)  # or DDP would wait for its gradient
        if self.mix != "none":
            if self.network.multi_label:
                raise CxlpError(f"model.mix is {self.mix}, but these images show several classes each: leave it out")
            if self.trainer.datamodule.batch_size < 2:  # type: ignore[attr-defined]
                raise CxlpError(
                    f"model.mix is {self.mix}, but data.batch_size is 1: there is no other image to mix with"
                )
            self._mixing = Mixing(self.mix, self.mix_alpha, len(self.network.classes))
        if self.compile_parts and stage == "fit":
            # In place, so that names in checkpoints stay; each is compiled when it is first called.
            for module in (self.network.backbone, *self.network.parts):
                module.compile()
        if self.start == "scratch" and any(isinstance(p.encoding, Codebook) for p in self.network.each_part()):
            raise CxlpError(
                "model.start is scratch, but a Fisher vector's codebook is fitted, not trained: start from frozen"
            )
        if self.start in ("frozen", "projection", "scratch") or stage != "fit" or self.resuming:
            return
        if not Path(self.start).is_file():
            raise CxlpError(
                f"model.start is {self.start!r}: expected frozen, projection, scratch, or the path of a checkpoint"
            )
        earlier = load_network(self.start)
        if earlier.classes != self.network.classes:
            raise CxlpError(f"{self.start} was fitted to other classes than the data has")
        self._check_overlap()
        try:
            self.network.load_state_dict(earlier.state_dict())
        except RuntimeError as error:
            raise CxlpError(f"{self.start} holds another network than model.network describes: {error}") from error

    def _plan_closing_fit(self) -> None:
        """Make the last epoch a frozen one, and refuse what would end the run before it, or undo it.

        Raises:
            CxlpError: Names what.
        """
        trainer = self.trainer
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            name = type(callback).__name__
            if isinstance(callback, EarlyStopping | Timer):
                raise CxlpError(f"{name} (trainer.max_time?) would end the run before model.closing_fit: leave one out")
            if isinstance(callback, StochasticWeightAveraging):
                raise CxlpError(f"{name} would undo model.closing_fit by an average: take model.ema instead")
        if trainer.max_steps != -1:
            raise CxlpError(
                f"trainer.max_steps is {trainer.max_steps}, but model.closing_fit comes after the last step: give "
                "trainer.max_epochs alone"
            )
        if trainer.max_epochs is not None and trainer.max_epochs > 0:
            self.frozen_epochs = frozenset({0, trainer.max_epochs - 1})

    def recipe(self) -> dict[str, Any]:
        """That of the frozen fit, and of gradient descent."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        chosen = {
            **{f"optimizer.{key}": value for key, value in asdict(self.optimizer_config).items()},
            "start": self.start,
            "closing_fit": self.closing_fit,
            "cross_fit": self.cross_fit,
            "label_smoothing": self.label_smoothing,
            "mix": self.mix,
            "mix_alpha": self.mix_alpha,
            "ema": self.ema,
            "freeze_batch_norm": self.freeze_batch_norm,
        }
        return {
            **super().recipe(),
            **{f"model.{key}": value for key, value in chosen.items()},
            **{f"data.augment.{key}": value for key, value in asdict(data.augment).items()},
            "trainer.max_epochs": self.trainer.max_epochs,
            # of which the schedule has so many
            "the number of images per step (data.batch_size, processes, accumulated batches)": self._images_per_step(),
        }

    def _images_per_step(self) -> int:
        """Of all ranks and accumulated batches together."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        return int(data.batch_size * self.trainer.world_size * self.trainer.accumulate_grad_batches)

    def configure_callbacks(self) -> list[pl.Callback]:
        """Average the weights, if asked to."""
        return [*super().configure_callbacks(), *([AverageWeights(self.ema)] if self.ema else [])]

    def _check_overlap(self) -> None:
        """Refuse to test on what the earlier run was trained on; warn where validation is."""
        self._seen = read_checkpoint(self.start)["cxlp"]["seen"]
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        for split in ("test", "val"):
            seen = int(torch.isin(data.fingerprints(split), self._seen).sum())
            if seen and split == "test":
                raise CxlpError(f"{self.start} was trained on {seen} of these test images: give it the same split")
            if seen:
                rank_zero_warn(
                    f"{self.start} was trained on {seen} of the images that data.validation holds out: they will "
                    "flatter it. Fit it with the same data.validation to choose by them"
                )

    def train(self, mode: bool = True) -> "FineTune":
        """Set training mode; BatchNorm keeps evaluating where it is frozen."""
        super().train(mode)
        if mode and self.freeze_batch_norm:
            for module in self.network.backbone.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def on_train_start(self) -> None:
        """See that a resumed optimizer steps as this run was told to, which may clip gradients or not."""
        super().on_train_start()
        for optimizer in self.trainer.optimizers:
            for group in optimizer.param_groups:
                fused = group["fused"] = optimizer.defaults["fused"]
                for state in (optimizer.state[p] for p in group["params"] if p in optimizer.state):
                    if "step" in state:  # AdamW's count: fused steps want it beside the weights, others on the CPU
                        state["step"] = state["step"].to(self.device if fused else "cpu")

    def on_train_epoch_start(self) -> None:
        """Gradients in all epochs but the frozen ones."""
        super().on_train_epoch_start()
        # Lightning asks at each batch: in manual mode it steps neither optimizer nor schedule.
        self.automatic_optimization = not self.in_frozen_epoch
        if self.in_frozen_epoch and self.current_epoch:
            # Nor does it know of the steps before. A closing fit counts as one more: without any, nothing is saved.
            loop = self.trainer.fit_loop.epoch_loop
            steps = loop.automatic_optimization.optim_progress.optimizer_steps
            loop.manual_optimization.optim_step_progress.total.completed = steps + 1
        self._finite = torch.ones((), dtype=torch.bool, device=self.device)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        """Feed the frozen fit, or return the loss.

        Raises:
            CxlpError: If the loss is not finite on any rank.
        """
        if self.in_frozen_epoch:
            self.observe(batch)
            return None
        images, labels = batch["image"], batch["label"]
        if self._mixing is not None:
            images, labels = self._mixing(images, labels, run_seed(), self.current_epoch, batch_idx, self.global_rank)
        features = self.network.features(images)
        if self.cross_fit:
            assert self.fold_classifiers is not None
            scores = self.fold_classifiers(features, batch["index"])
        else:
            scores = self.network.classify(features)
        loss = classification_loss(scores, labels, self.label_smoothing)
        self._finite &= torch.isfinite(loss.detach())
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and (batch_idx + 1) % every == 0:  # not at each step: asking waits for the GPU
            self._stop_unless(bool(self._finite), "the training loss is not finite")
        # A step's loss is this rank's: the mean of all would be a collective in each step. An epoch's is of all ranks.
        self.log("train/loss_step", loss.detach(), batch_size=len(images), prog_bar=True)
        self.log(
            "train/loss_epoch", loss.detach(), batch_size=len(images), on_step=False, on_epoch=True, sync_dist=True
        )
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ANN401 (Lightning's types)
        """Close the epoch: solve, or time it and look for broken weights before they are saved."""
        if not self.in_frozen_epoch and self.trainer.is_last_batch:
            self._close_phase("fine-tuning")
            self._stop_unless_finite()
        solved = self.in_frozen_epoch and self.trainer.is_last_batch
        super().on_train_batch_end(outputs, batch, batch_idx)
        if solved and self.start == "projection" and self.current_epoch == 0:
            self._forget_classifier()

    def _forget_classifier(self) -> None:
        """Put the classifier back to no opinion at all; the report stays that of the frozen fit."""
        classifier = self.network.classifier
        assert classifier is not None
        with torch.no_grad():
            classifier.weight.zero_()
            assert classifier.bias is not None
            classifier.bias.zero_()

    def on_validation_start(self) -> None:
        """Look for broken weights within an epoch, too: checkpoints follow validation."""
        super().on_validation_start()
        fitting = self.trainer.state.fn == "fit" and not self.trainer.sanity_checking  # the stage is validation's now
        if fitting and not self.in_frozen_epoch:
            self._stop_unless_finite()

    def _stop_unless_finite(self) -> None:
        self._stop_unless(bool(self._finite), "the training loss is not finite")
        finite = all(bool(torch.isfinite(p).all()) for p in self.network.parameters())
        self._stop_unless(finite, "a weight is not finite")

    def configure_optimizers(self) -> Any:  # noqa: ANN401 (Lightning's type is a union of nine)
        """SGD or AdamW by parts, with warm-up and cosine over the gradient epochs."""
        config = self.optimizer_config
        if self.trainer.max_epochs == -1:
            raise CxlpError("trainer.max_epochs is not set: the schedule needs it, also where trainer.max_steps is")
        epochs = self.trainer.max_epochs or 0
        frozen = len(self.frozen_epochs)
        if epochs <= frozen:
            raise CxlpError(
                f"trainer.max_epochs is {epochs}, of which {frozen} fit without gradients: none is left for "
                f"fine-tuning; give {frozen + 1} or more"
            )
        accumulated = self.trainer.accumulate_grad_batches
        optimizer = build_optimizer(
            self.network, config, self._images_per_step(), fused=not self.trainer.gradient_clip_val
        )
        per_epoch = math.ceil(self._batches() / accumulated)
        warmup, hold = (round(per_epoch * part) for part in (config.warmup_epochs, config.hold_epochs))
        total = per_epoch * (epochs - frozen)
        if self.trainer.max_steps > 0:
            total = min(total, self.trainer.max_steps)
        if hold >= total:
            raise CxlpError(
                f"model.optimizer.hold_epochs is {config.hold_epochs}, but there are {total / per_epoch:g} gradient "
                "epochs: the classifier alone would learn. For that, set backbone_lr and projection_lr: 0"
            )
        schedule = warmup_cosine(optimizer, warmup, total, hold)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _batches(self) -> int:
        """How many a gradient epoch has on each rank.

        Not asked of the Trainer, which would make the loaders for that: before a resumed run knows its epoch, and
        workers begin with the first one's images at once.
        """
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        whole = math.ceil(len(data.splits["train"]) / (data.batch_size * self.trainer.world_size))
        limit = self.trainer.limit_train_batches
        return min(whole, limit) if isinstance(limit, int) else int(whole * limit)

    def _stop_unless(self, good: bool, trouble: str) -> None:
        """Stop all ranks together where one is in trouble; what is saved stays the last good state."""
        if not self.trainer.strategy.reduce_boolean_decision(good, all=True):
            raise CxlpError(
                f"{trouble} in epoch {self.current_epoch}, step {self.global_step}: stopped. The last good checkpoint "
                f"is {self._last_checkpoint()}. Try lower learning rates (model.optimizer.*), "
                "trainer.gradient_clip_val: 1, or trainer.precision: bf16-mixed instead of 16-mixed"
            )

    def _last_checkpoint(self) -> str:
        paths = [getattr(callback, "best_model_path", "") for callback in self.trainer.checkpoint_callbacks]
        # The best one first: the last one may have come after a step too far, still finite but lost.
        return next((path for path in paths if path), "none yet")
