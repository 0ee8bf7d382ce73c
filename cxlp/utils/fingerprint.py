"""What something was, and what computed it: digests of values and of code, versions of libraries."""

import inspect
from collections.abc import Iterable
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

#: Distributions that pictures and numbers depend on: decoding, resizing, augmenting, computing.
LIBRARIES = ("torch", "torchvision", "timm", "opencv-python-headless", "pillow", "albumentations")
_PACKAGE = Path(__file__).parents[1]


def digest(*parts: object, size: int = 16) -> str:
    """Digest values in their order: bytes and arrays as they are, all else by its text.

    Args:
        parts: The values. Texts may hold names of files that are no UTF-8.
        size: Bytes of the digest.

    Returns:
        Hexadecimal digits, two a byte.
    """
    found = blake2b(digest_size=size)
    for part in parts:
        data = part if isinstance(part, bytes | memoryview) else f"{part}\n".encode(errors="surrogateescape")
        found.update(data)
    return found.hexdigest()


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
    parts: list[object] = []
    for path in sorted(files):
        name = path.relative_to(_PACKAGE).as_posix() if _PACKAGE in path.parents else path.name
        parts += [name, digest(path.read_bytes())]
    return digest(*parts)


def library_versions(names: Iterable[str] = LIBRARIES) -> dict[str, str]:
    """Return the versions of distributions by name."""
    return {name: _version(name) for name in names}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # another distribution of the same module
        return "not installed by this name"
