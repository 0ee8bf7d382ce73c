"""A fit that takes a second: twelve pictures of three kinds, a network made for tests, one process on the CPU."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning import seed_everything

from cxlp.backbones.backbone import Backbone, BackboneConfig
from cxlp.data.folder import Folder
from cxlp.data.transforms import AugmentConfig
from cxlp.heads import CrossLayerPooling, Head
from cxlp.heads.views import Views
from cxlp.models.network import Network

#: Both maps are 2 x 2; the backbone has BatchNorm.
BACKBONE = BackboneConfig("timm/test_resnet", ("layer3.0.conv2", "layer3"), weights=None, image_size=32)
#: What :func:`tests.generate.write_folder` writes.
CLASSES = ("kind0", "kind1", "kind2")
#: Every picture as it is.
PLAIN = AugmentConfig(crop_scale=1.0, flip=0.0, colour=0.0)


def network(
    head: Head | None = None,
    backbone: BackboneConfig = BACKBONE,
    classes: Sequence[str] = CLASSES,
    test_views: Views = Views(),
) -> Network:
    """Build a network, with the same random weights at each call; cross-layer pooling with a PCA to 4 if not told."""
    seed_everything(0, verbose=False)
    return Network(Backbone.from_config(backbone), head or CrossLayerPooling(pca_dim=4), classes, test_views=test_views)


def pictures(root: Path, **options: Any) -> Folder:
    """Load what :func:`tests.generate.write_folder` wrote."""
    return Folder(root, **{"num_workers": 0, "batch_size": 4, "augment": PLAIN, **options})


def trainer(folder: Path, **options: Any) -> pl.Trainer:
    """Make a Trainer that writes below ``folder`` and says nothing."""
    quiet = ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing")
    defaults: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "num_sanity_val_steps": 0}
    return pl.Trainer(default_root_dir=folder, **{**defaults, **dict.fromkeys(quiet, False), **options})
