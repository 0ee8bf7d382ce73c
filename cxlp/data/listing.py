"""Listing of the images in a folder, with the reasons for which other files are left out."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image

from cxlp.data.decode import with_image
from cxlp.utils.errors import CxlpError
from cxlp.utils.program import train_program

#: Pillow's formats for photographs and drawings, without those for videos, vector graphics and measurements.
FORMATS = (
    *("AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM", "QOI", "SGI", "TGA"),
    *("TIFF", "WEBP", "XBM", "XPM"),
)
#: Formats that are detected by content if a file has no image suffix. TIFF and PPM are excluded, because raw files of
#: cameras begin like TIFF, and text files may begin like PPM.
_KNOWN_BY_CONTENT = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "WEBP")
_UNFINISHED = ("~", ".bak", ".crdownload", ".download", ".old", ".orig", ".part", ".partial", ".swp", ".tmp")
#: System folders.
_SYSTEM_FOLDERS = {"$RECYCLE.BIN", "@eaDir", "__MACOSX", "__pycache__", "lost+found", "System Volume Information"}

Image.init()
#: Suffixes of image files.
SUFFIXES = tuple(sorted(suffix for suffix, form in Image.registered_extensions().items() if form in FORMATS))


def check_folder(root: Path) -> str:
    """Check that a folder of the user's own images exists.

    Returns:
        The expected layout, for other errors.

    Raises:
        CxlpError: If it does not exist, or is not a folder.
    """
    layout = (
        f"expected {root}/train/<class>/* and {root}/test/<class>/* (and val/), or {root}/<class>/*. To try cxlp "
        f"without any data: {train_program()} --config demo.yaml"
    )
    if not root.is_dir():
        is_file = "is a file, not a folder" if root.exists() else "does not exist"
        raise CxlpError(f"folder: {root.absolute()} {is_file}; {layout}")
    return layout


def is_hidden(name: str) -> bool:
    """Return whether a name belongs to a hidden file or folder, or to a system folder."""
    return name.startswith(".") or name in _SYSTEM_FOLDERS


def subfolders(folder: Path, left_out: Counter[str], reason: str) -> list[Path]:
    """List the folders in a folder by name; hidden folders and files are left out.

    Args:
        folder: The folder.
        left_out: Counter of the files that are left out, by reason.
        reason: The reason for leaving out files in this folder.

    Raises:
        CxlpError: If the folder cannot be listed, or contains a broken link.
    """
    found = []
    for entry in _entries(folder):
        path = Path(entry)
        if is_hidden(path.name):
            left_out["hidden"] += _count(path)
        elif _is_true(entry.is_dir):
            found.append(path)
        elif not _is_true(path.exists) and not has_picture_suffix(path):
            raise CxlpError(
                f"{path} is a link to {path.readlink()}, which is missing or not accessible: fetch it, or remove the "
                "link"
            )
        else:
            left_out[f"{reason} ({_suffix(path)})"] += 1
    return found


def folders_in(folder: Path) -> list[Path]:
    """List the folders in a folder by name, except for hidden ones.

    Raises:
        CxlpError: If the folder cannot be listed.
    """
    return [Path(entry) for entry in _entries(folder) if _is_true(entry.is_dir) and not is_hidden(entry.name)]


def pictures(folder: Path, left_out: Counter[str]) -> list[Path]:
    """List the images in a folder and all its subfolders, recognised by suffix, or else by content.

    Links are followed, except to folders that were already read or that contain the link. A broken link with the name
    of an image is listed, too, such as a link of git-annex, DVC or datalad before the image is fetched; opening it
    raises an error.

    Args:
        folder: The folder.
        left_out: Counter of the files that are left out, by reason.

    Raises:
        CxlpError: If a folder cannot be listed, or a file without an image suffix cannot be read.
    """
    found = []
    for path, is_file in _files(folder, left_out):
        reason = _reason_to_skip(path, is_file)
        if reason is None:
            found.append(path)
        else:
            left_out[reason] += 1
    return sorted(found)


def has_picture_suffix(path: Path) -> bool:
    """Return whether a file has an image suffix."""
    return path.suffix.lower() in SUFFIXES


def is_picture(path: Path) -> bool:
    """Return whether a file is an image by its suffix, or else by its content; True if it cannot be read."""
    try:
        return _reason_to_skip(path, _is_true(path.is_file)) is None
    except CxlpError:  # opening the file will raise the error
        return True


def count_files(folder: Path, left_out: Counter[str], reason: str) -> None:
    """Count all files of a folder as left out for a reason."""
    left_out[reason] += _count(folder)


def _files(folder: Path, left_out: Counter[str]) -> Iterator[tuple[Path, bool]]:
    """Yield all paths below a folder except for folders, and whether each is a file.

    No folder is read twice; links to folders are read last.
    """
    top = folder.resolve()
    seen = {*top.parents, *(folder.parent.resolve() / folder.name).parents}
    folders, links = [(folder, top)], list[tuple[Path, Path]]()
    while folders or links:
        folder, here = folders.pop() if folders else links.pop(0)
        if here in seen:
            left_out["links to folders that were already read"] += 1
            continue
        seen.add(here)
        for entry in _entries(folder):
            path = Path(entry)
            if is_hidden(path.name):
                left_out["hidden"] += _count(path)
            elif not _is_true(entry.is_dir):
                yield path, _is_true(entry.is_file)
            elif not entry.is_symlink():
                folders.append((path, here / path.name))
            elif (target := path.resolve()) in here.parents:
                left_out["links to folders that contain them"] += 1
            else:
                links.append((path, target))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return the entries of a folder by name. ``scandir`` returns their types without further system calls."""
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise CxlpError(f"cannot list {folder}: {error.strerror}. Make it readable, or move it away") from error


def _is_true(test: Callable[[], bool]) -> bool:
    """Return the answer of a test of a path; False if a circular link or missing permissions raise an error."""
    try:
        return test()
    except OSError:
        return False


def _count(path: Path) -> int:
    """Return the number of files below a path, at least one. A link or unreadable folder counts as one."""
    return 1 if path.is_symlink() else max(1, sum(len(files) for _, _, files in os.walk(path)))


def _reason_to_skip(path: Path, is_file: bool) -> str | None:
    """Return the reason why a path is not an image, or ``None`` if it is one."""
    if not is_file and path.is_symlink() and not _is_true(path.exists):
        return None if has_picture_suffix(path) or not path.suffix else "broken links"
    if not is_file:
        return "neither files nor folders"
    if path.name.lower().endswith(_UNFINISHED):
        return "backups or partial files"
    if has_picture_suffix(path):
        return None
    try:
        is_known = with_image(path, lambda image: image.format in _KNOWN_BY_CONTENT)
    except Exception as error:  # decoders may raise anything for a file that is not an image
        if isinstance(error, OSError) and error.errno is not None:
            raise CxlpError(f"cannot read {path}: {error.strerror}. Make it readable, or move it away") from error
        is_known = False
    return None if is_known else f"non-image ({_suffix(path)})"


def _suffix(path: Path) -> str:
    return path.suffix.lower() or "no suffix"
