"""Options of heads: plain values, their limits, and where the class is found that takes them."""

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
    """Write the options whose values are not the constructor's defaults, as in a call."""
    defaults = {name: p.default for name, p in inspect.signature(cls).parameters.items()}
    changed = {name: value for name, value in options.items() if value != _plain_or_same(defaults.get(name))}
    for name, value in changed.items():  # of a group of options, those that are changed
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
    """List the names of a constructor's arguments."""
    return list(inspect.signature(cls).parameters)


def import_path(cls: type) -> str:
    """Name a class by module and qualified name; warn where only this script can find it again by that.

    Raises:
        CxlpError: If the path leads to another class.
    """
    path = f"{cls.__module__}.{cls.__qualname__}"
    if "<locals>" in path or cls.__module__ == "__main__":
        place = "within a function" if "<locals>" in path else "in the script that runs"
        warnings.warn(
            f"head {cls.__name__} is defined {place}: its checkpoints can only be loaded into a network that is given, "
            "such as by load_from_checkpoint(path, network=network). Define it at the level of a module that Python "
            "can import",
            stacklevel=4,
        )
    elif import_object(path, "head") is not cls:
        raise CxlpError(f"head {path} is not what its import path gives: make it of the class that is there")
    return path


def build_head(spec: Mapping[str, Any]) -> "Head":
    """Build a head by its description, see :meth:`~cxlp.heads.base.Head.from_spec`."""
    import cxlp.heads
    from cxlp.heads.base import Head

    path = spec["class_path"]
    if "<locals>" in path:
        raise CxlpError(
            f"head {path!r} is defined within a function, where it cannot be found again: load its checkpoint into "
            "a network that has it, load_from_checkpoint(path, network=network)"
        )
    cls = import_object(path, "head") if "." in path else getattr(cxlp.heads, path, None)
    if not (isinstance(cls, type) and issubclass(cls, Head)) or inspect.isabstract(cls):
        known = [name for name in cxlp.heads.__all__ if name != "Head"]
        raise CxlpError(
            f"{path!r} is no pooling head: name one of cxlp, or a class derived from cxlp.Head by its import path. "
            f"{did_you_mean(path, known)}"
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
    """Make a value plain: what JSON knows.

    Raises:
        TypeError: If it is none that could be.
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
    raise TypeError(f"{value!r} is of type {type(value).__name__}; give numbers, strings or lists of them")


def is_whole(value: object) -> bool:
    """Whether a value is a whole number, one of NumPy's perhaps, and no truth value."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_count(option: str, value: int | None, most: int, there_are: str) -> None:
    """Refuse an option that is neither null nor a number of what there is.

    Args:
        option: Its name.
        value: Its value.
        most: How many there are.
        there_are: The same in words, for the error.
    """
    if value is not None and not (is_whole(value) and 1 <= value <= most):
        raise CxlpError(f"{option} is {value!r}, but {there_are}: choose 1 to {most}, or null")
