"""``cxlp download``: download, verify and unpack a data set."""

from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable

from cxlp.commands import add_data_set
from cxlp.data import data_module


def add(add_parser: Callable[..., ArgumentParser]) -> None:
    """Add the command."""
    parser = add_parser(
        "download",
        help="download, verify and unpack a data set",
        description="Download, verify and unpack a data set. An interrupted download is continued. If the data set is\n"
        "complete already, nothing is done. demo is drawn instead of downloaded; folder and table are your own\n"
        "images, which are only read.",
        epilog="examples:\n  %(prog)s cub200\n  %(prog)s cub200 --root /disk/CUB_200_2011",
        formatter_class=RawDescriptionHelpFormatter,
    )
    add_data_set(parser)
    parser.set_defaults(run=run)


def run(args: Namespace) -> int:
    """Run the command; return the exit status."""
    data = data_module(args.name, args.root)
    data.prepare_data()
    _, samples = data.read()
    counts = " + ".join(f"{len(part):,} {split}" for split, part in samples.items())
    print(f"{data.name}: {counts} images in {data.root}")  # noqa: T201
    return 0
