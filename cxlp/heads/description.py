"""Heads described by plain values: options, their checks, and building a head from its specification."""

import inspect
import warnings
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np

from cxlp.heads.views import Views
from cxlp.utils.errors import CxlpError, did_you_mean
from cxlp.utils.importing import import_object

if TYPE_CHECKING:
    from cxlp.heads.base import Head


def changed_options(cls: type, options: Mapping[str, Any]) -> str:
    """Format the options that differ from the constructor's defaults as call arguments."""
    defaults = {name: p.default for name, p in inspect.signature(cls).parameters.items()}
    changed = {name: value for name, value in options.items() if value != _plain_or_same(defaults.get(name))}
    for name, value in changed.items():  # within a group such as views, again only the changed options
        usual = _plain_or_same(defaults.get(name))
        if isinstance(value, dict) and isinstance(usual, dict):
            changed[name] = {key: part for key, part in value.items() if part != usual.get(key)}
    return ", ".join(f"{name}={value!r}" for name, value in changed.items())


def _plain_or_same(value: Any) -> Any:  # noqa: ANN401 (any option)
    try:
        return plain(value)
    except TypeError:
        return value


def constructor_arguments(cls: type) -> list[str]:
    """Return the names of a constructor's arguments."""
    return list(inspect.signature(cls).parameters)


def import_path(cls: type) -> str:
    """Return a class's import path, its module and qualified name.

    Warns if the class cannot be imported by this path outside the running script.

    Raises:
        CxlpError: If another class has this import path.
    """
    path = f"{cls.__module__}.{cls.__qualname__}"
    if "<locals>" in path or cls.__module__ == "__main__":
        place = "inside a function" if "<locals>" in path else "in the running script"
        warnings.warn(
            f"head {cls.__name__} is defined {place}, so its checkpoints can only be loaded with "
            "load_from_checkpoint(path, network=network): define the class at the top level of an importable module",
            stacklevel=4,
        )
    elif import_object(path, "head") is not cls:
        raise CxlpError(f"importing {path} returns a class other than this head's: use the class that is imported")
    return path


def build_head(spec: Mapping[str, Any]) -> "Head":
    """Build a head from its specification, see :meth:`~cxlp.heads.base.Head.from_spec`."""
    import cxlp.heads
    from cxlp.heads.base import Head

    path = spec["class_path"]
    if "<locals>" in path:
        raise CxlpError(
            f"head {path!r} is defined inside a function and cannot be imported: load its checkpoint with "
            "load_from_checkpoint(path, network=network), where network contains the head"
        )
    cls = import_object(path, "head") if "." in path else getattr(cxlp.heads, path, None)
    if not (isinstance(cls, type) and issubclass(cls, Head)) or inspect.isabstract(cls):
        known = [name for name in cxlp.heads.__all__ if name != "Head"]
        raise CxlpError(
            f"{path!r} is not a pooling head: name one of cxlp's heads, or give the import path of a subclass of "
            f"cxlp.Head. {did_you_mean(path, known)}"
        )
    options = dict(spec.get("init_args") or {})
    known = constructor_arguments(cls)
    for name in options:
        if name not in known:
            raise CxlpError(f"{cls.__name__} has no option {name!r}. {did_you_mean(name, known)}")
    if isinstance(options.get("views"), Mapping):
        options["views"] = Views(**options["views"])
    return cls(**options)


def plain(value: Any) -> Any:  # noqa: ANN401 (any option)
    """Convert a value to plain values, which JSON can represent.

    Raises:
        TypeError: If the value has no plain form.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, dict):
        return {plain(key): plain(entry) for key, entry in value.items()}
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"{value!r} has type {type(value).__name__}; use numbers, strings, or lists of these")


def is_whole(value: object) -> bool:
    """Return whether a value is an integer (including NumPy's types) and not a boolean."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_count(option: str, value: int | None, most: int, reason: str) -> None:
    """Raise :class:`CxlpError` unless an option is ``None`` or an integer from 1 to ``most``.

    Args:
        option: Name of the option.
        value: Value of the option.
        most: The largest valid value.
        reason: The reason for this limit, for the error message.
    """
    if value is not None and not (is_whole(value) and 1 <= value <= most):
        raise CxlpError(f"{option} is {value!r}, but {reason}: choose 1 to {most}, or null")
