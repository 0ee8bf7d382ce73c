"""Growth of a frozen run's time and memory with the number of images: MIT Indoor-67's layout, a tenth and full size.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --images 1340 -- --config squeezenet.yaml --model.backbone.weights null

The script draws photos of 640x480 pixels, runs ``train.py --config mit67.yaml`` on them in a new process (CaffeNet with
random weights, unless arguments follow ``--``), and deletes everything. Memory is the peak of the training process,
without the system's page cache.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from loading import photo
from measuring import ROOT, machine
from PIL import Image
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

WIDTH, HEIGHT = 640, 480
#: Number of classes by whether the size is full: with all 67, the data set requires the official number of images.
CLASSES = {True: 67, False: 66}
ARGUMENTS = ["--model.backbone.weights", "null"]


def write(folder: Path, images: int, full: bool) -> int:
    """Draw the images and write the lists, with a fifth of each class for the test; return the number of images."""
    classes = CLASSES[full]
    per_class = images // classes
    test = max(1, per_class // 5)
    bases = [photo(k, WIDTH, HEIGHT) for k in range(classes + 8)]
    lists: dict[str, list[str]] = {"TrainImages.txt": [], "TestImages.txt": []}
    for k in tqdm(range(classes), desc=f"Drawing {per_class * classes:,} photos"):
        name = f"class_{k:02d}"
        (folder / "Images" / name).mkdir(parents=True)
        for i in range(per_class):
            rng = np.random.default_rng((k, i))
            # The pattern of the class, shifted, blended with another pattern.
            shifted = np.roll(bases[k], rng.integers(HEIGHT, size=2), (0, 1))
            mixed = shifted // 2 + bases[classes + rng.integers(8)] // 2
            Image.fromarray(mixed).save(folder / "Images" / name / f"{i:03d}.jpg", quality=90)
            lists["TestImages.txt" if i < test else "TrainImages.txt"].append(f"{name}/{i:03d}.jpg")
    for file, lines in lists.items():
        (folder / file).write_text("\n".join(lines))
    return per_class * classes


def run(folder: Path, arguments: list[str]) -> dict[str, Any]:
    """Run ``train.py``; return its ``metrics.json`` with ``wall`` (seconds) and ``peak`` (bytes)."""
    command = [sys.executable, str(ROOT / "train.py"), "--config", "mit67.yaml", *arguments, "--data.root", str(folder)]
    command += ["--run.root", str(folder / "runs"), "--run.name", "a", "--run.wandb", "off"]
    start = time.perf_counter()
    if subprocess.run(command, check=False).returncode:
        raise SystemExit("train.py failed, see its error above")
    found: dict[str, Any] = json.loads((folder / "runs" / "a" / "metrics.json").read_text())
    return found | {"wall": time.perf_counter() - start, "peak": found["memory"]["peak_bytes"]}


def main() -> None:
    """Draw the images, run both sizes, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=6700, help="images of the full run, at least 1340 (6700)")
    parser.add_argument("arguments", nargs="*", help="arguments of train.py, after --")
    options = parser.parse_args()
    if options.images < 1340:
        parser.error("--images must be 1340 or more, so that a tenth has training and test images of each class")
    results = {}
    for images, full in ((options.images // 10, False), (options.images, options.images == 6700)):
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "mit67"
            written = write(root, images, full)
            results[written] = run(root, options.arguments or ARGUMENTS)
    (few, small), (many, large) = results.items()
    table = Table(title="frozen run, seconds", caption=machine())
    for column in ("", f"{few:,} images", f"{many:,} images", f"ratio ({many / few:.2f} x the images)"):
        table.add_column(column, justify="right" if column else "left")
    for phase in large["seconds"]:
        a, b = small["seconds"].get(phase, 0.0), large["seconds"][phase]
        table.add_row(phase, f"{a:.1f}", f"{b:.1f}", f"{b / a:.1f}" if a else "-")
    for name, key, unit in (("whole process", "wall", 1.0), ("peak memory, MB", "peak", 1e6)):
        a, b = small[key] / unit, large[key] / unit
        table.add_row(name, f"{a:.1f}", f"{b:.1f}", f"{b / a:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
