"""The version of cxlp. This module imports nothing of cxlp, so that every module can import it."""

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path


def _installed_version() -> str:
    """The version of the installed package that contains this file; the build derives it from the git tag."""
    try:
        found = distribution("cxlp")
    except PackageNotFoundError:
        return "0+source"
    own = Path(str(found.locate_file("cxlp/version.py"))).resolve() == Path(__file__).resolve()
    return found.version if own else "0+source"  # this file is in a checkout


#: The release of an installed package, or ``0+source`` in a checkout. ``provenance.json`` of a run has the commit.
__version__ = _installed_version()
