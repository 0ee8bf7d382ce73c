"""Small data sets in the layouts of the real ones, with pictures whose classes can be learnt."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cxlp.data.voc2007 import CLASSES

Pixels = NDArray[np.uint8]


def texture(kind: int, kinds: int, rng: np.random.Generator, width: int, height: int) -> Pixels:
    """Draw a striped picture, ``(height, width, 3)``: direction and colour identify its kind, also in grey."""
    y, x = np.mgrid[:height, :width]
    angle = np.pi * kind / kinds + rng.normal(0, 0.05)
    wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / (8 + 4 * (kind % 3)) + rng.uniform(0, 6))
    tint = 0.5 + 0.5 * np.cos(2 * np.pi * (kind / kinds + np.arange(3) / 3))
    pixels = 128 + 70 * wave[..., None] * (0.4 + tint) + 40 * (tint - 0.5) + rng.normal(0, 8, (height, width, 3))
    clipped: Pixels = np.clip(pixels, 0, 255).astype(np.uint8)
    return clipped


def write_image(path: Path, pixels: NDArray[Any]) -> Path:
    """Write a picture in the format of its suffix, and create its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=95)  # PNG ignores the quality
    return path


def write_folder(root: Path, classes: int = 3, train: int = 6, test: int = 3, size: int = 96) -> Path:
    """Write ``root/{train,test}/<class>/NN.png``.

    Args:
        root: The folder.
        classes: Number of classes, which are called ``kind0``, ``kind1``, ...
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

    The bird is a texture inside its box, on a background of noise. As in the real release, ids are
    not sorted by split, sizes differ, image 2 is a greyscale JPEG, and the box of image 3 crosses the
    right and lower border. As in some modified copies, ``image_class_labels.txt`` has CRLF, and
    ``train_test_split.txt`` has no newline at its end.

    Args:
        root: The folder in which ``CUB_200_2011`` is created.
        classes: Number of classes.
        train: Training images per class.
        test: Test images per class.
        size: Height of the pictures; every other one is a quarter wider.
        seed: Seed of the pictures and of the split.

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


def write_mit67(root: Path, classes: int = 3, train: int = 6, test: int = 3, size: int = 96, seed: int = 0) -> Path:
    """Write a release of MIT Indoor-67 with few classes, in the official layout.

    As in the real release, names contain spaces, an apostrophe and a double suffix; all classes have
    the base names ``room_NN.jpg``; the lists are not sorted and have no newline at their end; there
    are unlisted images (here, they cannot be decoded); and files called ``.jpg`` are GIF, PNG, BMP,
    palette, grey and CMYK images.

    Args:
        root: The folder in which ``mit67`` is created.
        classes: Number of classes, at most 5.
        train: Training images per class.
        test: Test images per class.
        size: Height of the pictures; every other one is a quarter wider.
        seed: Seed of the pictures and of the lists.

    Returns:
        The folder ``mit67``.
    """
    folder = root / "mit67"
    names = ["mall", "nursery", "airport_inside", "trainstation", "winecellar"][:classes]
    special = {("mall", 0): "shopping mall.jpg", ("nursery", 0): "baby's_room.jpg.jpg"}
    kinds = [("JPEG", "RGB"), ("GIF", "P"), ("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "P"), ("BMP", "RGB")]
    lists: dict[str, list[str]] = {"TrainImages.txt": [], "TestImages.txt": []}
    for k, name in enumerate(names):
        for i in range(train + test):
            rng = np.random.default_rng((seed, k, i))
            file = f"{name}/{special.get((name, i), f'room_{i:02d}.jpg')}"
            path = folder / "Images" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            form, mode = kinds[(k + i) % len(kinds)]
            Image.fromarray(texture(k, classes, rng, size + i % 2 * size // 4, size)).convert(mode).save(path, form)
            lists["TrainImages.txt" if i < train else "TestImages.txt"].append(file)
        (folder / "Images" / name / "unlisted.jpg").write_bytes(b"no picture")
    for file, lines in lists.items():
        order = np.random.default_rng(seed).permutation(len(lines))
        (folder / file).write_text("\n".join(lines[i] for i in order))
    return folder


def mixture(kinds: list[int], of: int, rng: np.random.Generator, width: int, height: int) -> Pixels:
    """Draw vertical stripes of texture, one for each kind, in random order."""
    widths = np.diff(np.linspace(0, width, len(kinds) + 1).astype(int))
    parts = zip(rng.permutation(kinds), widths, strict=True)
    return np.concatenate([texture(kind, of, rng, part, height) for kind, part in parts], axis=1)


def write_voc2007(root: Path, per_class: tuple[int, int, int] = (3, 2, 2), size: int = 96, seed: int = 0) -> Path:
    """Write a release of Pascal VOC 2007 with few images: lists of all 20 classes, and pictures.

    An image shows one or two classes. As in the real release, lists have CRLF, positives are padded
    (``000005  1``), the ids of a split are not consecutive, and some labels are 0: at 96 pixels, such
    an image shows nothing of the class.

    Args:
        root: The folder in which ``VOCdevkit/VOC2007`` is created.
        per_class: Numbers of images in train, val and test whose first class is a given one.
        size: Side of the pictures.
        seed: Seed of the pictures and of the lists.

    Returns:
        The folder ``VOC2007``.
    """
    folder = root / "VOCdevkit" / "VOC2007"
    rng = np.random.default_rng(seed)
    of = len(CLASSES)
    splits = np.repeat(["train", "val", "test"], np.multiply(per_class, of))
    first = np.concatenate([np.tile(np.arange(of), n) for n in per_class])
    labels = {split: dict[str, NDArray[np.int64]]() for split in ("train", "val", "test", "trainval")}
    for number, i in enumerate(rng.permutation(len(splits)), 1):
        row = np.full(of, -1)
        shown = [int(first[i])]
        if number % 2:
            shown.append((shown[0] + 1 + int(rng.integers(of - 1))) % of)
        row[shown] = 1
        if number % 4 == 0:
            row[(shown[0] + 7) % of] = 0
        key = f"{number:06d}"
        write_image(folder / "JPEGImages" / f"{key}.jpg", mixture(shown, of, rng, size, size))
        for split in {splits[i], "trainval" if splits[i] != "test" else "test"}:
            labels[split][key] = row
    main = folder / "ImageSets" / "Main"
    main.mkdir(parents=True)
    for split, rows in labels.items():
        (main / f"{split}.txt").write_bytes("".join(f"{key}\r\n" for key in rows).encode())
        for k, name in enumerate(CLASSES):
            text = "".join(f"{key} {row[k]:2d}\r\n" for key, row in rows.items())
            (main / f"{name}_{split}.txt").write_bytes(text.encode())
    return folder


def write_h3d(root: Path, train: int = 54, test: int = 36, size: int = 96, seed: int = 0) -> Path:
    """Write a release of the H3D attributes with few people, in the official layout.

    The person is a mixture of the present attributes' textures inside a box, on a background of noise.
    As in the real release, columns are padded with spaces. In each list, person 2 has a box of NaN, the
    box of person 3 crosses the left and lower border, and people 4 and 5 have only labels of 0.

    Args:
        root: The folder in which ``attributes_dataset`` is created.
        train: Number of people in ``train``.
        test: Number of people in ``test``.
        size: Height of the pictures; every other one is a quarter wider.
        seed: Seed of the pictures and the labels.

    Returns:
        The folder ``attributes_dataset``.
    """
    folder = root / "attributes_dataset"
    for split, people in (("train", train), ("test", test)):
        lines = []
        for number in range(1, people + 1):
            rng = np.random.default_rng((seed, split == "test", number))
            # Each attribute in turn, so that a few people have all of them.
            shown = sorted({number % 9, int(rng.integers(9))})
            labels = np.where(rng.random(9) < 0.25, 0, -1)
            labels[shown] = 1
            height, width = size, size + number % 2 * size // 4
            left, top = rng.integers(size // 10, size // 5, size=2).tolist()
            w, h = rng.integers(size * 6 // 10, size * 7 // 10, size=2).tolist()
            box = np.array([left, top, w, h], float)
            if number == 2:
                left, top, w, h, box = 0, 0, width, height, np.full(4, np.nan)
            if number == 3:
                left, h, box = 0, height - top, np.array([-5, top, w + 5, height - top + 5], float)
            if number in (4, 5):
                labels[:] = 0
            pixels = rng.integers(60, 196, size=(height, width, 3)).astype(np.uint8)
            pixels[top : top + h, left : left + w] = mixture(shown, 9, rng, w, h)
            write_image(folder / split / f"{number:05d}.jpg", pixels)
            numbers = " ".join(f"{value:4.2f}".replace("nan", " NaN") for value in box)
            lines.append(f"{number:05d}.jpg {numbers} {' '.join(f'{label:2d}' for label in labels)}\n")
        (folder / split / "labels.txt").write_text("".join(lines))
    return folder
