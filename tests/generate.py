"""Small data sets in the layouts of the real ones, with pictures that can be learnt."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]


def texture(kind: int, kinds: int, rng: np.random.Generator, width: int, height: int) -> Pixels:
    """A striped picture, ``(height, width, 3)``: direction and colour tell its kind, also in grey."""
    y, x = np.mgrid[:height, :width]
    angle = np.pi * kind / kinds + rng.normal(0, 0.05)
    wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / (8 + 4 * (kind % 3)) + rng.uniform(0, 6))
    tint = 0.5 + 0.5 * np.cos(2 * np.pi * (kind / kinds + np.arange(3) / 3))
    pixels = 128 + 70 * wave[..., None] * (0.4 + tint) + 40 * (tint - 0.5) + rng.normal(0, 8, (height, width, 3))
    clipped: Pixels = np.clip(pixels, 0, 255).astype(np.uint8)
    return clipped


def write_image(path: Path, pixels: NDArray[Any]) -> Path:
    """Write a picture in the format of its suffix, with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=95)  # PNG knows no quality, and ignores it
    return path


def write_folder(root: Path, classes: int = 3, train: int = 6, test: int = 3, size: int = 96) -> Path:
    """Write ``root/{train,test}/<class>/NN.png``.

    Args:
        root: Where.
        classes: How many; they are called ``kind0``, ``kind1``, ...
        train: Training images per class.
        test: Test images per class.
        size: Side of the pictures.

    Returns:
        ``root``.
    """
    for s, (split, count) in enumerate({"train": train, "test": test}.items()):
        for k in range(classes):
            for i in range(count):
                pixels = texture(k, classes, np.random.default_rng((s, k, i)), size, size)
                write_image(root / split / f"kind{k}" / f"{i:02d}.png", pixels)
    return root


def write_cub200(root: Path, classes: int = 3, train: int = 6, test: int = 3, size: int = 96, seed: int = 0) -> Path:
    """Write a release of CUB-200-2011 with few classes, in the official layout.

    The bird is a texture inside its box, in front of noise. As in the real release, ids are not
    sorted by split, sizes differ, image 2 is a greyscale JPEG, and a box crosses the border (that
    of image 3, on the right and below). As in copies of it that went through other hands,
    ``image_class_labels.txt`` has CRLF and ``train_test_split.txt`` no newline at its end.

    Args:
        root: The folder in which ``CUB_200_2011`` is made.
        classes: How many.
        train: Training images per class.
        test: Test images per class.
        size: Height of the pictures; every other one is a quarter wider.
        seed: Of the pictures and of the split.

    Returns:
        The folder ``CUB_200_2011``.
    """
    folder = root / "CUB_200_2011"
    names = [f"{k + 1:03d}.Textured_Warbler_{k + 1}" for k in range(classes)]
    images: list[str] = []
    labels: list[str] = []
    splits: list[str] = []
    boxes: list[str] = []
    for k, name in enumerate(names):
        flags = np.random.default_rng((seed, k)).permutation([1] * train + [0] * test).tolist()
        for i, flag in enumerate(flags):
            number = len(images) + 1
            rng = np.random.default_rng((seed, k, i))
            height, width = size, size + (number % 2) * size // 4
            left, top = rng.integers(size // 10, size // 5, size=2).tolist()
            w, h = rng.integers(size * 6 // 10, size * 7 // 10, size=2).tolist()
            if number == 3:
                w, h = width - left, height - top
            pixels = rng.integers(60, 196, size=(height, width, 3)).astype(np.uint8)
            pixels[top : top + h, left : left + w] = texture(k, classes, rng, w, h)
            file = f"{name}/{name[4:]}_{i + 1:04d}_{number}.jpg"
            write_image(folder / "images" / file, pixels[..., 1] if number == 2 else pixels)
            over = 5.0 if number == 3 else 0.0
            images.append(f"{number} {file}")
            labels.append(f"{number} {k + 1}")
            splits.append(f"{number} {flag}")
            boxes.append(f"{number} {float(left)} {float(top)} {w + over} {h + over}")
    lists = {
        "classes.txt": "\n".join(f"{k + 1} {name}" for k, name in enumerate(names)) + "\n",
        "images.txt": "\n".join(images) + "\n",
        "image_class_labels.txt": "\r\n".join(labels) + "\r\n",
        "train_test_split.txt": "\n".join(splits),
        "bounding_boxes.txt": "\n".join(boxes) + "\n",
    }
    for file, text in lists.items():
        (folder / file).write_bytes(text.encode())
    return folder
