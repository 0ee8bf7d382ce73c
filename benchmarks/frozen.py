"""A frozen run compared with a lower bound: decoding its images once, and the fastest forward pass of each image.

    python benchmarks/frozen.py --config demo.yaml
    python benchmarks/frozen.py --config cub200.yaml --config efficientnet_lite0.yaml --data.root DIR

The arguments are those of ``train.py``. The run is a complete fit and test, including start of loaders and checkpoints,
in a temporary folder and without wandb. The lower bound ("floor") is measured next in the same process: iterating over
the run's loaders without a network, and the backbone on the same number of batches in memory, with folded BatchNorm,
in channels-last format and the fastest precision of this machine, independent of the run's precision. The ratio shows
the cost of everything else: PCA, pooling, writing and reading features, Gram matrix, SVMs and metrics.
"""

import os
import sys
import tempfile
import time

import torch
from measuring import machine
from rich.console import Console
from rich.table import Table

from cxlp.backbones.folding import Folded
from cxlp.runs.arguments import find_configs
from cxlp.runs.cli import parse
from cxlp.runs.stages import Run
from cxlp.utils.errors import CxlpError
from cxlp.utils.precision import fastest_precision

PHASES = ("extraction", "PCA", "pooling", "Gram matrix", "SVM", "test")


def main() -> None:
    """Do the run, measure the lower bound, and print the table."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [*sys.argv[1:], f"--run.root={folder}", "--run.wandb=off", "--trainer.enable_progress_bar=false"]
        try:
            config = parse(find_configs(arguments))
            if config["trainer"]["max_epochs"]:
                raise CxlpError("trainer.max_epochs: this benchmark measures frozen runs only; leave finetune.yaml out")
            run = Run(config)
        except CxlpError as error:
            raise SystemExit(f"error: {error}") from error
        start = time.perf_counter()
        run.test(run.fit())
        spent = time.perf_counter() - start
        decoding, forward = decoding_seconds(run), forward_seconds(run)
    times = {phase: run.times.get(phase, 0.0) for phase in PHASES}
    times["all else"] = spent - sum(times.values())
    floor = decoding + forward
    table = Table(title=f"{run.data.name}, {run.trainer.precision}", caption=f"{machine()}, torch {torch.__version__}")
    table.add_column("")
    table.add_column("seconds", justify="right")
    for phase, seconds in times.items():
        table.add_row(f"run: {phase}", f"{seconds:.2f}")
    table.add_row("run, fit and test", f"{spent:.2f}")
    table.add_section()
    table.add_row("floor: decoding the same images once", f"{decoding:.2f}")
    table.add_row("floor: fastest forward passes", f"{forward:.2f}")
    table.add_section()
    table.add_row("run / floor", f"{spent / floor:.2f}")
    Console().print(table)


def decoding_seconds(run: Run) -> float:
    """Measure the time to iterate over the run's two loaders without a network, in seconds."""
    start = time.perf_counter()
    for loader in (run.data.train_dataloader(), run.data.test_dataloader()):
        for _ in loader:
            pass
    return time.perf_counter() - start


@torch.no_grad()
def forward_seconds(run: Run) -> float:
    """Measure the time of the folded backbone on normalised batches in memory, as many as the run's, in seconds."""
    backbone = run.network.to(run.trainer.strategy.root_device).backbone.eval()  # Lightning moved it to the CPU
    half = fastest_precision(backbone.mean.device).name == "bf16-mixed"
    side, size = backbone.image_size, run.data.batch_size
    whole = torch.randn(size, 3, side, side, device=backbone.mean.device).contiguous(memory_format=torch.channels_last)
    folded = Folded(backbone.trunk)  # splits a batch into parts if that is faster
    batches = [whole]  # warm-up
    for images in (run.data.splits["train"], run.data.splits["test"]):
        count, rest = divmod(len(images), size)
        batches += [whole] * count + ([whole[:rest]] if rest else [])
    start = 0.0
    with torch.autocast(whole.device.type, torch.bfloat16, enabled=half):
        for i, batch in enumerate(batches):
            if i == 1:
                _wait()
                start = time.perf_counter()
            trunk = folded.copy_for(batch.device)
            for part in torch.split(batch, folded.images_per_pass(batch.device)):
                trunk(part)
    _wait()
    return time.perf_counter() - start


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    os.environ.setdefault("WANDB_SILENT", "true")
    main()
