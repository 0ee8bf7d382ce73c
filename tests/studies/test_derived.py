"""The derived cross-layer pooling, from pictures to decision values, compared with loops in NumPy."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from sklearn.svm import SVC

from cxlp.backbones.backbone import Backbone, BackboneConfig
from cxlp.data.transforms import AugmentConfig, Transform
from cxlp.frozen.config import FrozenConfig
from cxlp.frozen.fit import FrozenFit
from cxlp.heads import CrossLayerPooling, Head
from cxlp.models.network import Network
from cxlp.studies.systems import systems
from cxlp.utils.profiling import PhaseTimes

Array = np.ndarray[Any, Any]

LAYERS, SIDE = ("features.3", "features.4"), 64
STD = np.array([0.229, 0.224, 0.225])


def pictures() -> tuple[list[Array], Array]:
    """Five pictures of each of three classes, not square, each with its own tint."""
    generator = np.random.default_rng(0)
    labels = np.arange(15) % 3
    patterns = generator.random((3, 90, 110, 3))
    tints = generator.random((15, 1, 1, 3))
    noise = generator.random((15, 90, 110, 3))
    made = [0.3 * patterns[k] + 0.4 * noise[i] + 0.3 * tints[i] for i, k in enumerate(labels)]
    return [(255 * picture).astype(np.uint8) for picture in made], labels


def resized(picture: Array) -> Array:
    """Resize bilinearly, with a triangle filter whose width depends on the scale: rows, then columns."""
    out = picture.astype(float)
    for axis in (1, 0):
        length = out.shape[axis]
        scale = length / SIDE
        weights = np.zeros((SIDE, length))
        for i in range(SIDE):
            for j in range(length):
                weights[i, j] = max(0.0, 1 - abs((j + 0.5) - (i + 0.5) * scale) / max(scale, 1.0))
            weights[i] /= weights[i].sum()
        out = np.moveaxis(np.tensordot(weights, out, axes=(1, axis)), 0, axis)
    return out


def maps_of(model: torch.nn.Module, picture: Array) -> list[Array]:
    """Compute the maps of the two layers with the whole network: ``(h, w, channels)``, float64."""
    x = picture / 255
    x = (x - x.mean(axis=(0, 1))) / STD
    seen: list[Array] = []
    hooks = [
        model.get_submodule(layer).register_forward_hook(
            lambda _m, _i, y: seen.append(y[0].permute(1, 2, 0).double().numpy().copy())
        )
        for layer in LAYERS
    ]
    with torch.no_grad():
        model(torch.from_numpy(x).float().permute(2, 0, 1)[None])
    for hook in hooks:
        hook.remove()
    return seen


def local_features(local: Array) -> tuple[Array, list[tuple[int, int]]]:
    """Return all complete 3x3 sub-arrays as vectors (channels, rows, columns), and their centres."""
    vectors, centres = [], []
    for row in range(1, local.shape[0] - 1):
        for column in range(1, local.shape[1] - 1):
            vectors.append(local[row - 1 : row + 2, column - 1 : column + 2].transpose(2, 0, 1).flatten())
            centres.append((row, column))
    return np.array(vectors), centres


def encoded(projected: Array, centres: list[tuple[int, int]], guide: Array) -> Array:
    pooled = np.zeros((guide.shape[2], projected.shape[1]))
    for x, (row, column) in zip(projected, centres, strict=True):
        for k in range(guide.shape[2]):
            pooled[k] += guide[row, column, k] * x
    for k in range(len(pooled)):
        pooled[k] /= 1e-7 + np.sqrt((pooled[k] ** 2).sum())
    z = pooled.flatten()
    z = (z - z.mean()) / z.std()
    z = np.sign(z) * np.sqrt(np.abs(z))
    vector: Array = z / np.sqrt((z**2).sum())
    return vector


def test_values_equal_the_independent_implementation(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torchvision.models.squeezenet1_0(weights=None).eval()
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    config = BackboneConfig("torchvision/squeezenet1_0", LAYERS, weights=str(tmp_path / "weights.pth"), image_size=SIDE)
    other = {"class_path": "torchvision.transforms.v2.Identity"}
    system = systems(config, CrossLayerPooling(pca_dim=6), [other])["CL, derived"]
    given = dict(zip(system["options"][::2], system["options"][1::2], strict=True))
    assert given.keys() == {"--model.backbone.mean", "--model.frozen.pca_vectors", "--data.transform"}
    first, resize = json.loads(given["--data.transform"])
    assert first == other  # the user's own transforms come first
    (spec,) = system["heads"]
    assert spec["init_args"]["pca_dim"] == 512 and spec["init_args"]["size"] == 3

    found, labels = pictures()
    transform = Transform(SIDE, "warp", AugmentConfig(), [resize])
    images = torch.stack([transform(picture, None) for picture in found])
    for image, picture in zip(images, found, strict=True):
        assert np.abs(image.permute(1, 2, 0).numpy() - resized(picture)).max() < 1.01  # of 255: rounded twice

    assert given["--model.backbone.mean"] == "image"
    backbone = Backbone.from_config(replace(config, mean="image"))
    network = Network(backbone, Head.from_spec(spec), ["gull", "tern", "wren"]).eval()
    fit = FrozenFit(
        network,
        FrozenConfig(pca_vectors=int(given["--model.frozen.pca_vectors"])),
        len(images),
        tmp_path / "fit",
        PhaseTimes(),
    )
    fit.observe(images, torch.from_numpy(labels), torch.arange(len(images)))
    report = fit.finish()
    assert report["C"] == 10

    pairs = [maps_of(model, image.permute(1, 2, 0).numpy()) for image in images]
    cut = [local_features(local) for local, _ in pairs]
    stacked = np.concatenate([vectors for vectors, _ in cut])
    mean = stacked.mean(axis=0)
    values, vectors = np.linalg.eigh((stacked - mean).T @ (stacked - mean))
    axes = vectors[:, ::-1][:, :512].T
    assert values[-512] > 0
    axes *= np.sign(axes[np.arange(512), np.abs(axes).argmax(axis=1)])[:, None]  # the z-score depends on the signs
    (head,) = network.heads
    assert isinstance(head, CrossLayerPooling) and head.projection is not None
    own = head.projection.weight.detach().flatten(1).double().numpy()
    assert (np.abs((own * axes).sum(axis=1)) > 0.9).mean() > 0.9  # axes of equal variance are any basis of their plane

    # From here on with the fitted axes, whose directions are uncertain in float32 if variances are close.
    features = np.array(
        [encoded((v - mean) @ own.T, centres, guide) for (v, centres), (_, guide) in zip(cut, pairs, strict=True)]
    )
    with torch.no_grad():
        np.testing.assert_allclose(network.features(images).numpy(), features, atol=2e-5)
        scores = network(images).double().numpy() / report["logit_scale"]
    for k in range(3):
        svm = SVC(kernel="precomputed", C=10, tol=1e-6).fit(features @ features.T, labels == k)
        np.testing.assert_allclose(scores[:, k], svm.decision_function(features @ features.T), atol=5e-3)
