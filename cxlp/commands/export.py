"""``cxlp export``: a checkpoint as ONNX or ``torch.export``, checked against the network."""

from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from cxlp.commands import check_images, check_out_file
from cxlp.utils.errors import CxlpError
from cxlp.utils.files import find_checkpoint

if TYPE_CHECKING:
    from torch import Tensor

    from cxlp.deploy.predictor import Predictor

#: How many images a check compares.
IMAGES = 32


def add(add_parser: Callable[..., ArgumentParser]) -> None:
    """Add the command."""
    parser = add_parser(
        "export",
        help="a checkpoint as ONNX or torch.export, checked against the network",
        description="Write a checkpoint's network as a file for other runtimes: batches (B, 3, T, T) of any size in,\n"
        "RGB, and one logit per class out. Classes, T, how to resize, and what makes probabilities\n"
        'of logits are in its metadata, as JSON under "cxlp" (of a .pt2: the extra file "cxlp.json").\n'
        "The file is opened again and held against the network; sizes and times are of this machine's CPU.\n"
        "Exit status: 0 it computes the same; 1 it does not; 2 the arguments are wrong.",
        epilog="ONNX takes three packages: pip install onnx onnxruntime onnxscript\n\n"
        "examples:\n"
        "  %(prog)s runs/NAME/checkpoints/best.ckpt --out model.onnx --check photos/\n"
        "  %(prog)s best.ckpt --format torch --out model.pt2",
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="such as runs/NAME/checkpoints/best.ckpt, or runs/NAME"
    )
    parser.add_argument(
        "--out", group="output", type=Path, required=True, metavar="FILE", help="such as model.onnx or model.pt2"
    )
    parser.add_argument("--format", group="output", choices=("onnx", "torch"), default="onnx", help="default: onnx")
    parser.add_argument(
        "--input",
        group="output",
        choices=("uint8", "float32"),
        default="uint8",
        help="of the input: uint8 (default) of 0..255, or float32 of 0..1",
    )
    parser.add_argument(
        "--check",
        group="check",
        nargs="+",
        metavar="PATH",
        help=f"images, folders or quoted patterns to compare on, the first {IMAGES} (default: drawn birds)",
    )
    parser.set_defaults(run=run)


def run(args: Namespace) -> int:
    """Run the command; return the exit status."""
    suffix = {"onnx": ".onnx", "torch": ".pt2"}[args.format]
    if args.out.suffix != suffix:
        raise CxlpError(f"--out {args.out}: a file of --format {args.format} ends in {suffix}")
    check_out_file(args.out)
    find_checkpoint(args.checkpoint)
    if args.check is not None:
        check_images(args.check)

    from cxlp.deploy.export import check, export
    from cxlp.deploy.loading import load

    model = load(args.checkpoint)
    model.check_classes()
    images, called = _drawn(model) if args.check is None else _given(model, args.check)
    files = export(model, args.out, args.format, args.input)
    megabytes = sum(file.stat().st_size for file in files) / 1e6
    print(f"{' + '.join(map(str, files))}: {megabytes:.1f} MB")  # noqa: T201
    found = check(model, args.out, args.format, images, args.input)
    print(  # noqa: T201
        f"largest difference of logits: {found.difference:.1e} of {found.largest:.2f} (tolerance "
        f"{found.tolerated:.1e}); the same class on top of {found.same} of {found.images} {called}"
    )
    runtime = {"onnx": "onnxruntime", "torch": "exported program"}[args.format]
    print(f"one image: network {found.network_ms:.1f} ms, {runtime} {found.exported_ms:.1f} ms (medians)")  # noqa: T201
    if not found.passed:
        print("it does NOT compute the same: do not use it")  # noqa: T201
    return 0 if found.passed else 1


def _given(model: "Predictor", arguments: list[str]) -> tuple["Tensor", str]:
    import torch

    from cxlp.deploy.image_paths import image_paths

    paths = list(islice(image_paths(arguments, ()), IMAGES))
    if not paths:
        raise CxlpError("--check names no images")
    return torch.stack([model.picture(path) for path in paths]), "given images"


def _drawn(model: "Predictor") -> tuple["Tensor", str]:
    import numpy as np
    import torch

    from cxlp.data.demo.birds import SPECIES, draw_bird

    birds = [draw_bird(species, np.random.default_rng(k)) for k, species in enumerate(SPECIES)]
    return torch.stack([model.picture(bird) for bird in birds]), "drawn birds"
