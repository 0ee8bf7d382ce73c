"""Which files of a folder are pictures, and for what reason the others are left out."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image

from cxlp.data.decode import with_image
from cxlp.utils.errors import CxlpError
from cxlp.utils.program import train_program

#: Pillow's formats for photographs and drawings: neither films nor vector graphics nor measurements.
FORMATS = (
    *("AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM", "QOI", "SGI", "TGA"),
    *("TIFF", "WEBP", "XBM", "XPM"),
)
#: Formats by which a file of any other name is recognised. TIFF is not among them, since raw files of cameras begin in
#: the same way; nor is PPM, since texts do.
_KNOWN_BY_CONTENT = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "WEBP")
_UNFINISHED = ("~", ".bak", ".crdownload", ".download", ".old", ".orig", ".part", ".partial", ".swp", ".tmp")
#: Folders that operating systems make for themselves.
_SYSTEM_FOLDERS = {"$RECYCLE.BIN", "@eaDir", "__MACOSX", "__pycache__", "lost+found", "System Volume Information"}

Image.init()
#: What names of pictures end in.
SUFFIXES = tuple(sorted(suffix for suffix, form in Image.registered_extensions().items() if form in FORMATS))


def check_folder(root: Path) -> str:
    """Refuse a folder of one's own images that is not there.

    Returns:
        What is expected in it, for other errors.

    Raises:
        CxlpError: If it does not exist, or is none.
    """
    layout = (
        f"expected {root}/train/<class>/* and {root}/test/<class>/* (and val/), or {root}/<class>/*. To try cxlp "
        f"without any data: {train_program()} --config demo.yaml"
    )
    if not root.is_dir():
        is_file = "is a file, no folder" if root.exists() else "does not exist"
        raise CxlpError(f"folder: {root.absolute()} {is_file}; {layout}")
    return layout


def is_hidden(name: str) -> bool:
    """Whether a name is that of a hidden file or folder, or of one that an operating system makes for itself."""
    return name.startswith(".") or name in _SYSTEM_FOLDERS


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
    for entry in _entries(folder):
        path = Path(entry)
        if is_hidden(path.name):
            left_out["hidden"] += _count(path)
        elif _holds(entry.is_dir):
            found.append(path)
        elif not _holds(path.exists) and not has_picture_suffix(path):
            raise CxlpError(
                f"{path} is a link to {path.readlink()}, which is not there or cannot be reached: "
                "fetch it, or remove the link"
            )
        else:
            left_out[f"{reason} ({_suffix(path)})"] += 1
    return found


def folders_in(folder: Path) -> list[Path]:
    """List the folders in a folder by name, but for hidden ones.

    Raises:
        CxlpError: If it cannot be listed.
    """
    return [Path(entry) for entry in _entries(folder) if _holds(entry.is_dir) and not is_hidden(entry.name)]


def pictures(folder: Path, left_out: Counter[str]) -> list[Path]:
    """List the pictures in a folder, however deep: by their names, or else by their content.

    Links are followed, except to folders that are read already or that hold the link. One to a picture that is not
    there (such as those of git-annex, DVC or datalad, before it is fetched) is a picture, too, which whoever opens it
    finds missing.

    Args:
        folder: Where.
        left_out: Counts files by the reason for which they are left out.

    Raises:
        CxlpError: If a folder cannot be listed, or a file of another name than a picture's cannot be read.
    """
    found = []
    for path, is_file in _files(folder, left_out):
        reason = _reason_against(path, is_file)
        if reason is None:
            found.append(path)
        else:
            left_out[reason] += 1
    return sorted(found)


def has_picture_suffix(path: Path) -> bool:
    """Whether a file is called like a picture."""
    return path.suffix.lower() in SUFFIXES


def is_picture(path: Path) -> bool:
    """Whether a file is a picture by its name, or else by its content; or one that is not there or cannot be read."""
    try:
        return _reason_against(path, _holds(path.is_file)) is None
    except CxlpError:  # whoever opens it says so
        return True


def count_files(folder: Path, left_out: Counter[str], reason: str) -> None:
    """Leave out all files of a folder."""
    left_out[reason] += _count(folder)


def _files(folder: Path, left_out: Counter[str]) -> Iterator[tuple[Path, bool]]:
    """All that is no folder, however deep, and whether it is a file. No folder is read twice; links are read last."""
    top = folder.resolve()
    seen = {*top.parents, *(folder.parent.resolve() / folder.name).parents}
    folders, links = [(folder, top)], list[tuple[Path, Path]]()
    while folders or links:
        folder, here = folders.pop() if folders else links.pop(0)
        if here in seen:
            left_out["links to folders that are read already"] += 1
            continue
        seen.add(here)
        for entry in _entries(folder):
            path = Path(entry)
            if is_hidden(path.name):
                left_out["hidden"] += _count(path)
            elif not _holds(entry.is_dir):
                yield path, _holds(entry.is_file)
            elif not entry.is_symlink():
                folders.append((path, here / path.name))
            elif (target := path.resolve()) in here.parents:
                left_out["links to folders that hold them"] += 1
            else:
                links.append((path, target))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder, by name; the system tells files from folders without a look at each."""
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise CxlpError(f"cannot list {folder}: {error.strerror}. Make it readable, or move it away") from error


def _holds(question: Callable[[], bool]) -> bool:
    """Ask for a file's kind; nothing is known of a link that leads in a circle, or to where this process may not go."""
    try:
        return question()
    except OSError:
        return False


def _count(path: Path) -> int:
    """How many files there are, at least one; a link, and what cannot be listed, counts as one."""
    return 1 if path.is_symlink() else max(1, sum(len(files) for _, _, files in os.walk(path)))


def _reason_against(path: Path, is_file: bool) -> str | None:
    """Why something is no picture; ``None``: it is one."""
    if not is_file and path.is_symlink() and not _holds(path.exists):
        return None if has_picture_suffix(path) or not path.suffix else "links to nothing"
    if not is_file:
        return "neither files nor folders"
    if path.name.lower().endswith(_UNFINISHED):
        return "backups or unfinished"
    if has_picture_suffix(path):
        return None
    try:
        is_known = with_image(path, lambda image: image.format in _KNOWN_BY_CONTENT)
    except Exception as error:  # whatever decoders raise for what is no picture
        if isinstance(error, OSError) and error.errno is not None:
            raise CxlpError(f"cannot read {path}: {error.strerror}. Make it readable, or move it away") from error
        is_known = False
    return None if is_known else f"no pictures ({_suffix(path)})"


def _suffix(path: Path) -> str:
    return path.suffix.lower() or "no suffix"
