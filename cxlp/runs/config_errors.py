"""Short error messages for invalid configs, which replace the parser's long ones."""

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
    """Return a message that names the invalid key and the valid choices.

    Args:
        parser: The complete parser.
        error: The parser's exception.
        classes: Import paths of the valid classes, by key, such as ``data``.

    Returns:
        One or two lines; the parser's own message if the kind of error is unknown.
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
    """Return a message about an invalid class, or an invalid option of a class."""
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
            return f"{key}: {_shown(given[1] or given[2])} is an abstract base class. {one_of}"
        if base is None or given is None:
            return text
        return f"{key}: {_shown(given[1] or given[2])} is not a subclass of {base[1]}. {one_of}"
    unknown = _unknown(inside)
    if unknown == "class_path":
        return f"{key}: move the options beside class_path to init_args"
    if unknown:
        return unknown_option(key, problem["path"], unknown, valid)
    return wrong_value(inside, f"{key}.", _keys_of_class(problem["path"])) or text


def no_class(key: str, wrong: str, valid: Sequence[str], why: str = "") -> str:
    """Return a message that a class does not exist, with the nearest valid name.

    Args:
        key: The key whose value is the class, such as ``data``.
        wrong: The given name.
        valid: Import paths of the valid classes.
        why: The import error's message, in parentheses.
    """
    names = [_short(path) for path in valid]
    near = wrong.rpartition(".")[2].lower()
    spelled = {
        part.lower(): name for name in names for part in (name[: len(near)], name)
    }  # also match the start of a long name
    close = nearest(near, spelled)
    hint = f" Did you mean {spelled[close]!r}?" if close else ""
    return f"{key}: there is no class {wrong!r}{why}.{hint} {_one_of(valid)}"


def unknown_option(key: str, path: str, name: str, valid: Sequence[str]) -> str:
    """Return a message that a class lacks an option, with classes that have it or the nearest option.

    Args:
        key: The key whose value is the class, such as ``data``.
        path: Import path of the class.
        name: The unknown option.
        valid: Import paths of the valid classes.
    """
    known = _keys_of_class(path)
    owners = [_short(other) for other in valid if _has_key(other, name)]
    if not owners:
        return unknown_key(f"{key}.", name, known)
    options = ", ".join(dict.fromkeys(option.partition(".")[0] for option in known))
    others = f"{', '.join(owners)} {'has' if len(owners) == 1 else 'have'} it: set {key}"
    return f"unknown key {key}.{name}: {_short(path)} has no such option ({others}). Valid in {key}: {options}."


def wrong_value(text: str, prefix: str, known: list[str]) -> str | None:
    """Return a message about an invalid value; ``None`` if the kind of error is unknown.

    Args:
        text: The parser's message.
        prefix: Prefix of the keys in that message.
        known: All keys.
    """
    keys = re.findall(r'Parser key "([^"]+)"', text)
    if keys and (wrong := re.search(r"""Unable to load config ['"](.*)['"]""", text)):
        first = next(name for name in known if name.startswith(f"{keys[-1]}."))
        return f"{prefix}{keys[-1]} is {_shown(wrong[1])}, but it is a group of keys, such as --{prefix}{first}"
    expected = [e for e in re.findall(r"Expected an? (.+?)(?:\. Got value: .*)?$", text, re.M) if "NoneType" not in e]
    value = re.search(r"Got value: (.*)|val='(.*)'\)|Given value: (.*)", text)
    if keys and expected and value:
        words = [word for e in dict.fromkeys(expected) for word in _words_of(e)]
        named = [str(word) for e in dict.fromkeys(expected) for word in _words_of(e) if _is_literal(e)]
        types = _one_of_words(words)
        given = next(v for v in value.groups() if v is not None)
        if types == "list in brackets" and given.startswith("{"):
            return f"{prefix}{keys[-1]} is a single value: expected a list; add brackets, [{given}]"
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
    """The parser's name of a type, or the values of a ``Literal``."""
    if _is_literal(expected):
        return [str(value) for value in ast.literal_eval(expected.removeprefix("typing.").removeprefix("Literal"))]
    named = re.sub(r"typing\.|<class '(?:\w+\.)*(\w+)'>", r"\1", expected)
    return [re.sub(r"^(tuple|Sequence)\b", "list in brackets", named)]


def _unknown(text: str) -> str | None:
    """The unknown key in a message of the parser, relative to its class or group."""
    found = _UNKNOWN.search(text)
    if found is None:
        return None
    name = found["argument"] or found["option"] or f"{found['group']}.{found['member']}"
    return name.removeprefix("init_args.")


def _one_of(valid: Sequence[str]) -> str:
    return f"Valid: {', '.join(map(_short, valid))}, or the import path of your own class"


def _short(path: str) -> str:
    """The short name of a class of cxlp, which the command line accepts; the import path of other classes."""
    return path.rpartition(".")[2] if path.startswith("cxlp.") else path


def _shown(value: str) -> str:
    return "null" if value in ("None", "null") else repr(value)


def refuse_nulls(config: Namespace, groups: Mapping[str, type]) -> None:
    """Reject ``null`` for keys that need a value; the parser accepts it like a missing value.

    Args:
        config: The parsed config.
        groups: The class that is built from each group of keys.

    Raises:
        CxlpError: If such a key is null; names the key and the expected type.
    """
    for key, built in groups.items():
        check_group(key, config[key])
        _refuse_nulls(config[key].get("init_args", config[key]), _hints_of_class(built), key)


def refuse_infinite(config: Namespace) -> None:
    """Reject numbers that are not finite: no option allows them, and range checks do not catch NaN.

    Raises:
        CxlpError: If a number is not finite; names the key.
    """
    for key, value in config.items(branches=False):
        for number in value if isinstance(value, list | tuple) else [value]:
            if isinstance(number, float) and not isfinite(number):
                raise CxlpError(f"{key.replace('.init_args.', '.')} is {value}: give a finite number")


def check_group(key: str, value: Any) -> None:  # noqa: ANN401 (any value of a config)
    """Reject a single value, or a list, for a group of keys.

    Raises:
        CxlpError: If the value is not a group of keys; names the key.
    """
    if not isinstance(value, Namespace):
        raise CxlpError(f"{key} is {_shown(str(value))}, but it is a group of keys")


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
    for base in reversed(built.__mro__):  # **common is passed on to a base class
        hints |= _hints(base.__init__)  # type: ignore[misc]
    return hints


def _hints(annotated: Any) -> dict[str, Any]:  # noqa: ANN401 (a class or a function)
    try:
        return get_type_hints(annotated)
    except NameError:  # types that are imported for type checkers only
        return {}


def _has_key(path: str, name: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for key in _keys_of_class(path))


def unknown_key(prefix: str, name: str, known: list[str]) -> str:
    """Return a message that a key does not exist, with the nearest valid key.

    Args:
        prefix: Prefix of all keys concerned, such as ``data.``.
        name: The unknown key, without the prefix.
        known: All valid keys, without the prefix.
    """
    names = name.split(".")
    # Find the first unknown part of the key, and the valid names at its level.
    for depth, wrong in enumerate(names):
        inside = "".join(f"{part}." for part in names[:depth])
        there = dict.fromkeys(k.removeprefix(inside).partition(".")[0] for k in known if k.startswith(inside))
        if wrong not in there:
            break
    near = nearest(wrong, there)
    rest = ".".join(names[depth + 1 :])
    found = nearest(f"{inside}{near}.{rest}", known) if near and rest else near and f"{inside}{near}"
    # The key may belong to another group.
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
    """Return one line about the value that a class rejected; ``None`` if the message has none."""
    text = str(error)
    found = re.search(r"\nErrors:\n\s*- (.+)", text)
    given = re.search(r"\nGiven value: (.+)", text)
    return f"{found[1]} (given: {given[1][:200]})" if found and given else None
