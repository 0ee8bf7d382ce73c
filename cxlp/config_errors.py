"""Short words for what is wrong with a config, in place of the parser's long ones."""

import importlib
import re
from collections.abc import Mapping, Sequence

from jsonargparse import ArgumentParser, Namespace

from cxlp.errors import did_you_mean

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
        classes: By key (``model``, ``data``): the paths of the classes that may stand there.

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
        known = _keys_of_class(chosen.group(1)) if chosen and key else _keys(parser.get_defaults())
        return _unknown_key(f"{key}." if key else "", name.removeprefix("init_args."), known)
    if key and (wrong := re.search(r"Expected a dot import path string: (\S+)|No module named '(\S+)'", text)):
        valid = ", ".join(classes[key])
        return f"{key}.class_path: there is no class {wrong.group(1) or wrong.group(2)!r}. Valid: {valid}"
    keys = re.findall(r'Parser key "([^"]+)"', text)
    expected = [e for e in re.findall(r"Expected an? (.+?)(?:\. Got value: .*)?$", text, re.M) if "NoneType" not in e]
    value = re.search(r"Got value: (.*)|val='(.*)'\)|Given value: (.*)", text)
    if keys and expected and value:
        where = ".".join([key, keys[-1]]) if key and keys[-1] != key else keys[-1]
        types = " or ".join(re.sub(r"typing\.|<class '(\w+)'>", r"\1", e) for e in dict.fromkeys(expected))
        given = next(v for v in value.groups() if v is not None)
        # the class itself may be null, too: one mention is about that
        null = " (or null)" if len(re.findall("Subtypes: .*NoneType", text)) > bool(key) else ""
        return f"{where} is {given!r}: expected {types}{null}"
    return text


def _unknown_key(prefix: str, name: str, known: list[str]) -> str:
    group = name.rpartition(".")[0]
    siblings = [k.rpartition(".")[2] for k in known if k.rpartition(".")[0] == group]
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
