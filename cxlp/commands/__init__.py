"""The commands of ``cxlp``, one file each, and checks that several of them share.

Each command imports slow packages, such as torch, only when it runs.
"""

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

#: Upper bounds of options: more processes or threads would only exhaust the machine.
UPPER_BOUNDS = {"workers": 1024}


def add_data_set(parser: ArgumentParser) -> None:
    """Add the arguments ``name`` and ``--root`` of commands that work on a data set."""
    parser.add_argument(
        "name", metavar="DATA_SET", help=f"one of: {', '.join(DATA_MODULES)} (such as torchvision/Flowers102)"
    )
    parser.add_argument("--root", type=Path, metavar="DIR", help="its folder or table (default: a folder in data/)")


def check_numbers(args: Namespace, **least: int) -> None:
    """Check that integer options lie within their bounds.

    Args:
        args: Parsed arguments; options that are ``None`` are not checked.
        least: The smallest valid value of each option. The largest one is in :data:`UPPER_BOUNDS`, or 2^31 - 1.

    Raises:
        CxlpError: For the first option that is out of bounds.
    """
    for name, minimum in least.items():
        value, maximum = getattr(args, name), UPPER_BOUNDS.get(name, 2**31 - 1)
        if value is not None and value < minimum:
            raise CxlpError(f"--{name.replace('_', '-')} is {value}: it must be {minimum} or more")
        if value is not None and value > maximum:
            raise CxlpError(f"--{name.replace('_', '-')} is {value}: it must be {maximum:,} or less")


def check_images(paths: Sequence[str]) -> None:
    """Check, before torch is imported, that at least one path of images exists.

    Args:
        paths: Files, folders, patterns, or ``-``, as :func:`~cxlp.deploy.image_paths.image_paths` takes them.

    Raises:
        CxlpError: If none exists; the message names the first path.
    """
    if "-" not in paths and not any(os.path.lexists(path) or next(glob.iglob(path), None) for path in paths):  # noqa: PTH207
        raise CxlpError(f"image not found: {paths[0]}")


def check_out_file(out: Path, option: str = "--out") -> None:
    """Check before the work begins that an output file can be written.

    Raises:
        CxlpError: If the path is a folder, or its parent folder is missing or not writable.
    """
    try:
        if out.is_dir():
            raise CxlpError(f"{option} {out} is a folder: name a file")
        if not out.absolute().parent.is_dir():
            raise CxlpError(f"{option} {out}: there is no folder {out.parent}")
        if out.is_file() or not out.exists():  # pipes and devices are opened directly
            with TemporaryFile(dir=out.resolve().parent):
                pass
    except (OSError, ValueError) as error:
        raise CxlpError(f"{option} {out} cannot be written: {getattr(error, 'strerror', error)}") from error


def warn_about_boxes(model: "Predictor") -> None:
    """Warn on stderr if the network was trained on images that were cropped to boxes."""
    if model.boxes:
        print(  # noqa: T201
            "note: this network was trained on images cropped to boxes, but these images are used whole: "
            "crop them first",
            file=sys.stderr,
        )
