"""``cxlp layers``: list the maps of a network that heads can pool, and rank pairs of them."""

import json
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from cxlp.commands import check_numbers
from cxlp.utils.errors import CxlpError, did_you_mean
from cxlp.utils.program import program

if TYPE_CHECKING:
    from rich.console import Console

    from cxlp.backbones.inventory import Layer

#: Number of layers that are listed without --all.
ROWS = 40
#: Width of the table if standard output is not a terminal, characters.
WIDTH = 200


def add(add_parser: Callable[..., ArgumentParser]) -> None:
    """Add the command."""
    parser = add_parser(
        "layers",
        help="list the layers of a network: channels, map sizes, strides, and pairs that can be pooled",
        description="List the layers of a network whose maps heads can pool, the last ones first, with random weights\n"
        "(nothing is downloaded). If an activation follows a layer, the backbone taps the layer after it, unless\n"
        "model.backbone.activation is before. Cross-layer pooling takes two layers with maps of the same size: a\n"
        "layer and a lower one. The column 'pair with' names the nearest lower layer on the path to the layer.\n"
        "--data ranks pairs of the last layers with the network's weights, by the cross-validated accuracy (or mean\n"
        "average precision, if images have several labels) of cross-layer pooling on some training images.\n"
        "The data set's validation and test images are not used. model.backbone.layers: auto ranks before a run.\n"
        "Exit status: 0; 2 the arguments are wrong.",
        epilog="examples:\n"
        "  %(prog)s resnet50\n"
        "  %(prog)s resnet50 --depth 2                        # blocks only, not the layers inside them\n"
        "  %(prog)s timm/vit_small_patch16_224 --filter 'blocks.1[01]*'\n"
        "  %(prog)s my_package.nets.trunk --image-size 448 --json\n"
        "  %(prog)s efficientnet_lite0 --data folder --root DIR",
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "name", metavar="NAME", help="a network of torchvision or timm, or the import path of your own network"
    )
    parser.add_argument(
        "--image-size",
        group="which layers",
        type=int,
        metavar="N",
        help="side of the images (default: the network's own)",
    )
    parser.add_argument(
        "--filter",
        group="which layers",
        metavar="TEXT",
        help="only layers whose name contains this text or matches this pattern",
    )
    parser.add_argument(
        "--depth", group="which layers", type=int, metavar="N", help="only layers whose name has at most N parts"
    )
    parser.add_argument(
        "--all", group="which layers", action="store_true", help=f"list all layers, not only the last {ROWS}"
    )
    parser.add_argument(
        "--json", group="output", action="store_true", help="print all layers as JSON, the lowest layer first"
    )
    group = "ranking pairs"
    parser.add_argument(
        "--data",
        group=group,
        metavar="DATA_SET",
        help="rank pairs of layers by cross-validation on some training images of this data set",
    )
    parser.add_argument(
        "--root", group=group, type=Path, metavar="DIR", help="folder of the data set, or file of a table"
    )
    parser.add_argument("--bbox", group=group, action="store_true", help="crop to the boxes (cub200)")
    parser.add_argument(
        "--images",
        group=group,
        type=int,
        metavar="N",
        help="approximate number of training images, with at least four of each class (default: 400)",
    )
    parser.add_argument(
        "--activation",
        group=group,
        choices=("after", "before", "both"),
        default="after",
        help="tap layers after the activation that follows them, before it, or in both ways (default: after)",
    )
    parser.add_argument(
        "--weights",
        group=group,
        default="default",
        metavar="FILE",
        help="file of weights, or none for random weights (default: the network's ImageNet weights)",
    )
    parser.set_defaults(run=run)


def run(args: Namespace) -> int:
    """Run the command; return the exit status."""
    check_numbers(args, image_size=1, depth=1, images=1)
    if args.data is not None:
        if args.filter is not None or args.all:
            raise CxlpError("--filter and --all do not apply to a ranking of pairs: leave out these or --data")
        from cxlp.commands.layer_ranking import rank

        return rank(args)
    given = args.root is not None or args.images is not None or args.bbox
    if given or args.weights != "default" or args.activation != "after":
        raise CxlpError("--root, --images, --bbox, --weights and --activation apply to a ranking of pairs: add --data")

    from dataclasses import asdict

    from rich.table import Table

    from cxlp.backbones.inventory import inventory

    layers, size = inventory(args.name, args.image_size, args.depth)
    chosen = layers if args.filter is None else [layer for layer in layers if _matches(layer, args.filter)]
    if not chosen:
        raise CxlpError(_none(args, [name for layer in layers for name in (layer.name, *layer.also)]))
    if args.json:
        found = {"name": args.name, "image_size": size, "layers": [asdict(layer) for layer in chosen]}
        print(json.dumps(found, indent=2))  # noqa: T201
        return 0
    table = Table("layer", "kind", title=f"{args.name}, images of {size} x {size} pixels, last layers first")
    for name in ("channels", "map", "stride"):
        table.add_column(name, justify="right")
    table.add_column("followed by")
    table.add_column("pair with")
    shown = chosen[::-1] if args.all else chosen[: -ROWS - 1 : -1]
    for layer in shown:
        map_size = f"{layer.side} x {layer.side}"
        table.add_row(
            layer.name, layer.kind, f"{layer.channels}", map_size, f"{layer.stride:g}", layer.activation, layer.below
        )
    console = table_console()
    console.print(table)
    if len(chosen) > len(shown):
        console.print(f"and {len(chosen) - len(shown):,} lower layers (--all lists them, --filter and --depth select)")
    ranked = f"{program()} layers {args.name} --data DATA_SET"
    console.print(f"to rank pairs: {ranked}; in a run: --model.backbone.layers auto")
    return 0


def table_console() -> "Console":
    """Return the console of a table, which wraps no name if standard output is a pipe."""
    from rich.console import Console

    return Console(highlight=False, markup=False, soft_wrap=True, width=None if sys.stdout.isatty() else WIDTH)


def _matches(layer: "Layer", text: str) -> bool:
    names = (layer.name, *layer.also)
    return any(text in name or fnmatchcase(name, text) for name in names)


def _none(args: Namespace, names: Sequence[str]) -> str:
    if not names:
        return f"{args.name} has no layer whose map is larger than 1 x 1" + (
            f" and whose name has at most {args.depth} parts" if args.depth else ""
        )
    return f"--filter {args.filter} matches no layer of {args.name}. {did_you_mean(args.filter, names)}"
