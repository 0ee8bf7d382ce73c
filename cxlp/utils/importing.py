"""Import of objects by their path, such as a user's head or network."""

import importlib
import os
import sys
from types import ModuleType
from typing import Any

from cxlp.utils.errors import CxlpError, did_you_mean


def import_object(path: str, what: str) -> Any:  # noqa: ANN401 (anything can be imported)
    """Import an object by its path, which executes the code of its module.

    Args:
        path: Import path, such as ``my_package.heads.MaxPooling``.
        what: Kind of the object for error messages, such as ``head``.

    Raises:
        CxlpError: If the module cannot be imported, or has no such attribute.
    """
    names = path.split(".")
    module: ModuleType | None = None
    depth = 0  # number of names that are modules
    for name in (".".join(names[: i + 1]) for i in range(len(names))):
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:  # the module exists, but a module that it imports does not
                raise CxlpError(f"{what} {path!r}: {name} cannot be imported: {error}") from error
            break
        except Exception as error:  # a user's module may raise anything
            raise CxlpError(f"{what} {path!r}: the import of {name} failed: {type(error).__name__}: {error}") from error
        depth += 1
    if module is None:
        raise CxlpError(
            f"{what} {path!r} cannot be imported: there is no module {names[0]!r} in {_places()}, or among the "
            f"installed packages. Start in the folder that contains {names[0]}.py or {names[0]}/, add this folder to "
            "PYTHONPATH, or install the package"
        )
    found: Any = module
    for name in names[depth:]:
        if not hasattr(found, name) and names[0] == "__main__":
            raise CxlpError(
                f"{what} {path!r} was defined in the training script or notebook, but is not defined in this process: "
                "define it first, or move it to a module, import it from there, and train again"
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
    """Return the folders in which Python searches for modules, without those of the Python installation."""
    own = (sys.prefix, sys.base_prefix)
    places = (os.path.realpath(place or os.curdir) for place in sys.path)
    return ", ".join(dict.fromkeys(place for place in places if not place.startswith(own))) or "no folder of yours"
