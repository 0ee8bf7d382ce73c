"""A frozen run compared with a plain script without cxlp, as whole processes.

    python benchmarks/plain.py --root data/CUB_200_2011 --boxes --network squeezenet1_0 --weights FILE
    python benchmarks/plain.py --root DIR --busy 0 1 --rounds 3        # DIR/{train,test}/<class>/*

Both use the same images, network, layers, C = 10 and PCA dimension. The plain script, benchmarks/plain_script.py, uses
Pillow, torchvision, timm and scikit-learn with their defaults. The other process is ``train.py`` with its defaults and
with the arguments after ``--``. They run alternately, and each number is the median over the rounds. With ``--busy 1``,
another process keeps one core busy meanwhile.

The plain script keeps all features in memory, and scikit-learn copies them twice, the second time with 16 bytes per
value. That makes 28 bytes per value of the training features: 1.1 GB for 300 images of 131,072 values, 11 GB for 3,030.
Most of its time is spent in ``LinearSVC``, in proportion to images times classes. With ``--kernel``, the plain script
exploits that there are fewer images than features, and fits libsvm to the Gram matrix.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from measuring import ROOT, machine
from plain_script import NETWORKS
from rich.console import Console
from rich.table import Table

#: Rows of the table, and the phases of the two processes that belong to each. The rest is start, outputs and exit.
PHASES = {
    "training images: decoding, forward passes": ("extraction",),
    "PCA": ("PCA",),
    "pooling": ("pooling",),
    "SVMs": ("Gram matrix", "SVM"),
    "test images": ("test",),
}
REST = "start, outputs, end"


@dataclass(frozen=True)
class Finished:
    """The result of one process.

    Attributes:
        seconds: Duration of the process.
        phases: Seconds of each phase that the process reports.
        accuracy: Test accuracy, in [0, 1].
    """

    seconds: float
    phases: dict[str, float]
    accuracy: float


def timed(command: Sequence[str]) -> float:
    """Run a command, and return its duration in seconds."""
    start = time.perf_counter()
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, env={**os.environ, "WANDB_MODE": "offline"}
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return time.perf_counter() - start


def plain(options: argparse.Namespace) -> Finished:
    """Run the plain script."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        command = [sys.executable, str(ROOT / "benchmarks" / "plain_script.py"), "--root", str(options.root)]
        command += ["--network", options.network, "--pca", str(options.pca), "--out", str(out)]
        command += ["--weights", str(options.weights)] if options.weights else []
        command += ["--boxes"] if options.boxes else []
        command += ["--kernel"] if options.kernel else []
        seconds = timed(command)
        found = json.loads(out.read_text())
    return Finished(seconds, found["seconds"], found["accuracy"])


def ours(options: argparse.Namespace) -> Finished:
    """Run ``train.py``."""
    cub = (options.root / "images.txt").exists()
    with tempfile.TemporaryDirectory() as folder:
        overlay = options.network.partition("1_0")[0]
        command = [sys.executable, str(ROOT / "train.py"), "--config", "cub200.yaml" if cub else "folder.yaml"]
        command += ["--config", f"{overlay}.yaml", "--data.root", str(options.root), "--model.frozen.c", "10"]
        command += ["--model.head.pca_dim", str(options.pca), "--run.root", folder, "--run.name", "a"]
        command += ["--model.backbone.weights", str(options.weights)] if options.weights else []
        command += ["--data.bbox", str(options.boxes).lower()] if cub else []
        seconds = timed([*command, *options.arguments])
        found = json.loads((Path(folder) / "a" / "metrics.json").read_text())
    return Finished(seconds, found["seconds"], found["metrics"]["test/accuracy"])


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """Keep cores busy inside a ``with`` block."""
    # The processes end when this process ends, even if it is killed.
    work = f"import os\nwhile os.getppid() == {os.getpid()}: sum(range(10**6))"
    started = [subprocess.Popen([sys.executable, "-c", work]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def by_phase(runs: Sequence[Finished]) -> dict[str, float]:
    """Return the median seconds of each phase."""
    table = {
        name: statistics.median(sum(run.phases.get(part, 0.0) for part in parts) for run in runs)
        for name, parts in PHASES.items()
    }
    known = [part for parts in PHASES.values() for part in parts]
    rest = [run.seconds - sum(run.phases.get(part, 0.0) for part in known) for run in runs]
    whole = statistics.median(run.seconds for run in runs)
    return {**table, REST: statistics.median(rest), "whole process": whole}


def show(found: dict[str, list[Finished]], title: str) -> dict[str, float]:
    """Print the table, and return the ratio of each phase."""
    tables = {name: by_phase(runs) for name, runs in found.items()}
    rounds = len(found["cxlp"])
    table = Table(title=title, caption=f"seconds, median of {rounds} rounds; {machine()}")
    for column in ("", *tables, "x"):
        table.add_column(column, justify="right" if column else "left")
    ratios = {}
    for phase in tables["cxlp"]:
        a, b = (tables[name][phase] for name in ("plain script", "cxlp"))
        ratios[phase] = a / b if b else float("inf")
        if phase == "whole process":
            table.add_section()
        table.add_row(phase, f"{a:.1f}", f"{b:.1f}", f"{ratios[phase]:.1f}" if b >= 0.05 else "-")
    each = [[run.seconds for run in found[name]] for name in ("plain script", "cxlp")]
    pairs = [a / b for a, b in zip(*each, strict=True)]
    table.add_row("min - max", *(f"{min(s):.1f} - {max(s):.1f}" for s in each), f"{min(pairs):.1f} - {max(pairs):.1f}")
    accuracies = [f"{100 * statistics.median(run.accuracy for run in runs):.2f} %" for runs in found.values()]
    table.add_row("test accuracy", *accuracies, "")
    Console(width=None if Console().is_terminal else 120).print(table)
    return ratios


def main() -> None:
    """Parse the options, run both processes, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="CUB_200_2011, or a folder with train/ and test/")
    parser.add_argument("--boxes", action="store_true", help="crop to CUB-200-2011's boxes")
    parser.add_argument("--network", default="squeezenet1_0", choices=list(NETWORKS))
    parser.add_argument(
        "--weights", type=Path, help="file of SqueezeNet's weights (EfficientNet-Lite0's come with pip)"
    )
    parser.add_argument("--pca", type=int, default=256, help="dimensions of a local feature after PCA (256)")
    parser.add_argument("--kernel", action="store_true", help="fit libsvm to the Gram matrix in the plain script")
    parser.add_argument("--rounds", type=int, default=3, help="number of rounds (3)")
    parser.add_argument(
        "--busy", type=int, nargs="+", default=[0], help="numbers of busy processes, one table for each (0)"
    )
    parser.add_argument("--out", type=Path, help="write all numbers to this JSON file")
    parser.add_argument("arguments", nargs="*", help="arguments of train.py, after --")
    options = parser.parse_args()
    if options.network == "squeezenet1_0" and options.weights is None:
        parser.error("--weights is missing: give the file of SqueezeNet's weights")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # subprocess.run kills its child when this raises
    numbers = {}
    for processes in options.busy:
        found: dict[str, list[Finished]] = {"plain script": [], "cxlp": []}
        with busy(processes):
            for _ in range(options.rounds):
                found["plain script"].append(plain(options))
                found["cxlp"].append(ours(options))
        beside = f", beside {processes} busy process{'es' if processes > 1 else ''}" if processes else ""
        ratios = show(found, f"{options.root.name}, {options.network}{beside}")
        numbers[processes] = {"x": ratios, **{name: [vars(run) for run in runs] for name, runs in found.items()}}
    if options.out:
        options.out.write_text(json.dumps(numbers, indent=1))


if __name__ == "__main__":
    main()
