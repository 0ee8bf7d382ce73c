"""Learning rates by part of the network, warm-up and cosine decay."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from cxlp.errors import CxlpError
from cxlp.network import Network


@dataclass(frozen=True)
class OptimizerConfig:
    """Gradient descent.

    Attributes:
        name: ``sgd`` (momentum 0.9, Nesterov) or ``adamw``.
        backbone_lr: Peak learning rate of the backbone.
        projection_lr: Peak learning rate of the projections (the PCA, and of a trained guide).
        classifier_lr: Peak learning rate of the classifier.
        weight_decay: On weights of two dimensions and more (not on biases and BatchNorm).
        warmup_epochs: Epochs of linear growth to the peak; fractions are fine.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    backbone_lr: float = 1e-3
    projection_lr: float = 1e-3
    classifier_lr: float = 1e-2
    weight_decay: float = 1e-4
    warmup_epochs: float = 1.0

    def __post_init__(self) -> None:
        for name in ("backbone_lr", "projection_lr", "classifier_lr", "weight_decay", "warmup_epochs"):
            if not getattr(self, name) >= 0:
                raise CxlpError(f"model.optimizer.{name} is {getattr(self, name)}: it must be 0 or more")


def build_optimizer(network: Network, config: OptimizerConfig) -> Optimizer:
    """One parameter group per part and decay; a group's name is the key of its learning rate in the logs."""
    rates: dict[str, tuple[nn.Module | None, float]] = {
        "backbone": (network.backbone, config.backbone_lr),
        "projection": (network.parts, config.projection_lr),
        "classifier": (network.classifier, config.classifier_lr),
    }
    groups = []
    for name, (part, rate) in rates.items():
        parameters = [] if part is None else [p for p in part.parameters() if p.requires_grad]
        for suffix, decay, chosen in (
            ("", config.weight_decay, [p for p in parameters if p.ndim > 1]),
            ("/no_decay", 0.0, [p for p in parameters if p.ndim <= 1]),
        ):
            if chosen:
                groups.append({"name": name + suffix, "params": chosen, "lr": rate, "weight_decay": decay})
    if config.name == "adamw":
        return torch.optim.AdamW(groups)
    return torch.optim.SGD(groups, lr=config.backbone_lr, momentum=0.9, nesterov=True)


def warmup_cosine(optimizer: Optimizer, warmup: int, total: int) -> LambdaLR:
    """Grow linearly to the peak over ``warmup`` steps, then follow half a cosine to zero at ``total``."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))

    return LambdaLR(optimizer, factor)
