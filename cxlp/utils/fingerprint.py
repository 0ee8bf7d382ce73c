"""What computed something: a digest of code, and the versions of what it stands on."""

import inspect
from collections.abc import Iterable
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

#: Distributions that pictures and numbers depend on: decoding, resizing, augmenting, computing.
LIBRARIES = ("torch", "torchvision", "timm", "opencv-python-headless", "pillow", "albumentations")
_PACKAGE = Path(__file__).parents[1]


def code_digest(rooms: Iterable[str], others: Iterable[object] = ()) -> str:
    """Digest the source of some rooms of this package, so that what was computed by other code is not taken for new.

    Args:
        rooms: Folders of the package, such as ``heads``.
        others: Modules, classes, functions and the like from elsewhere, such as a user's own head: the files that
            define them count, too.

    Returns:
        Hexadecimal digits.
    """
    files = {path for room in rooms for path in (_PACKAGE / room).rglob("*.py")}
    for other in others:
        named = inspect.ismodule(other) or inspect.isclass(other) or inspect.isroutine(other)
        source = inspect.getsourcefile(other if named else type(other))  # type: ignore[arg-type]
        if source is not None and _PACKAGE not in Path(source).resolve().parents:
            files.add(Path(source).resolve())
    found = blake2b(digest_size=16)
    for path in sorted(files):
        name = path.relative_to(_PACKAGE).as_posix() if _PACKAGE in path.parents else path.name
        found.update(f"{name}\0".encode(errors="surrogateescape"))
        found.update(blake2b(path.read_bytes()).digest())
    return found.hexdigest()


def library_versions(names: Iterable[str] = LIBRARIES) -> dict[str, str]:
    """Return the versions of distributions by name."""
    return {name: _version(name) for name in names}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # another distribution of the same module
        return "not installed by this name"
