"""One fine-tuning step of each head: the cost of cross-layer pooling relative to average pooling.

    python benchmarks/step.py
    python benchmarks/step.py --device cuda --rounds 10
    python benchmarks/step.py --precision 32 --batch 2 --heads cross-layer     # a processor without bfloat16

A step is a forward pass, a backward pass and an SGD update with momentum. The network is VGG-16 with random weights at
448 px (the layers of configs/vgg16.yaml, conv5_2 and conv5_3), 200 classes, and the images are in memory. The time of
the heads is measured alternately in one process, and their memory in a new process each. The baseline is average
pooling. The last row is cross-layer pooling with ``model.recompute``.

Apart from a few percent, the additional cost of the head does not depend on the batch size: weights, gradients and
momentum of the classifier (131,072 x 200 values, 315 MB) and their update. The ratios fall as the batch grows.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from measuring import in_fresh_process, machine, peak_bytes, reset_peak
from rich.console import Console
from rich.table import Table

from cxlp.backbones.backbone import Backbone
from cxlp.heads import AveragePooling, BilinearPooling, CovariancePooling, CrossLayerPooling, Head
from cxlp.models.network import Network
from cxlp.tasks.optim import OptimizerConfig, build_optimizer
from cxlp.utils.labels import classification_loss

BASELINE = "average pooling"
RECOMPUTED = "cross-layer, recomputed"


@dataclass(frozen=True)
class Sizes:
    """The network and the sizes of its inputs; the defaults are the network of configs/vgg16.yaml at 448 px."""

    name: str = "vgg16"
    layers: tuple[str, str] = ("features.26", "features.28")
    image: int = 448
    batch: int = 16
    pca: int = 256
    classes: int = 200
    threads: int = 2
    device: str = "cpu"
    precision: str = "bf16"


@dataclass
class Measured:
    """Seconds of each round, peak bytes of the process, and number of the head's parameters."""

    seconds: list[float]
    peak: int = 0
    head: int = 0


def heads(sizes: Sizes) -> dict[str, Head]:
    """Return the heads by name, the baseline first."""
    return {
        BASELINE: AveragePooling(),
        "cross-layer": CrossLayerPooling(pca_dim=sizes.pca),
        "bilinear": BilinearPooling(pca_dim=sizes.pca),
        "iSQRT-COV": CovariancePooling(pca_dim=sizes.pca),
        RECOMPUTED: CrossLayerPooling(pca_dim=sizes.pca),
    }


def build(name: str, sizes: Sizes) -> tuple[Network, Callable[[], None]]:
    """Return a network with momentum buffers, and a function that does one training step."""
    torch.manual_seed(0)
    backbone = Backbone(sizes.name, sizes.layers, weights=None, image_size=sizes.image)
    network = Network(backbone, heads(sizes)[name], sizes.classes)
    network.backbone.recompute = name == RECOMPUTED
    network.to(sizes.device).train()
    # The cost does not depend on learning rates. Small ones keep random weights from diverging.
    optimizer = build_optimizer(
        network, OptimizerConfig(backbone_lr=1e-6, projection_lr=1e-6, classifier_lr=1e-4), fused=True
    )
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # allocates the momentum buffers, which exist from the second step on
    optimizer.zero_grad()
    images = torch.randint(0, 256, (sizes.batch, 3, sizes.image, sizes.image), dtype=torch.uint8, device=sizes.device)
    labels = torch.arange(sizes.batch, device=sizes.device) % sizes.classes

    def step() -> None:
        half = torch.autocast(sizes.device, dtype=torch.bfloat16) if sizes.precision == "bf16" else nullcontext()
        with half:
            loss = classification_loss(network(images), labels)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()

    return network, step


def memory(name: str, sizes: Sizes) -> tuple[int, int]:
    """Measure the peak bytes of a step, and count the head's parameters. This function must run in a new process.

    On the CPU, the memory of the process with its libraries is subtracted. On both devices, the peak includes weights,
    gradients and momentum.
    """
    torch.set_num_threads(sizes.threads)
    build(name, replace(sizes, image=64, batch=1))[1]()  # loads the libraries
    libraries = reset_peak()
    network, step = build(name, sizes)
    reset_peak()  # forgets the fully connected layers, which building the backbone allocates and frees
    if sizes.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    step()
    head = sum(p.numel() for p in network.parameters()) - sum(p.numel() for p in network.backbone.parameters())
    return (peak_bytes() - libraries if sizes.device == "cpu" else torch.cuda.max_memory_allocated()), head


def measure(sizes: Sizes, rounds: int, names: Sequence[str]) -> dict[str, Measured]:
    """Measure the memory of each head, then the time of all heads alternately."""
    results = {}
    for name in dict.fromkeys([BASELINE, *names]):
        peak, head = in_fresh_process(memory, name, sizes)
        results[name] = Measured([], peak, head)
    torch.set_num_threads(sizes.threads)
    steps = {name: build(name, sizes)[1] for name in results}
    for number in range(rounds + 1):
        for name, step in steps.items():
            seconds = timed(step, sizes.device)
            if number:  # the first round is a warm-up
                results[name].seconds.append(seconds)
    return results


def timed(work: Callable[[], Any], device: str) -> float:
    """Measure the time of one call in seconds."""
    _wait(device)
    start = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - start


def ratio(own: Measured, base: Measured) -> float:
    """Return the median over rounds of the ratio of times: other load affects both times of a round."""
    return statistics.median(a / b for a, b in zip(own.seconds, base.seconds, strict=True))


def show(results: dict[str, Measured], sizes: Sizes) -> None:
    """Print the table."""
    base = results[BASELINE]
    where = torch.cuda.get_device_name() if sizes.device != "cpu" else f"{sizes.threads} threads, {machine()}"
    table = Table(
        title=f"one step: {sizes.name}, {sizes.batch} images of {sizes.image} px, {sizes.classes} classes, "
        f"{'bfloat16 autocast' if sizes.precision == 'bf16' else 'float32'}",
        caption=f"median (min - max) of {len(base.seconds)} rounds; x: ratio to average pooling (of times: median "
        f"over rounds); {where}, torch {torch.__version__}",
    )
    for column in ("", "ms", "x", "peak MB", "x", "head's parameters"):
        table.add_column(column, justify="right" if column else "left")
    for name, own in results.items():
        low, middle, high = (1e3 * f(own.seconds) for f in (min, statistics.median, max))
        table.add_row(
            name,
            f"{middle:.0f} ({low:.0f} - {high:.0f})",
            f"{ratio(own, base):.2f}",
            f"{own.peak / 1e6:.0f}",
            f"{own.peak / base.peak:.2f}" if base.peak > 0 else "-",
            f"{own.head:,}",
        )
    Console(width=None if Console().is_terminal else 140).print(table)


def main() -> None:
    """Parse the options, measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Sizes()
    parser.add_argument("--name", default=default.name, help=f"the backbone ({default.name})")
    parser.add_argument("--layers", nargs=2, default=default.layers, help="local features and guide")
    for name, text in (
        ("image", "side of the images, pixels"),
        ("batch", "batch size"),
        ("pca", "dimensions of a local feature after PCA"),
        ("classes", "number of classes"),
        ("threads", "number of processor threads"),
    ):
        value = getattr(default, name)
        parser.add_argument(f"--{name}", type=int, default=value, help=f"{text} ({value})")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument(
        "--precision", default=default.precision, choices=["32", "bf16"], help="bf16: autocast, like bf16-mixed"
    )
    known = list(heads(default))
    parser.add_argument(
        "--heads", nargs="*", default=known, choices=known, help="heads to compare with average pooling (all)"
    )
    parser.add_argument("--rounds", type=int, default=2, help="timed steps of each head, after a warm-up step (2)")
    parser.add_argument("--out", type=Path, help="write all numbers to this JSON file")
    options = vars(parser.parse_args())
    rounds, out, names = options.pop("rounds"), options.pop("out"), options.pop("heads")
    sizes = Sizes(**options | {"layers": tuple(options["layers"])})
    results = measure(sizes, rounds, names)
    show(results, sizes)
    if out:
        out.write_text(json.dumps({"sizes": asdict(sizes), **{k: asdict(v) for k, v in results.items()}}, indent=1))


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
