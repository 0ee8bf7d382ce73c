"""What ``cxlp`` can do: one file per command, which imports what takes time only where it runs."""

import glob
import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

from cxlp.data import DATA_MODULES
from cxlp.utils.errors import CxlpError

if TYPE_CHECKING:
    from cxlp.deploy.predictor import Predictor

#: The most that options can be: more processes or threads would only exhaust the machine.
MOST = {"workers": 1024}


def add_data_set(parser: ArgumentParser) -> None:
    """Add the arguments of commands that work on a data set: ``name`` and ``root``."""
    parser.add_argument(
        "name", metavar="DATA_SET", help=f"one of: {', '.join(DATA_MODULES)} (such as torchvision/Flowers102)"
    )
    parser.add_argument("--root", type=Path, metavar="DIR", help="its folder, or table (default: one in data/)")


def check_numbers(args: Namespace, **least: int) -> None:
    """Refuse options that are given and lie below the least value that they can have, or make no sense any more.

    Raises:
        CxlpError: Names the first one.
    """
    for name, minimum in least.items():
        value, most = getattr(args, name), MOST.get(name, 2**31 - 1)
        if value is not None and value < minimum:
            raise CxlpError(f"--{name.replace('_', '-')} is {value}: it must be {minimum} or more")
        if value is not None and value > most:
            raise CxlpError(f"--{name.replace('_', '-')} is {value}: it must be {most:,} or less")


def check_images(paths: Sequence[str]) -> None:
    """Refuse paths of images where there is not a single one, before torch is imported.

    Args:
        paths: Files, folders, patterns, or ``-``, as :func:`~cxlp.deploy.image_paths.image_paths` takes them.

    Raises:
        CxlpError: Names the first one.
    """
    if "-" not in paths and not any(os.path.lexists(path) or next(glob.iglob(path), None) for path in paths):  # noqa: PTH207
        raise CxlpError(f"image not found: {paths[0]}")


def check_out_file(out: Path, option: str = "--out") -> None:
    """Refuse a file that could not be written in the end.

    Raises:
        CxlpError: If its folder is missing or cannot be written into, or it is a folder itself.
    """
    try:
        if out.is_dir():
            raise CxlpError(f"{option} {out} is a folder: name a file")
        if not out.absolute().parent.is_dir():
            raise CxlpError(f"{option} {out}: there is no folder {out.parent}")
        if out.is_file() or not out.exists():  # else a pipe or a device, which is written to as it is
            with TemporaryFile(dir=out.resolve().parent):
                pass
    except (OSError, ValueError) as error:
        raise CxlpError(f"{option} {out} cannot be written: {getattr(error, 'strerror', error)}") from error


def warn_of_boxes(model: "Predictor") -> None:
    """Tell who uses a network that was trained on crops."""
    if model.boxes:
        print(  # noqa: T201
            "note: this network was trained on images cropped to boxes; these are taken whole: crop them first",
            file=sys.stderr,
        )
