"""A fit that takes one second: twelve pictures of three kinds, a small network, one process on the CPU."""

import copy
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning import seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from cxlp.backbones.backbone import Backbone, BackboneConfig
from cxlp.data.folder import Folder
from cxlp.data.transforms import AugmentConfig
from cxlp.frozen.config import FrozenConfig
from cxlp.heads import CrossLayerPooling, Head
from cxlp.heads.views import Views
from cxlp.models.network import Network
from cxlp.tasks.feature_reuse import FeatureReuse
from cxlp.tasks.optim import OptimizerConfig

#: Both maps are 2 x 2; the backbone has BatchNorm.
BACKBONE = BackboneConfig("timm/test_resnet", ("layer3.0.conv2", "layer3"), weights=None, image_size=32)
#: The classes of :func:`tests.generate.write_folder`.
CLASSES = ("kind0", "kind1", "kind2")
#: Learning rates at which each part of the network changes from the first step on.
RATES = OptimizerConfig(backbone_lr=0.01, projection_lr=0.01, classifier_lr=0.1, warmup_epochs=0)
#: Images without files, and their labels.
IMAGES = torch.rand(18, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(18) % 3
#: No augmentation.
PLAIN = AugmentConfig(crop_scale=1.0, flip=0.0, colour=0.0)


def network(
    head: Head | None = None,
    backbone: BackboneConfig = BACKBONE,
    classes: Sequence[str] = CLASSES,
    test_views: Views = Views(),
    multi_label: bool = False,
) -> Network:
    """Build a network with the same random weights at each call; the default head is cross-layer pooling with a PCA."""
    trunk = copy.deepcopy(_backbone(backbone))
    seed_everything(0, verbose=False)
    return Network(trunk, head or CrossLayerPooling(pca_dim=4), classes, multi_label, test_views)


@cache
def _backbone(config: BackboneConfig) -> Backbone:
    seed_everything(0, verbose=False)
    return Backbone.from_config(config)


def pictures(root: Path, **options: Any) -> Folder:
    """Return the data set of :func:`tests.generate.write_folder`."""
    return Folder(root, **{"num_workers": 0, "batch_size": 4, "augment": PLAIN, **options})


def trainer(folder: Path, **options: Any) -> pl.Trainer:
    """Create a Trainer that writes below ``folder`` and prints nothing."""
    quiet = ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing")
    defaults: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "num_sanity_val_steps": 0}
    return pl.Trainer(default_root_dir=folder, **{**defaults, **dict.fromkeys(quiet, False), **options})


def loader(images: Tensor = IMAGES, **options: Any) -> DataLoader[Any]:
    """Return a loader of pairs of images and labels."""
    return DataLoader(TensorDataset(images, LABELS[: len(images)]), **{"batch_size": 4, **options})


def state(module: nn.Module) -> dict[str, Tensor]:
    """Copy a module's state."""
    return {k: v.detach().clone() for k, v in module.state_dict().items()}


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Compare two states bitwise."""
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert torch.equal(other[key], value), key


def reuse(config: FrozenConfig, data: Folder, size: int = 32, test_size: int | None = None) -> FeatureReuse:
    """Return the features of a data set, resized to the network's size."""
    data.setup()
    data.resize(size, test_size)
    return FeatureReuse(config, data)


def pairs(data: Folder, split: Any = "train") -> TensorDataset:
    """Return a split's images and labels as tensors."""
    items = [data.splits[split][i] for i in range(len(data.splits[split]))]
    return TensorDataset(torch.stack([i["image"] for i in items]), torch.stack([i["label"] for i in items]))


def scores(task: pl.LightningModule, images: Tensor) -> Tensor:
    """Compute scores in evaluation mode."""
    with torch.no_grad():
        found: Tensor = task.eval()(images)
    return found
