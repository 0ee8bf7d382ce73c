"""The rest of a working day: ``python -m cxlp COMMAND``; see ``python -m cxlp --help``."""

import importlib
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from pathlib import Path

from cxlp.data import DATA_MODULES
from cxlp.errors import CxlpError, did_you_mean


def main(args: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        args: Arguments; ``None``: those of the process.

    Returns:
        The exit status: 0; 2 where the user can mend something; 130 where the user interrupted.
    """
    parser = ArgumentParser(
        prog="python -m cxlp",
        description="What belongs to cxlp besides training and testing (train.py).",
        epilog="example:\n  python -m cxlp download cub200",
        formatter_class=RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_download(commands.add_parser)
    chosen = parser.parse_args(args)
    try:
        chosen.run(chosen)
    except CxlpError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)  # noqa: T201
        return 130
    return 0


def _add_download(add_parser: Callable[..., ArgumentParser]) -> None:
    names = ", ".join(DATA_MODULES)
    parser = add_parser(
        "download",
        help="get a data set: fetched, verified, unpacked",
        description="Get a data set: fetched (an interrupted download goes on), verified, unpacked.\n"
        "Where it is there already, nothing is done. demo is drawn, not fetched; folder is yours and only read.",
        epilog="examples:\n"
        "  python -m cxlp download cub200\n"
        "  python -m cxlp download cub200 --root /disk/CUB_200_2011",
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", help=f"one of: {names}")
    parser.add_argument("--root", type=Path, metavar="DIR", help="its folder (default: one in data/)")
    parser.set_defaults(run=_download)


def _download(args: Namespace) -> None:
    if args.name not in DATA_MODULES:
        raise CxlpError(f"there is no data set {args.name!r}. {did_you_mean(args.name, DATA_MODULES)}")
    module_path, _, class_name = DATA_MODULES[args.name].rpartition(".")
    module_class = getattr(importlib.import_module(module_path), class_name)
    data = module_class(args.root) if args.root else module_class()
    data.prepare_data()
    _, samples = data.read()
    counts = " + ".join(f"{len(part):,} {split}" for split, part in samples.items())
    print(f"{data.name}: {counts} images in {data.root}")  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
