"""The systems of the paper's tables and baselines, as networks that ``python -m cxlp compare`` runs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypedDict

from cxlp.backbones.backbone import Backbone, BackboneConfig
from cxlp.backbones.feature_extraction import PENULTIMATE
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
from cxlp.heads.views import Views
from cxlp.studies.system_names import LOWER_PAIRS, other_size, pair_names


class Network(TypedDict):
    """A network, described by plain values.

    Attributes:
        layers: The layers of the backbone.
        heads: The descriptions of the heads, see :meth:`cxlp.heads.base.Head.from_spec`.
        options: Additional arguments of ``train.py``.
    """

    layers: list[str]
    heads: list[dict[str, Any]]
    options: list[str]


#: PCA dimensions of both layers in the most accurate system, see configs/best.yaml.
BEST_DIM = 128
#: Pooling channels of the low-rank system, and size of the compact one (Gao et al.'s value for bilinear pooling).
GUIDE_DIM, SKETCH = 64, 8192
#: PCA dimensions of the derived system, see :func:`_derived`.
DERIVED_DIM = 512

#: The system with which others are compared by class.
BASELINE = "CNN-Global"


def systems(
    backbone: BackboneConfig, base: CrossLayerPooling, transform: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Network]:
    """Return the systems of the paper's tables and the baselines for one backbone.

    Args:
        backbone: The backbone.
        base: A cross-layer pooling, whose layers, sub-arrays and PCA dimension the systems share. The PCA dimension is
            reduced for layers with fewer channels.
        transform: ``data.transform`` of all systems.

    Returns:
        Networks by name. For CaffeNet, the names are the paper's: CL-45 is ``base``, and CL-34 uses the pair of layers
        below. For other backbones, these two are called CL and CL-lower.
    """
    pair, lower = pair_names(backbone.name)
    layers = base.layers_of(backbone.layers)
    below = LOWER_PAIRS.get(backbone.name)
    names = tuple(dict.fromkeys([*layers, *(below or ()), PENULTIMATE]))
    found = Backbone.from_config(replace(backbone, weights=None, layers=names))
    channels = dict(zip(names, found.channels, strict=True))

    def kept(layer: str, size: int = 1) -> int | None:
        return None if base.pca_dim is None else min(base.pca_dim, channels[layer] * size * size)

    # The full form. Variants of it are separate systems, even if the base is such a variant.
    options = base.options() | {
        "views": base.views, "layers": layers,
        "sign": False, "guide_dim": None, "sketch": None, "spectral": False, "second_root": False,
        "centre": False, "whiten": 0.0,
    }  # fmt: skip

    def cross(**changes: Any) -> CrossLayerPooling:
        return CrossLayerPooling(**options | changes)

    # Baselines pool single places of the upper layer only, and are normalised like the base.
    steps = {name: getattr(base, name) for name in ("zscore", "l2")}
    upper = {"layers": layers[1:], "views": base.views, **steps}
    pooled = {"pca_dim": kept(layers[1]), "sqrt": base.sqrt, "channel_l2": base.channel_l2, **upper}
    # As in 2015: activations of unit length, without signed square root.
    fc = AveragePooling(layers=[PENULTIMATE], sqrt=False)
    jitter = AveragePooling(layers=[PENULTIMATE], sqrt=False, views=Views("crops"))
    dim = min(base.pca_dim or 500, channels[PENULTIMATE])
    regions: dict[str, Any] = {"layers": [PENULTIMATE], "views": Views("regions"), "pca_dim": dim}
    plain, finer = cross(), cross(views=Views("blocks"))
    used = base.channels or channels[layers[1]]
    local = base.pca_dim or channels[layers[0]] * base.size**2
    own = pooled["pca_dim"] or channels[layers[1]]
    made: dict[str, list[Head]] = {
        "CNN-Global": [fc],
        "CNN-Jitter": [jitter],
        "R-CNN FV": [FisherVector(atoms=64, **regions)],
        "R-CNN SCFV": [SparseFisherVector(atoms=100, **regions)],
        "regions + trained guide": [TrainedGuidePooling(channels=100, **regions)],
    }
    if below is not None:
        under = cross(layers=below, pca_dim=kept(below[0], base.size))
        made[lower] = [under]
        made[f"{pair} + {lower}"] = [plain, under]
    best: dict[str, Any] = {
        "guide_dim": min(BEST_DIM, used), "channels": base.channels, "views": base.views,
        "centre": True, "whiten": 0.5, "spectral": True,
    }  # fmt: skip
    dim = min(DERIVED_DIM, channels[layers[0]] * 3**2)
    derived = CrossLayerPooling(dim, size=3, align=base.align, channel_l2=True, zscore=True, layers=layers)
    arguments = {
        f"{pair}, signs": ["--model.frozen.features", "sign"],  # two bits per value
        f"{pair}, derived": _derived(found.image_size, transform),
    }
    other = other_size(base.size)
    # A sketch has no pooling channels, so channel_l2 does not apply.
    made |= {
        pair: [plain],
        f"{pair}, {other}x{other}": [cross(size=other, pca_dim=kept(layers[0], other))],
        f"{pair}, signs": [cross(sign=True)],
        f"{pair}, low rank": [cross(guide_dim=min(GUIDE_DIM, used))],
        f"{pair}, compact": [cross(sketch=min(SKETCH, used * local), channel_l2=False)],
        f"{pair}, matrix root": [cross(spectral=True)],
        f"{pair}, best": [
            CrossLayerPooling(pca_dim=min(BEST_DIM, channels[layers[0]]), layers=layers, align=base.align, **best),
            BilinearPooling(pca_dim=min(BEST_DIM, channels[layers[1]]), layers=layers[1:], **best),
        ],
        f"{pair}, derived": [derived],
        f"{pair}F": [finer],
        f"{pair}C": [plain, finer],
        "CL + CNN-Global": [plain, fc],
        "CL + CNN-Jitter": [plain, jitter],
        "average": [AveragePooling(sqrt=False, **upper)],
        "average, root": [AveragePooling(sqrt=True, **upper)],
        "bilinear": [BilinearPooling(**pooled)],
        "bilinear, compact": [
            BilinearPooling(**pooled | {"sketch": min(SKETCH, channels[layers[1]] * own), "channel_l2": False})
        ],
        "iSQRT-COV": [CovariancePooling(pca_dim=pooled["pca_dim"], **upper)],
    }
    return {name: _system(heads, arguments.get(name, [])) for name, heads in made.items()}


def _system(heads: Sequence[Head], options: list[str]) -> Network:
    """Describe a system whose backbone returns the layers that its heads name, and no others."""
    layers = dict.fromkeys(layer for head in heads for layer in (head.layers or ()))
    return {"layers": list(layers), "heads": [head.spec() for head in heads], "options": options}


def _derived(image_size: int, transform: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the options of ``CL-45, derived``, which follow a third-party implementation.

    Images are resized bilinearly, each image's own mean colour is subtracted, and the PCA is fitted to all local
    features. Source: ``clpRef.m`` of https://github.com/shoaibahmed/CrossLayerPooling, commit d4a976b.
    """
    resize = {"class_path": "torchvision.transforms.v2.Resize", "init_args": {"size": [image_size, image_size]}}
    return [
        *("--model.backbone.mean", "image", "--model.frozen.pca_vectors", str(10**9)),
        *("--data.transform", json.dumps([*map(dict, transform), resize])),
    ]
