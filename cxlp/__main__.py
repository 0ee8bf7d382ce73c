# PYTHON_ARGCOMPLETE_OK (marks this program as one that argcomplete can complete)
"""The commands: ``cxlp COMMAND`` or, without an installation, ``python -m cxlp COMMAND``."""

import errno
import os
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cxlp import __version__
from cxlp.commands import (
    check,
    compare,
    dashboard,
    download,
    embed,
    explain,
    export,
    layers,
    predict,
    runs,
    test,
    train,
)
from cxlp.commands.completion import complete, is_asked
from cxlp.commands.parser import CommandParser
from cxlp.runs.arguments import KEYS
from cxlp.utils.errors import CxlpError
from cxlp.utils.processes import exit_status_of, raising_on_signals
from cxlp.utils.program import escape_unprintable_text, program, skip_collection_at_exit

#: Errors of a disk without space, or of a quota that is used up.
FULL = (errno.ENOSPC, errno.EDQUOT)
#: The commands, in the order of a typical workflow.
COMMANDS = (download, check, layers, train, test, runs, compare, dashboard, predict, embed, explain, export)


def main(args: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        args: Arguments; ``None``: those of the process.

    Returns:
        The exit status: 0 or another status that the command's ``--help`` lists; 2 after an error that the user can
        correct; 130, 143 or 129 after SIGINT (Ctrl-C), SIGTERM or SIGHUP; 141 if standard output is a pipe that its
        reader, such as ``head``, has closed.
    """
    escape_unprintable_text()
    skip_collection_at_exit()
    # Unlike python -m, the console script does not search the working directory, which may contain a user's heads.
    if not sys.flags.safe_path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    parser = CommandParser(
        prog=program(),
        description="Cross-convolutional-layer pooling: download data sets, train networks, and use trained networks.",
        epilog="examples:\n  %(prog)s download cub200\n  %(prog)s train --config cub200.yaml",
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"cxlp {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add_parser(name: str, **kwargs: Any) -> CommandParser:
        own = commands.add_parser(name, **kwargs)
        own.set_defaults(own=own)
        return own

    for command in COMMANDS:
        command.add(add_parser)
    parser.commands(list(commands.choices))
    if is_asked():
        with_keys = [name for name, each in commands.choices.items() if each.get_default("takes_more")]
        complete(parser, [commands.choices[name] for name in with_keys])
    chosen, rest = parser.parse_known_args(args)
    chosen.rest = rest
    if getattr(chosen, "takes_more", False):
        chosen.own.suggest(rest, KEYS)
    elif rest:
        chosen.own.unknown_option(next((arg for arg in rest if arg.startswith("--")), rest[0]))
    with raising_on_signals():
        try:
            status: int = chosen.run(chosen)
            if sys.stdout is not None:  # it is None if the shell has closed it
                sys.stdout.flush()  # here, because an error at exit could not be handled
            return status
        except CxlpError as error:
            print(f"error: {error}", file=sys.stderr)  # noqa: T201
            return 2
        except BrokenPipeError:
            _discard_output()
            return 141
        except OSError as error:
            if error.errno not in FULL:
                raise
            _discard_output()
            print(f"error: cannot write: {error.strerror}. Free space, and repeat the command", file=sys.stderr)  # noqa: T201
            return 2
        except BaseException as error:
            ended = exit_status_of(error)
            if ended is None:
                raise
            again = ". To continue, repeat the same command" if chosen.run is compare.run else ""
            print(f"{ended[1]}{again}", file=sys.stderr)  # noqa: T201
            return ended[0]


def _discard_output() -> None:
    """Redirect standard output to nowhere: Python flushes it at exit, which would fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
