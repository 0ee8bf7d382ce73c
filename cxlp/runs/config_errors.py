"""Short words for what is wrong with a config, in place of the parser's long ones."""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import is_dataclass
from pydoc import locate
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentParser, Namespace

from cxlp.utils.errors import CxlpError, did_you_mean

_UNKNOWN_KEY = re.compile(
    r"unrecognized arguments: -*([\w.]+)|(?:Group '([^']+)' does not accept o|O)ption '([^']+)'(?: is not accepted)?"
)
_WRONG_CLASS = re.compile(
    r"class_path '(\S+)':\s+(?:No module|module '\S+' has no)|Import path (\S+) does not|dot import path string: (\S+)"
)
_VALUE = re.compile(r"Got value: (.*)|val='(.*)'\)|Given value: (.*)")


def explain(parser: ArgumentParser, error: Exception, classes: Mapping[str, Sequence[str]]) -> str:
    """Say which key is wrong and what would be right.

    Args:
        parser: The whole parser.
        error: What it raised.
        classes: By key (``model``, ``data``): the paths of the classes that may stand there.

    Returns:
        One or two lines; the parser's own words where they fit no known kind.
    """
    text = str(error)
    keys = re.findall(r'Parser key "([^"]+)"', text)
    place = keys[0] if keys and keys[0] in classes else ""
    if found := _UNKNOWN_KEY.search(text):
        name = ".".join(filter(None, found.groups()))
        chosen = re.search(r"class_path '([\w.]+)'", text)
        return _unknown_key(parser, f"{place}.{name}".strip("."), chosen.group(1) if chosen else "", classes)
    if place and (found := _WRONG_CLASS.search(text)):
        wrong = next(filter(None, found.groups()))
        return f"{place}.class_path is {wrong!r}, no class that can stand there. Valid: {', '.join(classes[place])}"
    expected = [e for e in re.findall(r"Expected an? (.+?)(?:\. Got value: .*)?$", text, re.M) if "NoneType" not in e]
    if keys and expected and (found := _VALUE.search(text)):
        where = f"{place}.{keys[-1]}" if place and keys[-1] != place else keys[-1]
        # the class itself may be null, too: one mention is about that
        null = " (or null)" if len(re.findall("Subtypes: .*NoneType", text)) > bool(place) else ""
        given = next(v for v in found.groups() if v is not None)
        return f"{where} is {given!r}: expected {' or '.join(map(_shown, dict.fromkeys(expected)))}{null}"
    return text


def _unknown_key(parser: ArgumentParser, key: str, chosen: str, classes: Mapping[str, Sequence[str]]) -> str:
    """Name the class that has such a key, or the keys nearest to it."""
    place, _, name = key.replace(".init_args.", ".").partition(".")
    if place in classes and chosen:
        owners = [path for path in classes[place] if any(f"{k}.".startswith(f"{name}.") for k in _keys_of_class(path))]
        if owners:
            return f"unknown key {place}.{name}: {chosen} has none, {owners[0]} has; choose it by {place}.class_path"
        known = [f"{place}.{k}" for k in _keys_of_class(chosen)]
    else:
        known = list(parser.get_defaults().keys())
    key = f"{place}.{name}".strip(".")
    group = key.rpartition(".")[0]
    siblings = [k.rpartition(".")[2] for k in known if k.rpartition(".")[0] == group]
    there = f" Valid{f' in {group}' if group else ''}: {', '.join(siblings)}." if siblings else ""
    return f"unknown key {key}. {did_you_mean(key, known, shown=3)}{there}"


def refuse_nulls(config: Namespace, classes: Mapping[str, Sequence[str]]) -> None:
    """Refuse ``null`` where there must be a value; the parser lets it pass, as if nothing were given.

    Args:
        config: What was parsed.
        classes: By key (``model``, ``data``): the paths of the classes that may stand there.

    Raises:
        CxlpError: Names the key and what is expected.
    """
    for place in classes:
        hints: dict[str, Any] = {}
        for base in reversed(_class(config[place]["class_path"]).__mro__):  # **common goes to a base
            with suppress(NameError):  # types that exist for type checkers only
                hints |= get_type_hints(base.__init__)
        if "init_args" in config[place]:
            _refuse_nulls(config[place]["init_args"], hints, place)


def _refuse_nulls(values: Namespace, hints: Mapping[str, Any], where: str) -> None:
    for name, value in vars(values).items():
        hint = hints.get(name, Any)
        types = get_args(hint) if get_origin(hint) in (Union, UnionType) else [hint]
        if isinstance(value, Namespace) and is_dataclass(hint):
            _refuse_nulls(value, get_type_hints(hint), f"{where}.{name}")
        elif value is None and not {Any, NoneType} & set(types):
            raise CxlpError(f"{where}.{name} is null: expected {' or '.join(map(_shown, types))}")


def _class(path: str) -> Any:  # noqa: ANN401 (any class)
    return locate(path)


def _keys_of_class(path: str) -> list[str]:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(_class(path))
    return list(parser.get_defaults().keys())


def _shown(hint: object) -> str:
    return re.sub(r"typing\.|collections\.abc\.|<class '(?:\w+\.)*(\w+)'>", r"\1", str(hint))
