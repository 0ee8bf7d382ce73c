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

from cxlp.runs.arguments import find_configs, nested_as_configs
from cxlp.runs.cli import CLI
from cxlp.runs.stages import train_and_test
from cxlp.tasks import Frozen
from cxlp.utils.errors import CxlpError

PHASES = ("extraction", "PCA", "pooling", "Gram matrix", "SVM", "test")


def main() -> None:
    """Run, measure the floor, print."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [*sys.argv[1:], f"--run.root={folder}", "--run.wandb=off", "--trainer.enable_progress_bar=false"]
        try:
            cli = CLI(nested_as_configs(find_configs(arguments)))
        except CxlpError as error:
            raise SystemExit(f"error: {error}") from error
        if not isinstance(cli.model, Frozen):
            raise SystemExit("error: this benchmark is of the frozen mode: leave finetune.yaml out")
        train_and_test(cli)
        decoding, forward = decoding_seconds(cli), forward_seconds(cli)
    times = {phase: cli.model.times.get(phase, 0.0) for phase in PHASES}
    run, floor = sum(times.values()), decoding + forward
    table = Table(
        title=f"{cli.datamodule.name}, {cli.trainer.precision}", caption=f"{machine()}, torch {torch.__version__}"
    )
    table.add_column("")
    table.add_column("seconds", justify="right")
    for phase, seconds in times.items():
        table.add_row(f"run: {phase}", f"{seconds:.2f}")
    table.add_row("run, all phases", f"{run:.2f}")
    table.add_section()
    table.add_row("floor: decoding the same images once", f"{decoding:.2f}")
    table.add_row("floor: bare forward passes", f"{forward:.2f}")
    table.add_section()
    table.add_row("run / floor", f"{run / floor:.2f}")
    Console().print(table)


def decoding_seconds(cli: CLI) -> float:
    """Seconds to empty the run's two loaders, without any network."""
    start = time.perf_counter()
    for loader in (cli.datamodule.train_dataloader(), cli.datamodule.test_dataloader()):
        for _ in loader:
            pass
    return time.perf_counter() - start


@torch.no_grad()
def forward_seconds(cli: CLI) -> float:
    """Seconds of the cut network over batches like the run's, in memory and normalised beforehand."""
    backbone = cli.model.network.backbone.eval()
    side: int = backbone.image_size
    size: int = cli.datamodule.batch_size
    whole = torch.randn(size, 3, side, side, device=backbone.mean.device).contiguous(memory_format=torch.channels_last)
    batches = [whole]  # warms up
    for split in ("train", "test"):
        count, rest = divmod(len(cli.datamodule.splits[split]), size)
        batches += [whole] * count + ([whole[:rest]] if rest else [])
    start = 0.0
    with cli.trainer.precision_plugin.forward_context():
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
