"""A frozen run against its floor: decoding its images once, and one bare forward pass over each of them.

    python benchmarks/frozen.py --config demo.yaml
    python benchmarks/frozen.py --config cub200.yaml --config efficientnet_lite0.yaml --data.root DIR

Takes ``train.py``'s arguments. The run is a real one, in a temporary folder and without wandb. The floor is
measured right after it, in the same process: its loaders emptied without a network, and its backbone on as many
batches that lie in memory, at the run's own precision. What a run does beside that (features to disk and back,
PCA, Gram matrix, SVMs, metrics) is what the ratio shows.
"""

import os
import sys
import tempfile
import time

import torch
from measuring import machine
from rich.console import Console
from rich.table import Table

from cxlp.runs.arguments import find_configs
from cxlp.runs.cli import parse
from cxlp.runs.stages import Run
from cxlp.utils.errors import CxlpError

PHASES = ("extraction", "PCA", "pooling", "Gram matrix", "SVM", "test")


def main() -> None:
    """Run, measure the floor, print."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [*sys.argv[1:], f"--run.root={folder}", "--run.wandb=off", "--trainer.enable_progress_bar=false"]
        try:
            config = parse(find_configs(arguments))
            if config["trainer"]["max_epochs"]:
                raise CxlpError("this benchmark is of the frozen mode: leave finetune.yaml out")
            run = Run(config)
        except CxlpError as error:
            raise SystemExit(f"error: {error}") from error
        run.test(run.fit())
        decoding, forward = decoding_seconds(run), forward_seconds(run)
    times = {phase: run.times.get(phase, 0.0) for phase in PHASES}
    spent, floor = sum(times.values()), decoding + forward
    table = Table(title=f"{run.data.name}, {run.trainer.precision}", caption=f"{machine()}, torch {torch.__version__}")
    table.add_column("")
    table.add_column("seconds", justify="right")
    for phase, seconds in times.items():
        table.add_row(f"run: {phase}", f"{seconds:.2f}")
    table.add_row("run, all phases", f"{spent:.2f}")
    table.add_section()
    table.add_row("floor: decoding the same images once", f"{decoding:.2f}")
    table.add_row("floor: bare forward passes", f"{forward:.2f}")
    table.add_section()
    table.add_row("run / floor", f"{spent / floor:.2f}")
    Console().print(table)


def decoding_seconds(run: Run) -> float:
    """Seconds to empty the run's two loaders, without any network."""
    start = time.perf_counter()
    for loader in (run.data.train_dataloader(), run.data.test_dataloader()):
        for _ in loader:
            pass
    return time.perf_counter() - start


@torch.no_grad()
def forward_seconds(run: Run) -> float:
    """Seconds of the cut network over batches like the run's, in memory and normalised beforehand."""
    backbone = run.network.to(run.trainer.strategy.root_device).backbone.eval()  # which Lightning has left
    side, size = backbone.image_size, run.data.batch_size
    whole = torch.randn(size, 3, side, side, device=backbone.mean.device).contiguous(memory_format=torch.channels_last)
    batches = [whole]  # warms up
    for images in (run.data.splits["train"], run.data.splits["test"]):
        count, rest = divmod(len(images), size)
        batches += [whole] * count + ([whole[:rest]] if rest else [])
    start = 0.0
    with run.trainer.precision_plugin.forward_context():
        for i, batch in enumerate(batches):
            if i == 1:
                _wait()
                start = time.perf_counter()
            backbone.trunk(batch)
    _wait()
    return time.perf_counter() - start


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    os.environ.setdefault("WANDB_SILENT", "true")
    main()
