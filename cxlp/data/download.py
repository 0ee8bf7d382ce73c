"""Download of a data set: its files are fetched, verified, unpacked into a temporary folder, and renamed."""

import errno
import shutil
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from cxlp.utils.errors import CxlpError
from cxlp.utils.fetching import Remote, fetch, verify
from cxlp.utils.locking import locked
from cxlp.utils.program import train_program
from cxlp.utils.progress import bar

if not hasattr(tarfile, "data_filter"):  # Python 3.11.0 to 3.11.3, Debian 12's among them
    from backports import tarfile  # type: ignore[no-redef]


@dataclass(frozen=True, kw_only=True)
class Archive(Remote):
    """A tar file, one folder of which contains the data set or a part of it.

    A file that is not unpacked is a plain ``Remote``.

    Attributes:
        folders: Possible paths of this folder in the archive. Several archives may contain parts of one folder.
        into: Target of the folder's content, relative to the data set's root.
        marker: A path below the root that exists if and only if the archive's content does.
    """

    folders: tuple[str, ...]
    into: str = "."
    marker: str


def missing(files: Sequence[Remote], root: Path) -> list[Remote]:
    """Return the files of a data set whose content is missing in ``root``."""
    return [file for file in files if not (root / _marker(file)).exists()]


def by_hand(files: Sequence[Remote], root: Path) -> str:
    """Return instructions for providing the files without a download."""
    return (
        f"By hand: put the following files into {root.parent} as they are and run again, "
        f"or point to the unpacked data set by --data.root DIR:\n{_list(files, root)}"
        f"To try cxlp without any data: {train_program()} --config demo.yaml"
    )


def _list(files: Sequence[Remote], root: Path) -> str:
    return "".join(f"  {file}{_placing(file, root) if isinstance(file, Archive) else ''}\n" for file in files)


def obtain(files: Sequence[Remote], root: Path, name: str, allowed: bool = True) -> None:
    """Create a data set's folder ``root`` from its files. The folder appears only once it is complete.

    If the data set exists, nothing is done. Files in the parent folder of ``root`` are used and kept. Other files are
    downloaded into a hidden folder there, which is deleted at the end, and from which an interrupted download resumes.

    Args:
        files: Files of the data set. Plain files that are missing in an existing folder are added to it.
        root: Folder of the data set.
        name: Name of the data set, for messages.
        allowed: Whether downloads are allowed.

    Raises:
        CxlpError: If the data set cannot be created; the error names the folder and how to place the files by hand.
    """
    # The order matters: if another process creates the folder between these checks, no files are missing below.
    is_taken = root.exists() and (not root.is_dir() or any(root.iterdir()))
    lacking = missing(files, root)
    if not lacking:
        return
    hint = by_hand(lacking, root)
    if is_taken and (not root.is_dir() or any(isinstance(file, Archive) for file in lacking)):
        what = ", ".join(_marker(file) for file in lacking)
        raise CxlpError(
            f"{name}: {root} exists, but {what} is missing in it. Move the folder away and run again, or unpack the "
            f"missing files into it by hand:\n{_list(lacking, root)}"
        )
    if not allowed and not all((root.parent / file.file).exists() for file in lacking):
        raise CxlpError(f"{name} not found in {root}, and download is off. {hint}")
    with locked(root.parent / f".{root.name}.lock", name):
        lacking = missing(files, root)  # another process may have created it meanwhile
        if not lacking:
            return
        temporary = root.parent / f".{root.name}.partial"
        unpacked = temporary / "unpacked"
        try:
            shutil.rmtree(unpacked, ignore_errors=True)  # left by a killed run
            unpacked.mkdir(parents=True)
            hint = f"{name} was not found in {root}. {hint}"
            _assemble({file: _find(file, root.parent, temporary, hint) for file in lacking}, unpacked, temporary, name)
            if is_taken:
                for file in unpacked.iterdir():
                    file.replace(root / file.name)
            else:
                if root.exists():
                    root.rmdir()
                unpacked.rename(root)
            shutil.rmtree(temporary)
        except OSError as error:
            room = "make room there, then " if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
            raise CxlpError(
                f"{name}: cannot create {root}: {error}. Downloaded files are kept: {room}run again"
            ) from error
        finally:
            shutil.rmtree(unpacked, ignore_errors=True)
            if temporary.exists() and not any(temporary.iterdir()):
                temporary.rmdir()


def _find(file: Remote, folder: Path, temporary: Path, hint: str) -> Path:
    """Return the path of a file placed by hand, after verifying it; otherwise download it."""
    placed = folder / file.file
    if placed.exists():
        verify(placed, file)
        return placed
    return fetch(file, temporary, hint)


def _assemble(found: dict[Remote, Path], unpacked: Path, temporary: Path, name: str) -> None:
    for file, path in found.items():
        if not isinstance(file, Archive):
            shutil.copyfile(path, unpacked / file.file)
            continue
        try:
            _unpack(file, path, unpacked)
            if not (unpacked / file.marker).exists():
                raise tarfile.TarError(f"it contains no {' or '.join(file.folders)} with {file.marker}")
        except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
            if isinstance(error, OSError) and error.errno:  # an error of the disk, not of the archive
                raise
            reason = str(error).partition(":\n")[0]  # tarfile appends a line for each compression format
            if path.parent == temporary:
                path.unlink()
                raise CxlpError(f"{name}: cannot unpack {file}: {reason}. It was deleted: run again") from error
            raise CxlpError(f"{name}: cannot unpack {path}: {reason}. Delete it and run again") from error


def _unpack(archive: Archive, path: Path, unpacked: Path) -> None:
    """Unpack the archive's folder; ignore the rest of the archive."""

    def moved(name: str) -> str | None:
        old = PurePosixPath(name)
        folder = next((f for f in archive.folders if old.is_relative_to(f)), None)
        return None if folder is None else str(archive.into / old.relative_to(folder))

    def choose(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
        name, link = moved(member.name), member.linkname
        if name is None:
            return None
        progress.update()
        if member.islnk():  # a hard link names another member; a symbolic link has a path relative to itself
            link = moved(link) or f"/{link}"
        # The filter "data" rejects devices, and paths and links out of the folder, and restricts permissions.
        return tarfile.data_filter(member.replace(name=name, linkname=link, deep=False), folder)

    with tarfile.open(path) as tar, bar(f"Unpacking {archive.file}", unit="files") as progress:
        tar.extractall(unpacked, filter=choose)


def _marker(file: Remote) -> str:
    return file.marker if isinstance(file, Archive) else file.file


def _placing(archive: Archive, root: Path) -> str:
    return f"; its folder {' or '.join(archive.folders)} becomes {root / archive.into}"
