"""``cxlp export``: export a checkpoint's network as ONNX or by ``torch.export``, and check the exported file."""

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

#: Maximum number of images that a check compares.
IMAGES = 32


def add(add_parser: Callable[..., ArgumentParser]) -> None:
    """Add the command."""
    parser = add_parser(
        "export",
        help="export a checkpoint as ONNX or by torch.export, and check the file",
        description="Write a checkpoint's network as a file for other runtimes. Its input is a batch of RGB images\n"
        "(B, 3, T, T) with any B; its output is one logit per class. Classes, T, the resizing, and the function\n"
        'that turns logits into probabilities are in its metadata, as JSON under "cxlp" (in a .pt2 file: the\n'
        'extra file "cxlp.json"). The file is then loaded, and its logits are compared with the network\'s;\n'
        "times are measured on this machine's CPU.\n"
        "Exit status: 0 the logits agree; 1 they do not; 2 the arguments are wrong.",
        epilog="ONNX needs three packages: pip install onnx onnxruntime onnxscript\n\n"
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
        help="type of the input: uint8 from 0 to 255 (the default), or float32 from 0 to 1",
    )
    parser.add_argument(
        "--check",
        group="check",
        nargs="+",
        metavar="PATH",
        help=f"images, folders or quoted patterns; the first {IMAGES} images are compared (default: drawn birds)",
    )
    parser.set_defaults(run=run)


def run(args: Namespace) -> int:
    """Run the command; return the exit status."""
    suffix = {"onnx": ".onnx", "torch": ".pt2"}[args.format]
    if args.out.suffix != suffix:
        raise CxlpError(f"--out {args.out}: with --format {args.format}, the name must end in {suffix}")
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
        f"largest difference of logits: {found.difference:.1e}, largest logit {found.largest:.2f} (tolerance "
        f"{found.tolerated:.1e}); the same predicted class for {found.same} of {found.images} {called}"
    )
    runtime = {"onnx": "onnxruntime", "torch": "exported program"}[args.format]
    print(f"one image: network {found.network_ms:.1f} ms, {runtime} {found.exported_ms:.1f} ms (medians)")  # noqa: T201
    if not found.passed:
        print("the exported file does NOT agree with the network: do not use it")  # noqa: T201
    return 0 if found.passed else 1


def _given(model: "Predictor", arguments: list[str]) -> tuple["Tensor", str]:
    import torch

    from cxlp.deploy.image_paths import image_paths

    paths = list(islice(image_paths(arguments, ()), IMAGES))
    if not paths:
        raise CxlpError(f"--check {' '.join(arguments)}: no images found")
    return torch.stack([model.picture(path) for path in paths]), "given images"


def _drawn(model: "Predictor") -> tuple["Tensor", str]:
    import numpy as np
    import torch

    from cxlp.data.demo.birds import SPECIES, draw_bird

    birds = [draw_bird(species, np.random.default_rng(k)) for k, species in enumerate(SPECIES)]
    return torch.stack([model.picture(bird) for bird in birds]), "drawn birds"
