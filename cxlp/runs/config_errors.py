"""Short words for what is wrong with a config, in place of the parser's long ones."""

import importlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentParser, Namespace

from cxlp.utils.errors import CxlpError, did_you_mean

_NO_CLASS = re.compile(
    r"Problem with given class_path '(?P<path>\S+)':\s+(?:No module named|module '\S+' has no attribute)"
    r"|Expected a dot import path string: (?P<word>\S+)"
)
_OTHER_CLASS = re.compile(r"Import path (?P<path>\S+) does not correspond to a subclass of (?P<base>\w+)")
_UNKNOWN = re.compile(
    r"unrecognized arguments: -*(?P<argument>[\w.]+)"
    r"|Option '(?P<option>[^']+)' is not accepted"
    r"|Group '(?P<group>[^']+)' does not accept option '(?P<member>[^']+)'"
)


def explain(parser: ArgumentParser, error: Exception, classes: Mapping[str, Sequence[str]]) -> str:
    """Say which key is wrong and what would be right.

    Args:
        parser: The whole parser.
        error: What it raised.
        classes: By key, such as ``data``: the paths of the classes that may stand there.

    Returns:
        One or two lines; the parser's own words where they fit no known kind.
    """
    text = str(error)
    inside = re.search(r'Parser key "(\w+)"', text)
    key = inside.group(1) if inside and inside.group(1) in classes else ""
    chosen = re.search(r"class_path '([\w.]+)'", text)
    if found := _UNKNOWN.search(text):
        part = found.groupdict()
        name = part["argument"] or part["option"] or f"{part['group']}.{part['member']}"
        if not key and name.split(".")[0] in classes:  # a class is chosen, its key is not known to the parser
            key, _, name = name.partition(".")
        name = name.removeprefix("init_args.")
        known = _keys_of_class(chosen.group(1)) if chosen and key else _keys(parser.get_defaults())
        owner = next((path for path in classes.get(key, ()) if _has_key(path, name)), None)
        if chosen and owner:
            return f"unknown key {key}.{name}: {chosen.group(1)} has none, {owner} has; choose it by {key}.class_path"
        return _unknown_key(f"{key}." if key else "", name, known)
    if key and (wrong := _NO_CLASS.search(text)):
        valid = ", ".join(classes[key])
        return f"{key}.class_path: there is no class {wrong['path'] or wrong['word']!r}. Valid: {valid}"
    if key and (wrong := _OTHER_CLASS.search(text)):
        return f"{key}.class_path: {wrong['path']} is no {wrong['base']}. Valid: {', '.join(classes[key])}"
    keys = re.findall(r'Parser key "([^"]+)"', text)
    if keys and (wrong := re.search(r"""Unable to load config ['"](.*)['"]""", text)):
        first = next(name for name in _keys(parser.get_defaults()) if name.startswith(f"{keys[-1]}."))
        return f"{keys[-1]} is {_shown(wrong[1])}: it is a group of keys, such as --{first}"
    expected = [e for e in re.findall(r"Expected an? (.+?)(?:\. Got value: .*)?$", text, re.M) if "NoneType" not in e]
    value = re.search(r"Got value: (.*)|val='(.*)'\)|Given value: (.*)", text)
    if keys and expected and value:
        where = ".".join([key, keys[-1]]) if key and keys[-1] != key else keys[-1]
        types = " or ".join(re.sub(r"typing\.|<class '(?:\w+\.)*(\w+)'>", r"\1", e) for e in dict.fromkeys(expected))
        given = next(v for v in value.groups() if v is not None)
        # the class itself may be null, too: one mention is about that
        null = " (or null)" if len(re.findall("Subtypes: .*NoneType", text)) > bool(key) else ""
        return f"{where} is {_shown(given)}: expected {types}{null}"
    return text


def _shown(value: str) -> str:
    return "null" if value in ("None", "null") else repr(value)


def refuse_nulls(config: Namespace, groups: Mapping[str, type]) -> None:
    """Refuse ``null`` where there must be a value; the parser lets it pass, as if nothing were given.

    Args:
        config: What was parsed.
        groups: By key: what is built of the group.

    Raises:
        CxlpError: Names the key and what is expected.
    """
    for key, built in groups.items():
        hints: dict[str, Any] = {}
        for base in reversed(built.__mro__):  # **common goes to a base
            hints |= _hints(base.__init__)  # type: ignore[misc]
        _refuse_nulls(config[key].get("init_args", config[key]), hints, key)


def _refuse_nulls(values: Namespace, hints: Mapping[str, Any], where: str) -> None:
    for name, value in vars(values).items():
        hint = hints.get(name, Any)
        if isinstance(value, Namespace) and is_dataclass(hint):
            _refuse_nulls(value, _hints(hint), f"{where}.{name}")
        elif value is None and hint is not Any and NoneType not in get_args(hint):
            types = get_args(hint) if get_origin(hint) in (Union, UnionType) else [hint]
            expected = " or ".join(str(t) if get_origin(t) else t.__name__ for t in types)
            expected = re.sub(r"typing\.|collections\.abc\.", "", expected)
            raise CxlpError(f"{where}.{name} is null: expected {expected}")


def _hints(annotated: Any) -> dict[str, Any]:  # noqa: ANN401 (a class or a function)
    try:
        return get_type_hints(annotated)
    except NameError:  # types that exist for type checkers only
        return {}


def _has_key(path: str, name: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for key in _keys_of_class(path))


def _unknown_key(prefix: str, name: str, known: list[str]) -> str:
    group = name.rpartition(".")[0]
    inside = f"{group}." if group else ""
    siblings = dict.fromkeys(k.removeprefix(inside).partition(".")[0] for k in known if k.startswith(inside))
    where = f"{prefix}{group}".rstrip(".")
    there = f" Valid{f' in {where}' if where else ''}: {', '.join(siblings)}." if siblings else ""
    return f"unknown key {prefix}{name}. {did_you_mean(prefix + name, [prefix + k for k in known], shown=3)}{there}"


def _keys_of_class(path: str) -> list[str]:
    module, _, name = path.rpartition(".")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(getattr(importlib.import_module(module), name))
    return _keys(parser.get_defaults())


def _keys(defaults: Namespace) -> list[str]:
    return [key for key, _ in defaults.items(branches=False)]
