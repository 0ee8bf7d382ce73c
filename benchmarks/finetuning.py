"""What fine-tuning gains over the frozen solution, by the number of training images.

    python benchmarks/finetuning.py
    python benchmarks/finetuning.py --images 20 80 320 --size 128 --epochs 6

Birds of the demo set's species are drawn, as many of each as asked for; a fifth of the training images is held out, on
which the best epoch is chosen. Further ones, the same for all rows, are the test. Each row is one run of ``train.py``
(EfficientNet-Lite0, whose weights come with pip; AdamW from the frozen solution, a moving average of the weights, a
closing fit), and one of the frozen mode on the same images.
"""

import argparse
import csv
import json
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from measuring import machine
from rich.console import Console
from rich.table import Table

from cxlp.cli import main as train
from cxlp.data.birds import SPECIES, draw_file
from cxlp.distributed import usable_cores

RECIPE = [
    *("--config", "finetune.yaml"),
    *("--model.closing_fit", "true"),
    *("--model.ema", "0.95"),
    *("--model.optimizer.name", "adamw"),
    *("--model.optimizer.backbone_lr", "1e-4"),
    *("--model.optimizer.projection_lr", "1e-4"),
    *("--model.optimizer.classifier_lr", "1e-3"),
    *("--model.optimizer.layer_decay", "0.1"),
    *("--model.optimizer.weight_decay", "1e-2"),
]


def main() -> None:
    """Draw, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[20, 80, 320], help="for training, of each species")
    parser.add_argument("--test", type=int, default=40, help="images of each species")
    parser.add_argument("--size", type=int, default=128, help="side of the network's input")
    parser.add_argument("--epochs", type=int, default=6, help="with gradients")
    options = parser.parse_args()
    table = Table(caption=f"{len(SPECIES)} species, {options.size} pixels; {machine()}, torch {torch.__version__}")
    for head in ("training images", "frozen: test %", "tuned: test %", "gain", "tuned: validation % by epoch"):
        table.add_column(head, justify="right")
    with tempfile.TemporaryDirectory() as folder:
        for images in options.images:
            root = Path(folder) / str(images)
            draw(root, images, options.test)
            common = ["--config", "folder.yaml", "--config", "efficientnet_lite0.yaml", "--data.root", str(root)]
            common += ["--model.network.backbone.image_size", str(options.size), "--run.root", folder]
            common += ["--run.wandb", "off", "--trainer.enable_progress_bar", "false"]
            frozen, _ = run([*common, "--data.validation", "0.2"], root.with_name(f"frozen-{images}"))
            epochs = ["--trainer.max_epochs", str(options.epochs + 2)]
            recipe = [*RECIPE, "--data.validation", "0.2", *epochs]
            tuned, curve = run([*common, *recipe], root.with_name(f"tuned-{images}"))
            shown = [f"{100 * value:.1f}" for value in (frozen, tuned)]
            steps = " ".join(f"{100 * value:.1f}" for value in curve)
            table.add_row(str(images * len(SPECIES)), *shown, f"{100 * (tuned - frozen):+.1f}", steps)
    Console(width=140).print(table)


def draw(root: Path, train_images: int, test_images: int) -> None:
    """Draw a folder of birds; the same number gives the same bird, however many there are."""
    jobs = [
        (root / split / species.name / f"{i:04}.jpg", k, (100 + number, k, i))
        for number, (split, count) in enumerate((("train", train_images), ("test", test_images)))
        for k, species in enumerate(SPECIES)
        for i in range(count)
    ]
    with ProcessPoolExecutor(usable_cores(), mp_context=get_context("spawn")) as pool:
        list(pool.map(draw_file, jobs, chunksize=16))


def run(arguments: list[str], folder: Path) -> tuple[float, list[float]]:
    """Train and test; returns the test's accuracy, and that of validation after each epoch."""
    if train([*arguments, "--run.name", folder.name]):
        raise SystemExit(1)
    with (folder / "csv" / "version_0" / "metrics.csv").open() as file:
        curve = [float(row["val/accuracy"]) for row in csv.DictReader(file) if row["val/accuracy"]]
    metrics = json.loads((folder / "metrics.json").read_text())["metrics"]
    return metrics["test/accuracy"], curve


if __name__ == "__main__":
    main()
