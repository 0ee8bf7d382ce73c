"""cxlp: cross-convolutional-layer pooling for PyTorch Lightning."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cxlp.backbones.backbone import Backbone
    from cxlp.deploy.image_paths import list_images
    from cxlp.deploy.loading import load
    from cxlp.deploy.prediction import Prediction
    from cxlp.deploy.predictor import Predictor
    from cxlp.heads import (
        AveragePooling,
        BilinearPooling,
        CovariancePooling,
        CrossLayerPooling,
        FisherVector,
        Head,
        SparseFisherVector,
        TrainedGuidePooling,
    )
    from cxlp.heads.operator import cross_layer_pooling
    from cxlp.heads.views import Views
    from cxlp.models.checkpoint import load_network
    from cxlp.models.network import Network
    from cxlp.runs.run_result import RunResult
    from cxlp.runs.training import train
    from cxlp.tasks import FineTune, Frozen
    from cxlp.utils.errors import CxlpError
    from cxlp.utils.precision import fastest_precision
    from cxlp.version import __version__

__all__ = [
    "AveragePooling",
    "Backbone",
    "BilinearPooling",
    "CovariancePooling",
    "CrossLayerPooling",
    "CxlpError",
    "FineTune",
    "FisherVector",
    "Frozen",
    "Head",
    "Network",
    "Prediction",
    "Predictor",
    "RunResult",
    "SparseFisherVector",
    "TrainedGuidePooling",
    "Views",
    "__version__",
    "cross_layer_pooling",
    "fastest_precision",
    "list_images",
    "load",
    "load_network",
    "train",
]

#: Modules of the public names, except heads, which are in cxlp.heads.
_HOMES = {
    "Backbone": "cxlp.backbones.backbone",
    "CxlpError": "cxlp.utils.errors",
    "FineTune": "cxlp.tasks",
    "Frozen": "cxlp.tasks",
    "Network": "cxlp.models.network",
    "Prediction": "cxlp.deploy.prediction",
    "Predictor": "cxlp.deploy.predictor",
    "RunResult": "cxlp.runs.run_result",
    "Views": "cxlp.heads.views",
    "__version__": "cxlp.version",
    "cross_layer_pooling": "cxlp.heads.operator",
    "fastest_precision": "cxlp.utils.precision",
    "list_images": "cxlp.deploy.image_paths",
    "load": "cxlp.deploy.loading",
    "load_network": "cxlp.models.checkpoint",
    "train": "cxlp.runs.training",
}


def __getattr__(name: str) -> object:
    """Import a public name on first use, so that commands and workers that do not need torch start without it."""
    if name in __all__:
        return getattr(importlib.import_module(_HOMES.get(name, "cxlp.heads")), name)
    raise AttributeError(f"module 'cxlp' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
