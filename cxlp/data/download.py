"""Downloading a data set: its files are fetched, verified, unpacked beside the target, and renamed."""

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
    """A tar file, one folder of which belongs to a data set; a file that is used as it is, is a plain ``Remote``.

    Attributes:
        folders: Where that folder may lie in the archive; several archives may bring parts of one folder.
        into: Where its content goes below the data set's root.
        marker: Some path below the root that is there when, and only when, this archive's content is.
    """

    folders: tuple[str, ...]
    into: str = "."
    marker: str


def missing(files: Sequence[Remote], root: Path) -> list[Remote]:
    """Which of a data set's files have not brought their content to ``root``."""
    return [file for file in files if not (root / _marker(file)).exists()]


def by_hand(files: Sequence[Remote], root: Path) -> str:
    """Say what to do without a download."""
    return (
        f"By hand: put the following into {root.parent} as it is and run again, "
        f"or point to the unpacked data set by --data.root DIR:\n{_list(files, root)}"
        f"To try cxlp without any data: {train_program()} --config demo.yaml"
    )


def _list(files: Sequence[Remote], root: Path) -> str:
    return "".join(f"  {file}{_placing(file, root) if isinstance(file, Archive) else ''}\n" for file in files)


def obtain(files: Sequence[Remote], root: Path, name: str, allowed: bool = True) -> None:
    """Make a data set from its files. ``root`` appears only when it is complete; then nothing is done any more.

    Files that lie beside ``root`` are used and kept. Others are fetched into a hidden folder there, which goes
    when all is done, and from which an interrupted download goes on.

    Args:
        files: What it is made of. Plain files that a folder made by hand lacks are added to it.
        root: Where it goes.
        name: The data set's, for messages.
        allowed: Whether to download at all.

    Raises:
        CxlpError: Says where was looked and how to place the files by hand.
    """
    # Looked at first: where another process puts it in place just now, it is either not taken or not lacking.
    is_taken = root.exists() and (not root.is_dir() or any(root.iterdir()))
    lacking = missing(files, root)
    if not lacking:
        return
    hint = by_hand(lacking, root)
    if is_taken and (not root.is_dir() or any(isinstance(file, Archive) for file in lacking)):
        what = ", ".join(_marker(file) for file in lacking)
        raise CxlpError(
            f"{name}: {root} holds something else than the data set, or a part of it: {what} is not there. "
            f"Move it away and run again, or unpack there by hand what is missing:\n{_list(lacking, root)}"
        )
    if not allowed and not all((root.parent / file.file).exists() for file in lacking):
        raise CxlpError(f"{name} not found in {root}, and download is off. {hint}")
    with locked(root.parent / f".{root.name}.lock", name):
        lacking = missing(files, root)  # another process may have been faster
        if not lacking:
            return
        aside = root.parent / f".{root.name}.partial"
        whole = aside / "whole"
        try:
            shutil.rmtree(whole, ignore_errors=True)  # of a run that was killed
            whole.mkdir(parents=True)
            hint = f"{name} was looked for in {root}. {hint}"
            _assemble({file: _find(file, root.parent, aside, hint) for file in lacking}, whole, aside, name)
            if is_taken:
                for file in whole.iterdir():
                    file.replace(root / file.name)
            else:
                if root.exists():
                    root.rmdir()
                whole.rename(root)
            shutil.rmtree(aside)
        except OSError as error:
            room = "make room there, then " if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
            raise CxlpError(
                f"{name}: cannot make {root}: {error}. What was downloaded is kept: {room}run again"
            ) from error
        finally:
            shutil.rmtree(whole, ignore_errors=True)
            if aside.exists() and not any(aside.iterdir()):
                aside.rmdir()


def _find(file: Remote, beside: Path, aside: Path, hint: str) -> Path:
    """A file that somebody placed by hand, verified, or else one that is fetched."""
    placed = beside / file.file
    if placed.exists():
        verify(placed, file)
        return placed
    return fetch(file, aside, hint)


def _assemble(found: dict[Remote, Path], whole: Path, aside: Path, name: str) -> None:
    for file, path in found.items():
        if not isinstance(file, Archive):
            shutil.copyfile(path, whole / file.file)
            continue
        try:
            _unpack(file, path, whole)
            if not (whole / file.marker).exists():
                raise tarfile.TarError(f"it holds no {' or '.join(file.folders)} with {file.marker}")
        except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
            if isinstance(error, OSError) and error.errno:  # the disk's fault, not the archive's
                raise
            reason = str(error).partition(":\n")[0]  # tarfile goes on with a line per kind of compression
            if path.parent == aside:
                path.unlink()
                raise CxlpError(f"{name}: cannot unpack {file}: {reason}. It was deleted: run again") from error
            raise CxlpError(f"{name}: cannot unpack {path}: {reason}. Delete it and run again") from error


def _unpack(archive: Archive, path: Path, whole: Path) -> None:
    """Unpack what lies in the archive's folder; the rest is passed over."""

    def moved(name: str) -> str | None:
        old = PurePosixPath(name)
        folder = next((f for f in archive.folders if old.is_relative_to(f)), None)
        return None if folder is None else str(archive.into / old.relative_to(folder))

    def choose(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
        name, link = moved(member.name), member.linkname
        if name is None:
            return None
        progress.update()
        if member.islnk():  # hard links name another member, symbolic ones a path from where they are
            link = moved(link) or f"/{link}"
        # "data" refuses paths and links out of the folder, devices, and odd permissions.
        return tarfile.data_filter(member.replace(name=name, linkname=link, deep=False), folder)

    with tarfile.open(path) as tar, bar(f"Unpacking {archive.file}", unit="files") as progress:
        tar.extractall(whole, filter=choose)


def _marker(file: Remote) -> str:
    return file.marker if isinstance(file, Archive) else file.file


def _placing(archive: Archive, root: Path) -> str:
    return f"; its folder {' or '.join(archive.folders)} becomes {root / archive.into}"
