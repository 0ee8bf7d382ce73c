"""Optimizers with learning rates by part and depth of the network, and learning rate schedules."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Literal

from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from cxlp.models.network import Network
from cxlp.utils.errors import CxlpError

#: Number of groups into which layer decay divides a backbone, each with its own learning rate.
DEPTHS = 6


@dataclass(frozen=True)
class OptimizerConfig:
    """Options of gradient descent.

    Attributes:
        name: ``sgd`` (momentum 0.9, Nesterov) or ``adamw``.
        backbone_lr: Peak learning rate of the backbone.
        projection_lr: Peak learning rate of the projections: the PCA and a trained guide.
        classifier_lr: Peak learning rate of the classifier. Unused with ``cross_fit``, which does not train the
            classifier.
        weight_decay: Weight decay of parameters with two or more dimensions; biases and BatchNorm have none.
        warmup_epochs: Epochs in which learning rates grow linearly to their peak; may be a fraction.
        hold_epochs: Number of first gradient epochs in which only the classifier is trained. The warm-up of backbone
            and projections begins afterwards.
        layer_decay: Ratio of the learning rate of the backbone's first layers to that of its last layers. Between them
            the learning rate grows geometrically, in six groups of layers. 1: the same rate for all layers.
        reference_batch: Global batch size (images per step, over all ranks and accumulated batches) for which the
            learning rates are given. For another global batch size they are scaled in proportion (``sgd``; Goyal et
            al., 2017) or by the square root (``adamw``). Null: no scaling.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    backbone_lr: float = 1e-3
    projection_lr: float = 1e-3
    classifier_lr: float = 1e-2
    weight_decay: float = 1e-4
    warmup_epochs: float = 1.0
    hold_epochs: float = 0.0
    layer_decay: float = 1.0
    reference_batch: int | None = None

    def __post_init__(self) -> None:
        for name in ("backbone_lr", "projection_lr", "classifier_lr", "weight_decay", "warmup_epochs", "hold_epochs"):
            if not getattr(self, name) >= 0:
                raise CxlpError(f"model.optimizer.{name} is {getattr(self, name)}: it must be 0 or more")
        if not 0 < self.layer_decay <= 1:
            raise CxlpError(f"model.optimizer.layer_decay is {self.layer_decay}: it must lie in (0, 1]")
        if self.reference_batch is not None and self.reference_batch < 1:
            raise CxlpError(
                f"model.optimizer.reference_batch is {self.reference_batch}: it must be 1 or more images, or null"
            )

    def factor(self, batch: int) -> float:
        """Return the factor by which a global batch size scales all learning rates."""
        if self.reference_batch is None:
            return 1.0
        ratio = batch / self.reference_batch
        return ratio if self.name == "sgd" else math.sqrt(ratio)


def build_optimizer(network: Network, config: OptimizerConfig, batch: int = 1, fused: bool = False) -> Optimizer:
    """Build an optimizer with one parameter group, named for the logs, per part, depth and weight decay.

    Args:
        network: A network with its classifier.
        config: Learning rates and weight decay.
        batch: Global batch size: images per step, over all ranks and accumulated batches.
        fused: Whether to use torch's fused implementation, which is ten times faster on a CPU. Lightning does not clip
            gradients with a fused optimizer under mixed precision.
    """
    groups = []
    for name, rate, parameters in _parts(network, config):
        for suffix, decay, is_matrix in (("", config.weight_decay, True), ("/no_decay", 0.0, False)):
            group = {"name": name + suffix, "lr": rate * config.factor(batch), "weight_decay": decay}
            if chosen := [p for p in parameters if _is_matrix(p) == is_matrix]:
                groups.append({**group, "params": chosen})
    if config.name == "adamw":
        return AdamW(groups, fused=fused)
    return SGD(groups, lr=config.backbone_lr, momentum=0.9, nesterov=True, fused=fused)


def _parts(network: Network, config: OptimizerConfig) -> Iterator[tuple[str, float, list[nn.Parameter]]]:
    """Yield the name, the learning rate and the trainable parameters of each part."""
    layers = _layers(network.backbone)
    depths = 1 if config.layer_decay == 1 else min(DEPTHS, len(layers))
    for depth in range(depths):
        start, end = (round(d * len(layers) / depths) for d in (depth, depth + 1))
        height = 1.0 if depths == 1 else depth / (depths - 1)  # 0 for the first group of layers, 1 for the last
        name = "backbone" if depths == 1 else f"backbone/{depth}"
        rate = config.backbone_lr * config.layer_decay ** (1 - height)
        yield name, rate, list(chain.from_iterable(layers[start:end]))
    yield "projection", config.projection_lr, _trainable(network.heads)
    yield "classifier", config.classifier_lr, [] if network.classifier is None else _trainable(network.classifier)


def _layers(backbone: nn.Module) -> list[list[nn.Parameter]]:
    """List the trainable parameters by layer, in the order of registration: each matrix begins a layer."""
    layers: list[list[nn.Parameter]] = [[]]
    for parameter in _trainable(backbone):
        if _is_matrix(parameter) and layers[-1]:
            layers.append([])
        layers[-1].append(parameter)
    return layers


def _is_matrix(parameter: nn.Parameter) -> bool:
    """Return whether a parameter is a matrix or a kernel; ConvNeXt's layer scale, ``(C, 1, 1)``, is neither."""
    return parameter.squeeze().ndim > 1


def _trainable(module: nn.Module) -> list[nn.Parameter]:
    return [p for p in module.parameters() if p.requires_grad]


def warmup_cosine(optimizer: Optimizer, warmup: int, total: int, hold: int = 0) -> LambdaLR:
    """Return a schedule of linear warm-up over ``warmup`` steps and half a cosine to zero at step ``total``.

    Args:
        optimizer: An optimizer of :func:`build_optimizer`.
        warmup: Number of steps of the warm-up.
        total: Number of all steps.
        hold: Number of first steps in which the learning rates of all groups but the classifier's are 0. Their warm-up
            follows, up to the same cosine.
    """

    def factor(step: int, hold: int) -> float:
        growth = 0.0 if step < hold else min(1.0, (step - hold + 1) / (warmup + 1))
        return growth * 0.5 * (1 + math.cos(math.pi * min(1.0, max(0, step - warmup) / max(1, total - warmup))))

    is_classifier = [str(group.get("name", "")).startswith("classifier") for group in optimizer.param_groups]
    return LambdaLR(optimizer, [partial(factor, hold=0 if classifier else hold) for classifier in is_classifier])
