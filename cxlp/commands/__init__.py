"""What ``cxlp`` can do: one file per command, which imports what takes time only where it runs."""

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from cxlp.data import DATA_MODULES
from cxlp.utils.errors import CxlpError

if TYPE_CHECKING:
    from cxlp.deploy.predictor import Predictor


def add_data_set(parser: ArgumentParser) -> None:
    """Add the arguments of commands that work on a data set: ``name`` and ``root``."""
    parser.add_argument("name", metavar="NAME", help=f"one of: {', '.join(DATA_MODULES)}")
    parser.add_argument("--root", type=Path, metavar="DIR", help="its folder (default: one in data/)")


def check_numbers(args: Namespace, **least: int) -> None:
    """Refuse options that are given and lie below the least value that they can have.

    Raises:
        CxlpError: Names the first one.
    """
    for name, minimum in least.items():
        value = getattr(args, name)
        if value is not None and value < minimum:
            raise CxlpError(f"--{name.replace('_', '-')} is {value}: it must be {minimum} or more")


def check_out_file(out: Path) -> None:
    """Refuse a file that could not be written in the end.

    Raises:
        CxlpError: If its folder is missing, or it is a folder itself.
    """
    if not out.absolute().parent.is_dir():
        raise CxlpError(f"--out {out}: there is no folder {out.parent}")
    if out.is_dir():
        raise CxlpError(f"--out {out} is a folder: name a file")


def warn_of_boxes(model: "Predictor") -> None:
    """Tell who uses a network that was trained on crops."""
    if model.boxes:
        print(  # noqa: T201
            "note: this network was trained on images cropped to boxes; these are taken whole: crop them first",
            file=sys.stderr,
        )
