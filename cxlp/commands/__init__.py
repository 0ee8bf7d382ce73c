"""What ``cxlp`` can do: one file per command, which imports what takes time only where it runs."""

from argparse import ArgumentParser
from pathlib import Path

from cxlp.data import DATA_MODULES


def add_data_set(parser: ArgumentParser) -> None:
    """Add the arguments of commands that work on a data set: ``name`` and ``root``."""
    parser.add_argument("name", metavar="NAME", help=f"one of: {', '.join(DATA_MODULES)}")
    parser.add_argument("--root", type=Path, metavar="DIR", help="its folder (default: one in data/)")
