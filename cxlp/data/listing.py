"""Which files of a folder are pictures, and for what reason the others are left out."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from cxlp.utils.errors import CxlpError

#: Pillow's formats for photographs and drawings: neither films nor vector graphics nor measurements.
FORMATS = (
    *("AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM", "QOI", "SGI", "TGA"),
    *("TIFF", "WEBP", "XBM", "XPM"),
)
#: Formats that a file of any other name is known by: those with an unmistakable beginning. Not TIFF, which raw files
#: of cameras begin like.
_KNOWN_BY_CONTENT = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "WEBP")
_UNFINISHED = ("~", ".bak", ".crdownload", ".download", ".old", ".orig", ".part", ".partial", ".swp", ".tmp")
#: Folders that systems make for themselves; what is called ``.something`` is hidden, too.
_OF_SYSTEMS = {"$RECYCLE.BIN", "@eaDir", "__MACOSX", "__pycache__", "lost+found", "System Volume Information"}

Image.init()
#: What names of pictures end in.
SUFFIXES = tuple(sorted(suffix for suffix, form in Image.registered_extensions().items() if form in FORMATS))


def is_hidden(name: str) -> bool:
    """Whether a file or folder is none of the user's, by its name."""
    return name.startswith(".") or name in _OF_SYSTEMS


def subfolders(folder: Path, left_out: Counter[str], reason: str) -> list[Path]:
    """List the folders in a folder by name; hidden ones, and what is no folder, are left out.

    Args:
        folder: Where.
        left_out: Counts files by the reason for which they are left out.
        reason: The reason for files that lie beside the folders.

    Raises:
        CxlpError: If it cannot be listed, or a link in it leads nowhere.
    """
    found = []
    for path in _entries(folder):
        if is_hidden(path.name):
            left_out["hidden"] += _count(path)
        elif path.is_dir():
            found.append(path)
        elif not path.exists() and not is_named_so(path):
            raise CxlpError(f"{path} is a link to {path.readlink()}, which is not there: fetch it, or remove the link")
        else:
            left_out[f"{reason} ({_suffix(path)})"] += 1
    return found


def pictures(folder: Path, left_out: Counter[str]) -> list[Path]:
    """List the pictures in a folder, however deep: by their names, or else by their content.

    Links are followed. One to a picture that is not there (such as those of git-annex, DVC or datalad, before it is
    fetched) is a picture, too, which whoever opens it finds missing.

    Args:
        folder: Where.
        left_out: Counts files by the reason for which they are left out.

    Raises:
        CxlpError: If a folder cannot be listed.
    """
    found = []
    for path in _files(folder, left_out, frozenset()):
        reason = _reason_against(path)
        if reason is None:
            found.append(path)
        else:
            left_out[reason] += 1
    return sorted(found)


def is_named_so(path: Path) -> bool:
    """Whether a name is that of a picture."""
    return path.suffix.lower() in SUFFIXES


def is_picture(path: Path) -> bool:
    """Whether a file is a picture by its name, or else by its content; or a link to one that is not there."""
    return _reason_against(path) is None


def count_files(folder: Path, left_out: Counter[str], reason: str) -> None:
    """Leave out all files of a folder."""
    left_out[reason] += _count(folder)


def _files(folder: Path, left_out: Counter[str], above: frozenset[Path]) -> Iterator[Path]:
    here = folder.resolve()
    above |= {here, *here.parents}
    for path in _entries(folder):
        if is_hidden(path.name):
            left_out["hidden"] += _count(path)
        elif not path.is_dir():
            yield path
        elif path.is_symlink() and path.resolve() in above:
            left_out["links to a folder that they lie in"] += 1
        else:
            yield from _files(path, left_out, above)


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise CxlpError(f"cannot list {folder}: {error.strerror}. Make it readable, or move it away") from error


def _count(path: Path) -> int:
    """How many files there are, at least one; what cannot be listed counts as one."""
    return max(1, sum(len(files) for _, _, files in os.walk(path)))


def _reason_against(path: Path) -> str | None:
    """Why a file is no picture; ``None``: it is one."""
    if not path.exists() and path.is_symlink():
        return None if is_named_so(path) or not path.suffix else "links to nothing"
    if not path.is_file():
        return "neither files nor folders"
    if path.name.lower().endswith(_UNFINISHED):
        return "backups or unfinished"
    if is_named_so(path):
        return None
    try:
        with Image.open(path, formats=_KNOWN_BY_CONTENT):
            return None
    except UnidentifiedImageError:
        return f"no pictures ({_suffix(path)})"
    except Exception:  # it begins like a picture: whoever decodes it finds out what is wrong
        return None


def _suffix(path: Path) -> str:
    return path.suffix.lower() or "no suffix"
