"""Shell completion of commands, keys, values, configs, data sets and runs by argcomplete, without importing torch.

Each time the user presses TAB, the shell starts the program with ``_ARGCOMPLETE`` in its environment.
docs/completion.md describes the setup.
"""

import os
import shlex
import sys
from argparse import SUPPRESS, Action, ArgumentError, ArgumentParser
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import NoneType
from typing import Any, cast, get_args

from cxlp.data import DATA_MODULES
from cxlp.data.torchvision_sets import DATA_SETS
from cxlp.runs.arguments import CLASSES, CONFIGS, SEARCH
from cxlp.runs.early import known_options
from cxlp.runs.places import STARTS

#: Metavar that marks the keys of ``train.py``, so that :func:`_values` recognises them.
_KEY = "VALUE"
#: Keys whose values are files or folders.
_PATHS = ("data.root", "data.table", "model.backbone.weights", "model.frozen.store", "run.refit", "run.root")


def is_asked() -> bool:
    """Return whether a shell started this process to complete a line."""
    return "_ARGCOMPLETE" in os.environ


def complete(parser: ArgumentParser, takes_keys: Sequence[ArgumentParser]) -> None:
    """Print the completions for the shell, and exit.

    Args:
        parser: The parser of the whole command line.
        takes_keys: The parsers that also accept keys of ``train.py``: ``parser`` itself, or some of its commands.
    """
    try:
        import argcomplete
    except ImportError:
        sys.exit(1)  # the shell uses the argcomplete of another environment
    asked = os.environ.pop("_ARGCOMPLETE")  # else jsonargparse's parsers, which check values, would answer, too
    kinds = known_options(_words(os.environ.get("COMP_LINE", "")))
    os.environ["_ARGCOMPLETE"] = asked
    for taking in takes_keys:
        taking.add_argument("-c", "--config", action="append", metavar=_KEY, dest="config")
        for key in kinds:
            with suppress(ArgumentError):  # --config exists already, and compare has its own --seeds
                taking.add_argument(f"--{key}", metavar=_KEY, dest=key, default=SUPPRESS)

    def values(prefix: str, action: Action, parser: ArgumentParser, **_: Any) -> list[str]:
        suggested = _values(action, parser, kinds)
        if suggested is not None:
            return list(suggested)
        return list(argcomplete.completers.FilesCompleter()(prefix=prefix))

    argcomplete.autocomplete(parser, always_complete_options=False, default_completer=cast(Any, values))


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError:  # an unclosed quotation mark
        return line.split()


def _values(action: Action, parser: ArgumentParser, kinds: dict[str, Any]) -> Iterator[str] | Sequence[str] | None:
    """Return the possible values of an argument; ``None`` if it is the name of a file."""
    if action.metavar == _KEY:
        return _values_of_key(action.dest, kinds.get(action.dest))
    match action.metavar:
        case "CHECKPOINT":
            return [*_runs(), *map(str, Path().glob("*.ckpt"))]
        case "CHECKPOINT_OR_CONFIG":
            return [*_runs(), *_configs()]
        case "CONFIG":
            return [*_configs(), "none"]
        case "DATA_SET":
            return list(DATA_MODULES)
        case "NAME" if parser.prog.endswith(" runs"):
            return [name.partition("/")[2] for name in _runs()]
        case "PATH" | "IMAGE" | "DIR" | "FILE":
            return None
    return ()


def _values_of_key(key: str, kind: Any) -> Iterator[str] | Sequence[str] | None:  # noqa: ANN401 (a type)
    match key:
        case "config":
            return [*_configs(), *map(str, Path().glob("*.yaml"))]
        case "data":
            return list(DATA_MODULES)
        case "data.name":
            return list(DATA_SETS)
        case "model.head":
            return [path.rpartition(".")[2] for path in CLASSES[key]]
        case "model.start":
            return [*STARTS, *_runs()]
        case "ckpt_path":
            return list(_runs())
    if key in _PATHS:
        return None
    values = list(_values_of_kind(kind))
    return [] if values == ["null"] else values  # a single completion, null, would be inserted without asking


def _values_of_kind(kind: Any) -> Iterator[str]:  # noqa: ANN401 (a type, or a value of a Literal)
    if kind is bool:
        yield from ("true", "false")
    elif kind in (None, NoneType):
        yield from () if kind is None else ("null",)
    elif get_args(kind):
        for part in get_args(kind):
            yield from _values_of_kind(part)
    elif not isinstance(kind, type):
        yield str(kind)


def _configs() -> list[str]:
    return sorted(path.name for path in CONFIGS.glob("*.yaml") if path.name != SEARCH)


def _runs() -> Iterator[str]:
    """Yield the runs in ``runs/`` that have checkpoints as ``runs/NAME``, or as ``runs/SERIES/NAME`` in a series."""
    for pattern in ("*/checkpoints", "*/*/checkpoints"):
        yield from (path.parent.as_posix() for path in sorted(Path("runs").glob(pattern)))
