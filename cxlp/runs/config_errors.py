"""Short words for what is wrong with a config, in place of the parser's long ones."""

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from math import isfinite
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentParser, Namespace

from cxlp.utils.errors import CxlpError, nearest
from cxlp.utils.importing import import_object
from cxlp.utils.sources import keys_of, options_of

_PROBLEM = re.compile(r"^( *)- Problem with given class_path '(?P<path>\S+)':\n(?P<inside>(?:\1 +\S.*\n?)+)", re.M)
_NO_CLASS = re.compile(r"No module named|module '\S+' has no attribute")
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
    key = next((key for key in classes if text.startswith(f'Parser key "{key}":')), None)
    if key is not None:
        return _explain_class(key, text, classes[key])
    known = _keys(parser.get_defaults())
    name = _unknown(text)
    said = unknown_key("", name, known) if name else wrong_value(text, "", known)
    return said or " ".join(text.split())


def _explain_class(key: str, text: str, valid: Sequence[str]) -> str:
    """Say what is wrong with a class, or with one of its options."""
    one_of = _one_of(valid)
    problem = _PROBLEM.search(text)
    inside = problem["inside"] if problem else ""
    word = re.search(r"Expected a dot import path string: (.*)", text)
    if word or _NO_CLASS.search(inside):
        wrong, why = (word[1], "") if word else (problem["path"], f" ({inside.strip()})")  # type: ignore[index]
        if "." in wrong and not wrong.startswith("cxlp."):
            try:
                import_object(wrong, key)
            except CxlpError as error:
                return str(error)
        return no_class(key, wrong, valid, why)
    if problem is None:
        base = re.search(r"subclass of (\w+)", text)
        given = re.search(r"\n  Given value: (?:NestedArg\(key='class_path', val='(.*)'\)|(.*))$", text)
        if "is abstract" in text and given is not None:
            return f"{key}: {_shown(given[1] or given[2])} is abstract, the base of other classes. {one_of}"
        if base is None or given is None:
            return text
        return f"{key}: {_shown(given[1] or given[2])} is no {base[1]}. {one_of}"
    unknown = _unknown(inside)
    if unknown == "class_path":
        return f"{key}: options that stand beside class_path belong below init_args"
    if unknown:
        return unknown_option(key, problem["path"], unknown, valid)
    return wrong_value(inside, f"{key}.", _keys_of_class(problem["path"])) or text


def no_class(key: str, wrong: str, valid: Sequence[str], why: str = "") -> str:
    """Say that there is no such class, and which one may be meant.

    Args:
        key: Where it was named, such as ``data``.
        wrong: Its name.
        valid: The paths of the classes that may stand there.
        why: What importing it said.
    """
    names = [_short(path) for path in valid]
    near = wrong.rpartition(".")[2].lower()
    spelled = {part.lower(): name for name in names for part in (name[: len(near)], name)}  # long names: begun
    close = nearest(near, spelled)
    hint = f" Did you mean {spelled[close]!r}?" if close else ""
    return f"{key}: there is no class {wrong!r}{why}.{hint} {_one_of(valid)}"


def unknown_option(key: str, path: str, name: str, valid: Sequence[str]) -> str:
    """Say that a class has no such option, and which other class has it, or which option may be meant.

    Args:
        key: Where the class stands, such as ``data``.
        path: The class's.
        name: The option.
        valid: The paths of the classes that may stand there.
    """
    known = _keys_of_class(path)
    owners = [_short(other) for other in valid if _has_key(other, name)]
    if not owners:
        return unknown_key(f"{key}.", name, known)
    options = ", ".join(dict.fromkeys(option.partition(".")[0] for option in known))
    others = f"{', '.join(owners)} {'has' if len(owners) == 1 else 'have'} it: choose by {key}"
    return f"unknown key {key}.{name}: {_short(path)} has no such option ({others}). Valid in {key}: {options}."


def wrong_value(text: str, prefix: str, known: list[str]) -> str | None:
    """Say what is wrong with a value by the parser's words; ``None``: it is of no known kind.

    Args:
        text: What the parser said.
        prefix: Of the keys in it.
        known: All keys.
    """
    keys = re.findall(r'Parser key "([^"]+)"', text)
    if keys and (wrong := re.search(r"""Unable to load config ['"](.*)['"]""", text)):
        first = next(name for name in known if name.startswith(f"{keys[-1]}."))
        return f"{prefix}{keys[-1]} is {_shown(wrong[1])}: it is a group of keys, such as --{prefix}{first}"
    expected = [e for e in re.findall(r"Expected an? (.+?)(?:\. Got value: .*)?$", text, re.M) if "NoneType" not in e]
    value = re.search(r"Got value: (.*)|val='(.*)'\)|Given value: (.*)", text)
    if keys and expected and value:
        words = [word for e in dict.fromkeys(expected) for word in _words_of(e)]
        named = [str(word) for e in dict.fromkeys(expected) for word in _words_of(e) if _is_literal(e)]
        types = _one_of_words(words)
        given = next(v for v in value.groups() if v is not None)
        if types == "tuple" and given.startswith("{"):
            return f"{prefix}{keys[-1]} is one thing: expected a list of such; put it in brackets, [{given}]"
        null = " (or null)" if re.search("Subtypes: .*NoneType", text) else ""
        close = nearest(given, named)
        hint = f". Did you mean {close!r}?" if close else ""
        return f"{prefix}{keys[-1]} is {_shown(given)}: expected {types}{null}{hint}"
    return None


def _one_of_words(words: Sequence[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 2 else words)


def _is_literal(expected: str) -> bool:
    return expected.removeprefix("typing.").startswith("Literal[")


def _words_of(expected: str) -> list[str]:
    """The name of a type as the parser has it, or the values of a ``Literal``."""
    if _is_literal(expected):
        return [str(value) for value in ast.literal_eval(expected.removeprefix("typing.").removeprefix("Literal"))]
    return [re.sub(r"typing\.|<class '(?:\w+\.)*(\w+)'>", r"\1", expected)]


def _unknown(text: str) -> str | None:
    """The key that a class or group does not know, by its place there."""
    found = _UNKNOWN.search(text)
    if found is None:
        return None
    name = found["argument"] or found["option"] or f"{found['group']}.{found['member']}"
    return name.removeprefix("init_args.")


def _one_of(valid: Sequence[str]) -> str:
    return f"Valid: {', '.join(map(_short, valid))}, or the import path of a class of your own"


def _short(path: str) -> str:
    """A class's name, by which the command line knows those of cxlp; the import path of others."""
    return path.rpartition(".")[2] if path.startswith("cxlp.") else path


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
        check_group(key, config[key])
        _refuse_nulls(config[key].get("init_args", config[key]), _hints_of_class(built), key)


def refuse_infinite(config: Namespace) -> None:
    """Refuse numbers that are not finite: no option takes such, and comparisons with NaN would let it pass.

    Raises:
        CxlpError: Names the key.
    """
    for key, value in config.items(branches=False):
        for number in value if isinstance(value, list | tuple) else [value]:
            if isinstance(number, float) and not isfinite(number):
                raise CxlpError(f"{key.replace('.init_args.', '.')} is {value}: it must be a finite number")


def check_group(key: str, value: Any) -> None:  # noqa: ANN401 (any value of a config)
    """Refuse a single value, or a list, in the place of a group of keys.

    Raises:
        CxlpError: Names the group.
    """
    if not isinstance(value, Namespace):
        raise CxlpError(f"{key} is {_shown(str(value))}: it is a group of keys")


def _refuse_nulls(values: Namespace, hints: Mapping[str, Any], where: str) -> None:
    for name, value in vars(values).items():
        hint = hints.get(name, Any)
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, Namespace) and "class_path" in part:
                built = import_object(part["class_path"], name)
                _refuse_nulls(part["init_args"], _hints_of_class(built), f"{where}.{name}")
        if is_dataclass(hint) and value is not None and not isinstance(value, hint):  # type: ignore[arg-type]
            check_group(f"{where}.{name}", value)
            _refuse_nulls(value, _hints(hint), f"{where}.{name}")
        elif value is None and hint is not Any and NoneType not in get_args(hint):
            types = get_args(hint) if get_origin(hint) in (Union, UnionType) else [hint]
            names = [re.sub(r"collections\.abc\.", "", str(t)) if get_origin(t) else t.__name__ for t in types]
            expected = _one_of_words([word for name in names for word in _words_of(name)])
            raise CxlpError(f"{where}.{name} is null: expected {expected}")


def _hints_of_class(built: type) -> dict[str, Any]:
    hints: dict[str, Any] = {}
    for base in reversed(built.__mro__):  # **common goes to a base
        hints |= _hints(base.__init__)  # type: ignore[misc]
    return hints


def _hints(annotated: Any) -> dict[str, Any]:  # noqa: ANN401 (a class or a function)
    try:
        return get_type_hints(annotated)
    except NameError:  # types that exist for type checkers only
        return {}


def _has_key(path: str, name: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for key in _keys_of_class(path))


def unknown_key(prefix: str, name: str, known: list[str]) -> str:
    """Say that there is no such key, and which one may be meant.

    Args:
        prefix: Of all keys here, such as ``data.``.
        name: What was given behind it.
        known: The keys that there are, without the prefix.
    """
    names = name.split(".")
    # The first of its names that is not there, among those beside it.
    for depth, wrong in enumerate(names):
        inside = "".join(f"{part}." for part in names[:depth])
        there = dict.fromkeys(k.removeprefix(inside).partition(".")[0] for k in known if k.startswith(inside))
        if wrong not in there:
            break
    near = nearest(wrong, there)
    rest = ".".join(names[depth + 1 :])
    found = nearest(f"{inside}{near}.{rest}", known) if near and rest else near and f"{inside}{near}"
    # It may stand in another group.
    same = [key for key in known if key.rpartition(".")[2] == names[-1]]
    found = (same[0] if same and not near else found) or nearest(name, known)
    hint = f" Did you mean {prefix + found!r}?" if found else ""
    where = f"{prefix}{inside}".rstrip(".")
    return f"unknown key {prefix}{name}.{hint} Valid{f' in {where}' if where else ''}: {', '.join(there)}."


def _keys_of_class(path: str) -> list[str]:
    options = options_of(path) if path.startswith("cxlp.") else None
    if options is not None:
        return list(keys_of(options))
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(import_object(path, "class"))
    return _keys(parser.get_defaults())


def _keys(defaults: Namespace) -> list[str]:
    return [key.replace(".init_args.", ".") for key, _ in defaults.items(branches=False)]


def explain_instance(error: Exception) -> str | None:
    """Say what a class did not accept, in one line; ``None``: the parser does not say so."""
    text = str(error)
    found = re.search(r"\nErrors:\n\s*- (.+)", text)
    given = re.search(r"\nGiven value: (.+)", text)
    return f"{found[1]} (given: {given[1][:200]})" if found and given else None
