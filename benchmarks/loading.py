"""From a JPEG to the network's input with cxlp and with a plain loader: images per second and core.

    python benchmarks/loading.py
    python benchmarks/loading.py --dir data/CUB_200_2011/images --images 200

In the plain loader, Pillow decodes at full size, ``albumentations.Resize`` interpolates between
neighbours (its default), and the array becomes a tensor. Both loaders run in one process with one
thread. The photos are drawn, with structures of all sizes. As JPEGs of quality 90 they have 2.2 bits
per pixel, like the birds of CUB-200-2011 saved at that quality: the time of decoding depends on the
bits as well as on the pixels.

The script also prints the differences of both loaders' pixels, and of cxlp's with full decoding, from
area averaging, the textbook method of shrinking, which is too slow for either loader.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from measuring import machine
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

from cxlp.data.decode import read_image
from cxlp.data.transforms import AugmentConfig, Transform

# Set before the import: albumentations would look for updates on PyPI, which stalls without a network.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
import albumentations as A

Load = Callable[[Path], Tensor]


def photo(seed: int, width: int, height: int) -> NDArray[np.uint8]:
    """Draw noise of all sizes, weaker at smaller sizes, and mostly equal in the three colour channels."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros((height, width, 3), np.float32)
    for octave in range(1, int(np.log2(max(width, height))) + 1):
        cells = 2**octave
        for channels, strength in ((1, 1.0), (3, 0.3)):
            noise = rng.normal(0, strength, (max(2, cells * height // width), cells, channels)).astype(np.float32)
            large = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
            pixels += 0.76**octave * large.reshape(height, width, channels)
    # The mean is grey, and the contrast is that of a photo.
    bounded: NDArray[np.uint8] = np.clip(128 + 55 * pixels / pixels.std(), 0, 255).astype(np.uint8)
    return bounded


def write_photos(folder: Path, images: int, width: int, height: int) -> list[Path]:
    """Draw photos and write them as JPEGs of quality 90."""
    paths = [folder / f"{i:04d}.jpg" for i in range(images)]
    for i, path in enumerate(paths):
        Image.fromarray(photo(i, width, height)).save(path, quality=90)
    return paths


def loaders(size: int) -> dict[str, Load]:
    """Return the two loaders, which turn a file into uint8 ``(3, size, size)``."""
    transform = Transform(size, "warp", AugmentConfig())
    resize = A.Resize(size, size)

    def package(path: Path) -> Tensor:
        return transform(read_image(path, None, transform.needed(None)), None)

    def plain(path: Path) -> Tensor:
        resized = resize(image=np.asarray(Image.open(path).convert("RGB")))["image"]
        return torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))

    return {"cxlp": package, "plain": plain}


def measure(paths: list[Path], contestants: dict[str, Load], rounds: int) -> dict[str, list[float]]:
    """Measure the images per second of each loader in alternating rounds."""
    speeds: dict[str, list[float]] = {name: [] for name in contestants}
    for repetition in range(rounds + 1):
        for name, load in contestants.items():
            start = time.perf_counter()
            for path in paths:
                load(path)
            if repetition > 0:  # the first round is a warm-up
                speeds[name].append(len(paths) / (time.perf_counter() - start))
    return speeds


def differences(paths: list[Path], size: int) -> dict[str, tuple[float, float, float]]:
    """Return mean, 99th percentile and maximum of the absolute differences of pixels, which range from 0 to 255."""
    both, transform = loaders(size), Transform(size, "warp", AugmentConfig())
    ways: dict[str, Load] = both | {"cxlp, full decoding": lambda path: transform(read_image(path), None)}
    arrays = {name: np.stack([load(p).numpy().astype(int) for p in paths]) for name, load in ways.items()}

    def area(path: Path) -> NDArray[np.int64]:
        shrunk = cv2.resize(read_image(path), (size, size), interpolation=cv2.INTER_AREA)
        return shrunk.transpose(2, 0, 1).astype(int)

    areas = np.stack([area(path) for path in paths])
    pairs = {f"{name} - areas": array - areas for name, array in arrays.items()}
    pairs["cxlp - plain"] = arrays["cxlp"] - arrays["plain"]
    return {
        name: (float((d := abs(p)).mean()), float(np.percentile(d, 99)), float(d.max())) for name, p in pairs.items()
    }


def show(speeds: dict[str, list[float]], apart: dict[str, tuple[float, float, float]], title: str) -> None:
    """Print the tables."""
    console = Console(width=None if Console().is_terminal else 120)
    plain = statistics.median(speeds["plain"])
    table = Table(title=title, caption=f"median (min - max) of {len(speeds['plain'])} rounds; {machine()}")
    for column in ("", "images per second and core", "x"):
        table.add_column(column, justify="right" if column else "left")
    for name, own in speeds.items():
        median = statistics.median(own)
        table.add_row(name, f"{median:.0f} ({min(own):.0f} - {max(own):.0f})", f"{median / plain:.2f}")
    console.print(table)
    table = Table(title="absolute differences of pixels (0 to 255)")
    for column in ("", "mean", "99 %", "max"):
        table.add_column(column, justify="right" if column else "left")
    for name, (mean, most, largest) in apart.items():
        table.add_row(name, f"{mean:.2f}", f"{most:.0f}", f"{largest:.0f}")
    console.print(table)


def main() -> None:
    """Parse the options, measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=227, help="side of the network's input (227)")
    parser.add_argument("--width", type=int, default=640, help="width of the drawn photos (640)")
    parser.add_argument("--height", type=int, default=480, help="height of the drawn photos (480)")
    parser.add_argument("--images", type=int, default=100, help="maximum number of images (100)")
    parser.add_argument("--dir", type=Path, help="folder with JPEGs to use instead of drawn photos")
    parser.add_argument("--rounds", type=int, default=9, help="number of rounds over all images (9)")
    parser.add_argument("--out", type=Path, help="write all numbers to this JSON file")
    options = parser.parse_args()
    torch.set_num_threads(1)  # importing cxlp has disabled OpenCV's threads
    with tempfile.TemporaryDirectory() as folder:
        if options.dir is None:
            paths = write_photos(Path(folder), options.images, options.width, options.height)
            what = f"drawn photos of {options.width}x{options.height}"
        else:
            found = sorted(p for p in options.dir.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
            # Evenly spaced, because the folder may be sorted by class.
            paths = found[:: max(1, len(found) // options.images)][: options.images]
            what = f"images of {options.dir}"
        if not paths:
            raise SystemExit(f"no *.jpg in {options.dir}")
        kilobytes = sum(path.stat().st_size for path in paths) / len(paths) / 1e3
        speeds = measure(paths, loaders(options.size), options.rounds)
        apart = differences(paths, options.size)
    show(speeds, apart, f"{len(paths)} {what}, {kilobytes:.0f} kB each -> {options.size} px")
    if options.out:
        options.out.write_text(json.dumps({"images_per_second": speeds, "apart": apart}, indent=1))


if __name__ == "__main__":
    main()
