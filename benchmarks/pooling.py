"""The pooling operator compared with its textbook form and with one matrix product of the same size.

    python benchmarks/pooling.py
    python benchmarks/pooling.py --device cuda --batch 64

The textbook form extracts all sub-arrays (``unfold``), projects them by a matrix product, and sums
over places (``einsum``). The plain product, ``(B N, C r r) @ (C r r, p)``, is the larger part of the
arithmetic: the projection of sub-arrays that are already in memory.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from measuring import in_fresh_process, machine, peak_bytes, reset_peak
from rich.console import Console
from rich.table import Table
from torch import Tensor

from cxlp.heads.operator import cross_layer_pooling


@dataclass(frozen=True)
class Sizes:
    """The sizes of the inputs; the defaults are the paper's CL-45."""

    batch: int = 16
    channels: int = 384
    guides: int = 256
    map: int = 13
    size: int = 3
    pca: int = 500
    threads: int = 2
    device: str = "cpu"
    dtype: str = "float32"
    memory_format: str = "channels_last"


@dataclass
class Measured:
    """Seconds of each repetition, and peak memory in bytes without the inputs."""

    forward: list[float]
    both: list[float]
    forward_bytes: int = 0
    both_bytes: int = 0


def ours(local: Tensor, guide: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Compute one convolution and one batched matrix product."""
    return cross_layer_pooling(local, guide, weight, bias)


def textbook(local: Tensor, guide: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Extract sub-arrays, project them, and sum over places, as the paper defines it."""
    local, guide = _full(local), _full(guide)
    edge = weight.shape[-1] // 2
    vectors = F.unfold(local, weight.shape[-1]).transpose(1, 2)  # (B, N, C r r)
    projected = vectors @ _full(weight).flatten(1).T + _full(bias)  # (B, N, p)
    side_h, side_w = guide.shape[-2:]
    centres = guide[..., edge : side_h - edge, edge : side_w - edge].flatten(2)  # (B, K, N)
    return torch.einsum("bkn,bnp->bkp", centres, projected)


def plain_product(vectors: Tensor, basis: Tensor) -> Tensor:
    """Compute ``(B N, C r r) @ (C r r, p)``."""
    return vectors @ basis


VARIANTS: dict[str, Callable[..., Tensor]] = {"cxlp": ours, "textbook": textbook, "plain product": plain_product}


def inputs(name: str, sizes: Sizes) -> list[Tensor]:
    """Create random inputs of a variant, which require gradients. Both forms of pooling have the same inputs."""
    dtype: torch.dtype = getattr(torch, sizes.dtype)
    random = torch.Generator().manual_seed(0)
    d, side = sizes.channels * sizes.size**2, sizes.map - sizes.size + 1
    if name == "plain product":
        tensors = [
            torch.rand(sizes.batch * side**2, d, generator=random),
            torch.randn(d, sizes.pca, generator=random) / d**0.5,
        ]
    else:
        maps = [
            torch.rand(sizes.batch, c, sizes.map, sizes.map, generator=random) for c in (sizes.channels, sizes.guides)
        ]
        layout = torch.channels_last if sizes.memory_format == "channels_last" else torch.contiguous_format
        tensors = [
            *(m.contiguous(memory_format=layout) for m in maps),
            torch.randn(sizes.pca, sizes.channels, sizes.size, sizes.size, generator=random) / d**0.5,
            torch.randn(sizes.pca, generator=random),
        ]
    return [t.to(sizes.device, dtype).requires_grad_() for t in tensors]


def forward(name: str, tensors: Sequence[Tensor]) -> Tensor:
    """Compute a forward pass without gradients."""
    with torch.no_grad():
        return VARIANTS[name](*tensors)


def forward_backward(name: str, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Compute a forward pass and the gradients of all inputs."""
    result = VARIANTS[name](*tensors)
    return torch.autograd.grad(result, list(tensors), torch.ones_like(result))


def check_equal(sizes: Sizes) -> None:
    """Exit with an error message unless both forms compute the same values and gradients."""
    tensors = inputs("cxlp", sizes)
    halves = sizes.dtype in ("bfloat16", "float16")
    for step in (forward, forward_backward):
        results = [step(name, tensors) for name in ("cxlp", "textbook")]
        pairs = zip(*(r if isinstance(r, tuple) else (r,) for r in results), strict=True)
        for one, other in pairs:
            error = float((one.double() - other.double()).abs().max() / other.double().abs().max())
            if error > (1e-2 if halves else 1e-4):
                raise SystemExit(f"the two forms differ by {error:.1e} of the largest value in {step.__name__}")


def timed(work: Callable[[], object], device: str) -> float:
    """Measure the time of one call in seconds."""
    _wait(device)
    start = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - start


def peak_memory(name: str, sizes: Sizes, backward: bool) -> int:
    """Measure the peak bytes of one call without its inputs. For the CPU, this function must run in a new process."""
    torch.set_num_threads(sizes.threads)
    step = forward_backward if backward else forward
    small = Sizes(2, 8, 8, sizes.size + 2, sizes.size, 4, sizes.threads, sizes.device, sizes.dtype)
    step(name, inputs(name, small))  # loads the libraries
    tensors = inputs(name, sizes)
    if sizes.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(name, tensors)
        return torch.cuda.max_memory_allocated() - before
    before = reset_peak()
    step(name, tensors)
    return peak_bytes() - before


def measure(sizes: Sizes, repetitions: int) -> dict[str, Measured]:
    """Measure the time of all variants alternately, then their memory."""
    torch.set_num_threads(sizes.threads)
    tensors = {name: inputs(name, sizes) for name in VARIANTS}
    results = {name: Measured([], []) for name in VARIANTS}
    for repetition in range(repetitions + 2):
        for name, result in results.items():
            seconds = timed(lambda name=name: forward(name, tensors[name]), sizes.device)  # type: ignore[misc]
            both = timed(lambda name=name: forward_backward(name, tensors[name]), sizes.device)  # type: ignore[misc]
            if repetition >= 2:  # the first two are a warm-up
                result.forward.append(seconds)
                result.both.append(both)
    for name, result in results.items():
        result.forward_bytes = in_fresh_process(peak_memory, name, sizes, False)
        result.both_bytes = in_fresh_process(peak_memory, name, sizes, True)
    return results


def show(results: dict[str, Measured], sizes: Sizes, console: Console) -> None:
    """Print the table."""
    side = sizes.map - sizes.size + 1
    d = sizes.channels * sizes.size**2
    table = Table(
        title=f"{sizes.batch} images, maps {sizes.map}x{sizes.map}, {sizes.channels} -> {sizes.guides} channels, "
        f"sub-arrays {sizes.size}x{sizes.size} ({side**2} x {d}), PCA {sizes.pca}",
        caption=f"median (min - max) of {len(results['cxlp'].forward)} calls; memory: peak without the inputs; "
        f"x: ratio to cxlp\n{sizes.dtype}, {sizes.memory_format}, "
        + (torch.cuda.get_device_name() if sizes.device != "cpu" else f"{sizes.threads} threads, {machine()}")
        + f", torch {torch.__version__}",
    )
    table.add_column("")
    for column in ("forward ms", "x", "forward + backward ms", "x", "forward MB", "x", "forward + backward MB", "x"):
        table.add_column(column, justify="right")
    reference = results["cxlp"]
    for name, result in results.items():
        cells = []
        for own, base in ((result.forward, reference.forward), (result.both, reference.both)):
            median = statistics.median(own)
            cells += [
                f"{1e3 * median:.1f} ({1e3 * min(own):.1f} - {1e3 * max(own):.1f})",
                f"{median / statistics.median(base):.2f}",
            ]
        for bytes_, base_bytes in (
            (result.forward_bytes, reference.forward_bytes),
            (result.both_bytes, reference.both_bytes),
        ):
            cells += [f"{bytes_ / 1e6:.1f}", f"{bytes_ / base_bytes:.2f}" if base_bytes > 0 else "-"]
        table.add_row(name, *cells)
    console.print(table)


def main() -> None:
    """Parse the options, measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Sizes()
    for name, text in (
        ("batch", "batch size"),
        ("channels", "channels of the lower map"),
        ("guides", "channels of the upper map"),
        ("map", "side of the maps"),
        ("size", "side of a sub-array"),
        ("pca", "dimensions of a local feature after PCA"),
        ("threads", "number of processor threads"),
    ):
        value = getattr(default, name)
        parser.add_argument(f"--{name}", type=int, default=value, help=f"{text} ({value})")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64", "bfloat16", "float16"])
    parser.add_argument(
        "--memory-format",
        default="channels_last",
        choices=["channels_last", "contiguous"],
        help="memory format of the maps; cxlp's backbones return channels_last",
    )
    parser.add_argument("--repetitions", type=int, default=15, help="timed calls of each variant (15)")
    parser.add_argument("--out", type=Path, help="write all numbers to this JSON file")
    options = vars(parser.parse_args())
    repetitions, out = options.pop("repetitions"), options.pop("out")
    sizes = Sizes(**options)
    check_equal(sizes)
    console = Console(width=None if Console().is_terminal else 160)
    console.print("values and gradients of both forms are equal")
    results = measure(sizes, repetitions)
    show(results, sizes, console)
    if out:
        out.write_text(json.dumps({"sizes": asdict(sizes), **{k: asdict(v) for k, v in results.items()}}, indent=1))


def _full(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
