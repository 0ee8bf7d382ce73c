"""The rest of a working day: ``python -m cxlp COMMAND``; see ``python -m cxlp --help``."""

import os
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence

from cxlp.commands import check, compare, download, explain, export, predict
from cxlp.utils.errors import CxlpError

#: The commands, in the order of a working day.
COMMANDS = (download, check, compare, predict, explain, export)


def main(args: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        args: Arguments; ``None``: those of the process.

    Returns:
        The exit status: the command's own, 0 or what its ``--help`` says; 2 where the user can mend
        something; 130 where the user interrupted; 141 where a pipe's reader went away, as of ``head``.
    """
    parser = ArgumentParser(
        prog="python -m cxlp",
        description="What belongs to cxlp besides training and testing (train.py).",
        epilog="examples:\n  python -m cxlp download cub200\n  python -m cxlp check cub200",
        formatter_class=RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add(commands.add_parser)
    chosen, rest = parser.parse_known_args(args)
    chosen.rest = rest
    if rest and not getattr(chosen, "takes_more", False):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        status: int = chosen.run(chosen)
    except CxlpError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 2
    except KeyboardInterrupt:
        resumable = getattr(chosen, "takes_more", False)  # a series of runs
        print(f"interrupted{'. Give the same command again: it goes on' * resumable}", file=sys.stderr)  # noqa: T201
        return 130
    except BrokenPipeError:
        # Nowhere to write to, also not for what Python flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return status


if __name__ == "__main__":
    sys.exit(main())
