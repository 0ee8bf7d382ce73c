"""``cxlp train``: what ``train.py`` does."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable


def add(add_parser: Callable[..., ArgumentParser]) -> None:
    """Add the command."""
    # Its options, and --help with them, are those of the command line's own parser.
    parser = add_parser(
        "train", help="train and test, as train.py does; see train --help", add_help=False, allow_abbrev=False
    )
    parser.set_defaults(run=run, takes_more=True)


def run(args: Namespace) -> int:
    """Run the command; return the exit status."""
    from cxlp.cli import main

    return main(args.rest)
