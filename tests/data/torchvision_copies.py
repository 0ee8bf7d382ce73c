"""Tiny copies of torchvision's data sets in their layouts: two training pictures of each class, one in other splits."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from torchvision import datasets

from tests.generate import texture, write_image

COUNTS = {"train": 2, "val": 1, "test": 1}


def picture(k: int, i: int, size: int = 16) -> Any:
    return texture(k, 3, np.random.default_rng((k, i)), size, size)


def numbered(*splits: str, classes: int = 2) -> dict[str, list[tuple[int, int]]]:
    """Return the class and the running number of each picture, by split."""
    found: dict[str, list[tuple[int, int]]] = {}
    number = 0
    for split in splits:
        for k in range(classes):
            for _ in range(COUNTS[split]):
                number += 1
                found.setdefault(split, []).append((k, number))
    return found


def aircraft(root: Path, _: pytest.MonkeyPatch) -> None:
    data = root / "fgvc-aircraft-2013b" / "data"
    names = ("A300 B4", "F/A-18")
    for split, found in numbered("train", "val", "test").items():
        for k, i in found:
            write_image(data / "images" / f"{i:07d}.jpg", picture(k, i))
        lines = [f"{i:07d} {names[k]}\n" for k, i in found]
        for level in ("variant", "manufacturer"):
            (data / f"images_{level}_{split}.txt").write_text("".join(lines))
    for file in ("variants", "manufacturers"):
        (data / f"{file}.txt").write_text("".join(f"{name}\n" for name in names))


def cars(root: Path, _: pytest.MonkeyPatch) -> None:
    base = root / "stanford_cars"
    (base / "devkit").mkdir(parents=True)
    for split, found in numbered("train", "test").items():
        rows = np.empty(len(found), dtype=[("fname", object), ("class", object)])
        for row, (k, i) in enumerate(found):
            rows[row] = (f"{i:05d}.jpg", k + 1)
            write_image(base / f"cars_{split}" / f"{i:05d}.jpg", picture(k, i))
        train = base / "devkit" / "cars_train_annos.mat"
        savemat(train if split == "train" else base / "cars_test_annos_withlabels.mat", {"annotations": rows})
    savemat(base / "devkit" / "cars_meta.mat", {"class_names": np.array(["Audi S4", "BMW M3"], dtype=object)})


def flowers(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {key: (file, None) for key, (file, _) in datasets.Flowers102._file_dict.items()}
    monkeypatch.setattr(datasets.Flowers102, "_file_dict", files)  # the checksums of the real files
    base = root / "flowers-102"
    found = numbered("train", "val", "test")
    for k, i in (pair for part in found.values() for pair in part):
        write_image(base / "jpg" / f"image_{i:05d}.jpg", picture(k, i))
    labels = sorted((i, k + 1) for part in found.values() for k, i in part)
    savemat(base / "imagelabels.mat", {"labels": [label for _, label in labels]})
    keys = {"train": "trnid", "val": "valid", "test": "tstid"}
    savemat(base / "setid.mat", {keys[split]: [i for _, i in part] for split, part in found.items()})


def pets(root: Path, _: pytest.MonkeyPatch) -> None:
    base = root / "oxford-iiit-pet"
    (base / "annotations").mkdir(parents=True)
    names = ("Abyssinian", "basset_hound")
    for split, found in numbered("train", "test").items():
        lines = [f"{names[k]}_{i} {k + 1} {k + 1} 1\n" for k, i in found]
        (base / "annotations" / f"{'trainval' if split == 'train' else split}.txt").write_text("".join(lines))
        for k, i in found:
            write_image(base / "images" / f"{names[k]}_{i}.jpg", picture(k, i))


def dtd(root: Path, _: pytest.MonkeyPatch) -> None:
    base = root / "dtd" / "dtd"
    (base / "labels").mkdir(parents=True)
    for split, found in numbered("train", "val", "test").items():
        names = [f"{('banded', 'dotted')[k]}/{i}.jpg" for k, i in found]
        (base / "labels" / f"{split}1.txt").write_text("".join(f"{name}\n" for name in names))
        for name, (k, i) in zip(names, found, strict=True):
            write_image(base / "images" / name, picture(k, i))


def food(root: Path, _: pytest.MonkeyPatch) -> None:
    base = root / "food-101"
    (base / "meta").mkdir(parents=True)
    for split, found in numbered("train", "test").items():
        meta: dict[str, list[str]] = {"apple_pie": [], "waffles": []}
        for k, i in found:
            meta[[*meta][k]].append(f"{[*meta][k]}/{i}")
            write_image(base / "images" / f"{[*meta][k]}/{i}.jpg", picture(k, i))
        (base / "meta" / f"{split}.json").write_text(json.dumps(meta))


def caltech101(root: Path, _: pytest.MonkeyPatch) -> None:
    for k, name in enumerate(("BACKGROUND_Google", "accordion", "ant")):
        for i in range(1, 4):
            write_image(root / "caltech101" / "101_ObjectCategories" / name / f"image_{i:04d}.jpg", picture(k, i))


def eurosat(root: Path, _: pytest.MonkeyPatch) -> None:
    for k, name in enumerate(("Forest", "River")):
        for i in range(3):
            write_image(root / "eurosat" / "2750" / name / f"{name}_{i}.jpg", picture(k, i))


def gtsrb(root: Path, _: pytest.MonkeyPatch) -> None:
    base = root / "gtsrb"
    for split, found in numbered("train", "test").items():
        rows = []
        for k, i in found:
            place = f"GTSRB/Training/{k:05d}" if split == "train" else "GTSRB/Final_Test/Images"
            rows.append(f"{i:05d}.ppm;{k}")
            (base / place).mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture(k, i)).save(base / place / f"{i:05d}.ppm")
        (base / "GT-final_test.csv").write_text("\n".join(["Filename;ClassId", *rows]) + "\n")


def cifar10(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = root / "cifar-10-batches-py"
    base.mkdir(parents=True)
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: base.is_dir())
    monkeypatch.setattr(
        "torchvision.datasets.cifar.check_integrity", lambda *_: True
    )  # the checksums of the real files
    for split, files in {"train": datasets.CIFAR10.train_list, "test": datasets.CIFAR10.test_list}.items():
        for n, (file, _) in enumerate(files):
            found = numbered("train", "test")[split] if n == 0 else []
            rows = [picture(k, i, 32).transpose(2, 0, 1).reshape(-1) for k, i in found]
            entry = {"data": np.array(rows, np.uint8).reshape(-1, 3072), "labels": [k for k, _ in found]}
            (base / file).write_bytes(pickle.dumps(entry))
    (base / "batches.meta").write_bytes(pickle.dumps({"label_names": ["airplane", "automobile"]}))


def mnist(root: Path, _: pytest.MonkeyPatch) -> None:
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for split, found in numbered("train", "test").items():
        name = "train" if split == "train" else "t10k"
        pixels = np.stack([picture(k, i, 28)[..., 0] for k, i in found])
        sizes = b"".join(n.to_bytes(4, "big") for n in pixels.shape)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + sizes + pixels.tobytes())
        labels = bytes(k + 3 for k, _ in found)
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + len(labels).to_bytes(4, "big") + labels)


#: By name: the function that writes it, its classes, and the number of pictures in each split.
COPIES: dict[str, tuple[Callable[[Path, pytest.MonkeyPatch], None], tuple[str, ...], dict[str, int]]] = {
    "FGVCAircraft": (aircraft, ("A300 B4", "F/A-18"), {"train": 4, "val": 2, "test": 2}),
    "StanfordCars": (cars, ("Audi S4", "BMW M3"), {"train": 4, "test": 2}),
    "Flowers102": (flowers, ("pink primrose", "hard-leaved pocket orchid"), {"train": 4, "val": 2, "test": 2}),
    "OxfordIIITPet": (pets, ("Abyssinian", "Basset Hound"), {"train": 4, "test": 2}),
    "DTD": (dtd, ("banded", "dotted"), {"train": 4, "val": 2, "test": 2}),
    "Food101": (food, ("apple_pie", "waffles"), {"train": 4, "test": 2}),
    "Caltech101": (caltech101, ("accordion", "ant"), {"train": 4, "test": 2}),
    "EuroSAT": (eurosat, ("Forest", "River"), {"train": 4, "test": 2}),
    "GTSRB": (gtsrb, ("0", "1"), {"train": 4, "test": 2}),
    "CIFAR10": (cifar10, ("airplane", "automobile"), {"train": 4, "test": 2}),
    "MNIST": (mnist, ("3 - three", "4 - four"), {"train": 4, "test": 2}),
}
