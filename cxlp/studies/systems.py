"""The systems of the paper's tables, and baselines, each as a network: what ``python -m cxlp compare`` runs."""

from dataclasses import replace
from typing import Any

from cxlp.backbones.backbone import Backbone
from cxlp.backbones.feature_extraction import PENULTIMATE
from cxlp.models.branch import PoolingConfig
from cxlp.models.network import NetworkConfig
from cxlp.models.views import ViewsConfig

#: Of known backbones, the pair of layers below their usual one.
_LOWER_PAIRS: dict[str, tuple[str, str]] = {
    "caffenet": ("conv3", "conv4"),
    "squeezenet1_0": ("features.9", "features.10"),
    "efficientnet_lite0": ("blocks.5.3", "blocks.6.0"),
    "vgg16": ("features.24", "features.26"),
}
#: Pooling channels of the low-rank form, and values of the compact one (as Gao et al. recommend for bilinear pooling).
GUIDE_DIM, SKETCH = 64, 8192

#: What others are compared with class by class.
BASELINE = "CNN-Global"


def systems(base: NetworkConfig) -> dict[str, NetworkConfig]:
    """Make the systems of the paper's tables, and baselines, of one network.

    Args:
        base: A network with cross-layer pooling, whose backbone, layers, sub-arrays and PCA the systems share. Where
            a system's layer has fewer channels than the PCA would keep, it keeps as many as there are.

    Returns:
        Networks by name. Where the backbone is the paper's, the names are, too: CL-45 is ``base``, CL-34 one
        pair of layers lower; of other backbones they are called CL and CL-lower.
    """
    # The full form: where the base has another one, that is a system of its own.
    cross = replace(base.pooling, method="cross", sign=False, guide_dim=None, sketch=None, spectral=False)
    pair, lower = ("CL-45", "CL-34") if base.backbone.name == "caffenet" else ("CL", "CL-lower")
    layers = cross.layers_of(base.backbone)
    below = _LOWER_PAIRS.get(base.backbone.name)
    names = list(dict.fromkeys([*layers, *(below or ()), PENULTIMATE]))
    channels = dict(zip(names, Backbone(replace(base.backbone, weights=None), names).channels, strict=True))

    def network(pooling: PoolingConfig, *also: PoolingConfig) -> NetworkConfig:
        return NetworkConfig(base.backbone, pooling, also)

    def kept(layer: str, size: int = 1, wanted: int | None = cross.pca_dim) -> int | None:
        return None if wanted is None else min(wanted, channels[layer] * size * size)

    def with_size(size: int, **options: Any) -> PoolingConfig:
        return replace(cross, size=size, pca_dim=kept(layers[0], size), **options)

    # As in the paper's time: the activations themselves, of unit length.
    fc = PoolingConfig("average_guide", layers=(PENULTIMATE,), pca_dim=None, sqrt=False)
    jitter = replace(fc, views=ViewsConfig("crops"))
    dim = kept(PENULTIMATE, wanted=cross.pca_dim or 500)
    regions = PoolingConfig(layers=(PENULTIMATE,), views=ViewsConfig("regions"), pca_dim=dim)
    finer = replace(cross, views=ViewsConfig("blocks"))
    upper = replace(cross, size=1, padding="valid", stride=1, channels=None, pca_dim=kept(layers[1]))
    average = replace(upper, method="average_guide", pca_dim=None, sqrt=False)
    bilinear = replace(upper, method="bilinear")
    used = cross.channels or channels[layers[1]]

    def compact(pooling: PoolingConfig, guides: int, local: str) -> PoolingConfig:
        features = guides * (pooling.pca_dim or channels[local] * pooling.size**2)
        return replace(pooling, sketch=min(SKETCH, features), channel_l2=False)  # a sketch has no channels

    found = {
        "CNN-Global": network(fc),
        "CNN-Jitter": network(jitter),
        "R-CNN FV": network(replace(regions, method="fisher", atoms=64)),
        "R-CNN SCFV": network(replace(regions, method="sparse_fisher", atoms=100)),
        "regions + trained guide": network(replace(regions, method="trained_guide", atoms=100)),
    }
    if below is not None:
        under = replace(cross, layers=below, pca_dim=kept(below[0], cross.size))
        found[lower] = network(under)
        found[f"{pair} + {lower}"] = network(cross, under)
    other = 3 if cross.size == 1 else 1
    return found | {
        pair: network(cross),
        f"{pair}, {other}x{other}": network(with_size(other)),
        f"{pair}, signs": network(replace(cross, sign=True)),
        f"{pair}, low rank": network(replace(cross, guide_dim=min(GUIDE_DIM, used))),
        f"{pair}, compact": network(compact(cross, used, layers[0])),
        f"{pair}, matrix root": network(replace(cross, spectral=True, sqrt=False)),
        f"{pair}F": network(finer),
        f"{pair}C": network(cross, finer),
        "CL + CNN-Global": network(cross, fc),
        "CL + CNN-Jitter": network(cross, jitter),
        "average": network(average),
        "average, root": network(replace(average, sqrt=True)),
        "bilinear": network(bilinear),
        "bilinear, compact": network(compact(bilinear, channels[layers[1]], layers[1])),
        "iSQRT-COV": network(replace(upper, method="covariance", sqrt=False)),
    }
