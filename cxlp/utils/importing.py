"""Objects by import path, such as a user's own head or network."""

import importlib
import os
import sys
from types import ModuleType
from typing import Any

from cxlp.utils.errors import CxlpError, did_you_mean


def import_object(path: str, what: str) -> Any:  # noqa: ANN401 (anything can be imported)
    """Import an object by its path, which runs the code of its module.

    Args:
        path: Module and names within it, such as ``my_package.heads.MaxPooling``.
        what: What it is meant to be, for the error.

    Raises:
        CxlpError: If no module begins the path, or the module has no such name.
    """
    names = path.split(".")
    module: ModuleType | None = None
    depth = 0  # names that are modules
    for name in (".".join(names[: i + 1]) for i in range(len(names))):
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:  # the module is there, and one that it imports is not
                raise CxlpError(f"{what} {path!r}: {name} cannot be imported: {error}") from error
            break
        except Exception as error:  # whatever a user's module does when it is imported
            raise CxlpError(f"{what} {path!r}: importing {name} fails: {type(error).__name__}: {error}") from error
        depth += 1
    if module is None:
        raise CxlpError(
            f"{what} {path!r} cannot be imported: there is no module {names[0]!r} in {_places()}, or among the "
            f"installed packages. Start where {names[0]}.py or the folder {names[0]} is, name that place in "
            "PYTHONPATH, or install the package"
        )
    found: Any = module
    for name in names[depth:]:
        if not hasattr(found, name) and names[0] == "__main__":
            raise CxlpError(
                f"{what} {path!r} was defined in the script or notebook that trained it, and this process has none of "
                "that name: define it before, or move it into a module, import it from there, and train again"
            )
        if not hasattr(found, name):
            known = [key for key in vars(found) if not key.startswith("_")]
            raise CxlpError(f"{what} {path!r}: {_called(found)} has no {name!r}. {did_you_mean(name, known)}".rstrip())
        found = getattr(found, name)
    return found


def _called(found: Any) -> str:  # noqa: ANN401 (a module, or something in it)
    file = getattr(found, "__file__", None)
    return f"{found.__name__} ({file})" if file else str(getattr(found, "__name__", found))


def _places() -> str:
    """The folders where Python looks for modules, without its own."""
    own = (sys.prefix, sys.base_prefix)
    places = (os.path.realpath(place or os.curdir) for place in sys.path)
    return ", ".join(dict.fromkeys(place for place in places if not place.startswith(own))) or "no folder of yours"
