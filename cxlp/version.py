"""The version, where every room can read it."""

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path


def _installed_version() -> str:
    """The version of the installed package that this file belongs to, which its build took from the git tag."""
    try:
        found = distribution("cxlp")
    except PackageNotFoundError:
        return "0+source"
    own = Path(str(found.locate_file("cxlp/version.py"))).resolve() == Path(__file__).resolve()
    return found.version if own else "0+source"  # another cxlp is installed, and this one is a checkout


#: Of an installed package its release; ``0+source`` in a checkout, whose commit a run's ``provenance.json`` holds.
__version__ = _installed_version()
