"""Options of heads: plain values, their limits, and where the class is found that takes them."""

import inspect
import warnings
from dataclasses import asdict, is_dataclass
from numbers import Integral
from typing import Any

import numpy as np

from cxlp.utils.errors import CxlpError
from cxlp.utils.importing import import_object


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


def check_count(option: str, value: int | None, most: int, there_are: str) -> None:
    """Refuse an option that is neither null nor a number of what there is.

    Args:
        option: Its name.
        value: Its value.
        most: How many there are.
        there_are: The same in words, for the error.
    """
    if value is not None and (not isinstance(value, Integral) or not 1 <= value <= most):
        raise CxlpError(f"{option} is {value!r}, but {there_are}: choose 1 to {most}, or null")
