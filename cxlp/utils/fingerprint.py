"""Digests of values and of source code, and versions of libraries."""

import inspect
from collections.abc import Iterable
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

#: Distributions that affect results: decoding, resizing, augmentation and computation.
LIBRARIES = ("torch", "torchvision", "timm", "opencv-python-headless", "pillow", "albumentations")
_PACKAGE = Path(__file__).parents[1]


def digest(*parts: object, size: int = 16) -> str:
    """Return a digest of values in their order: bytes and memory views directly, other values as text.

    Args:
        parts: The values. Text may contain file names that are not valid UTF-8.
        size: Size of the digest in bytes.

    Returns:
        Hexadecimal digits, two per byte.
    """
    found = blake2b(digest_size=size)
    for part in parts:
        data = part if isinstance(part, bytes | memoryview) else f"{part}\n".encode(errors="surrogateescape")
        found.update(data)
    return found.hexdigest()


def code_digest(rooms: Iterable[str], others: Iterable[object] = ()) -> str:
    """Return a digest of source code, so that cached results of other code are not reused.

    Args:
        rooms: Folders of this package, such as ``heads``.
        others: Modules, classes, functions or instances from outside the package, such as a user's head. The source
            files that define them are included.

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
    """Return the installed versions of distributions, by name."""
    return {name: _version(name) for name in names}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # another distribution may provide the same module
        return "not installed by this name"
