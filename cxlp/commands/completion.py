"""Shell completion: commands, keys, values, configs, data sets and runs, by argcomplete and without torch.

At each press of TAB the shell starts the program with ``_ARGCOMPLETE`` in its environment; docs/completion.md says how
to set it up.
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

#: Metavar of keys of ``train.py``, by which their values are recognised.
_KEY = "VALUE"
#: Keys whose values are files or folders.
_PATHS = ("data.root", "data.table", "model.backbone.weights", "model.frozen.store", "run.refit", "run.root")


def is_asked() -> bool:
    """Whether a shell has started this process to complete a line."""
    return "_ARGCOMPLETE" in os.environ


def complete(parser: ArgumentParser, takes_keys: Sequence[ArgumentParser]) -> None:
    """Answer the shell, and end the process.

    Args:
        parser: Of the whole command line.
        takes_keys: The parser itself, or those of its commands, that also take keys of ``train.py``.
    """
    try:
        import argcomplete
    except ImportError:
        sys.exit(1)  # another environment's argcomplete asks: there is nothing that can be answered
    asked = os.environ.pop("_ARGCOMPLETE")  # jsonargparse's parsers, which look at values, would answer, too
    kinds = known_options(_words(os.environ.get("COMP_LINE", "")))
    os.environ["_ARGCOMPLETE"] = asked
    for taking in takes_keys:
        taking.add_argument("-c", "--config", action="append", metavar=_KEY, dest="config")
        for key in kinds:
            with suppress(ArgumentError):  # --config is there, and compare has --seeds of its own
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
    except ValueError:  # a quotation that is not closed yet
        return line.split()


def _values(action: Action, parser: ArgumentParser, kinds: dict[str, Any]) -> Iterator[str] | Sequence[str] | None:
    """What may stand for an argument; ``None``: the name of a file."""
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
    return [] if values == ["null"] else values  # of a number or a text, null alone would be typed unasked


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
    """The runs of the working directory that have checkpoints, as ``runs/NAME``, and those of series."""
    for pattern in ("*/checkpoints", "*/*/checkpoints"):
        yield from (path.parent.as_posix() for path in sorted(Path("runs").glob(pattern)))
