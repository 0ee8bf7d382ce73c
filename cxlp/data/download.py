"""Getting a data set: fetch, verify, unpack aside, rename."""

import hashlib
import tarfile
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from cxlp.errors import CxlpError
from cxlp.weights import fetch


@dataclass(frozen=True)
class Archive:
    """A data set's official archive.

    Attributes:
        url: Where it is.
        file: What it is called on disk.
        md5: Its published checksum.
        size: For people.
        folder: The folder in it that becomes the data set's root.
    """

    url: str
    file: str
    md5: str
    size: str
    folder: str


def by_hand(archive: Archive, root: Path) -> str:
    """Say what to do without a download."""
    return (
        f"By hand: fetch {archive.url} ({archive.size}, MD5 {archive.md5}), unpack it, and put its folder "
        f"{archive.folder} at {root} (or point --data.root to it). "
        "To try cxlp without any data: python train.py --config demo.yaml"
    )


def obtain(archive: Archive, root: Path, name: str, allowed: bool = True) -> None:
    """Fetch and unpack an archive; ``root`` appears only when it is whole.

    Args:
        archive: What to get.
        root: Where its folder goes.
        name: The data set's name, for messages.
        allowed: Whether to download at all.

    Raises:
        CxlpError: Says where was looked and how to place the files by hand.
    """
    found = root.parent / archive.file
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise CxlpError(f"{name}: {root} holds something else than the data set. {by_hand(archive, root)}")
    placed_by_hand = found.exists()
    if not allowed and not placed_by_hand:
        raise CxlpError(f"{name} not found in {root}, and download is off. {by_hand(archive, root)}")
    hint = f"{name} was looked for in {root}. {by_hand(archive, root)}"
    if placed_by_hand:
        _verify(found, archive)
    else:
        fetch(archive.url, found, md5=archive.md5, by_hand=hint)
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{archive.folder}-") as aside:
        try:
            with tarfile.open(found) as tar:
                # "data" refuses paths and links out of the folder, devices, and odd permissions.
                tar.extractall(aside, filter="data")
        except (tarfile.TarError, zlib.error, OSError, EOFError) as error:
            raise CxlpError(f"cannot unpack {found}: {error}. Delete it and run again.") from error
        folder = Path(aside) / archive.folder
        if not folder.is_dir():
            raise CxlpError(f"{found} holds no folder {archive.folder}. Delete it and run again.")
        try:
            if root.exists():
                root.rmdir()
            folder.rename(root)
        except OSError as error:
            # Another run was faster: what it put there is whole, too.
            if root.is_dir() and any(root.iterdir()):
                return
            raise CxlpError(f"cannot move {archive.folder} to {root}: {error}") from error
    if not placed_by_hand:
        found.unlink()


def _verify(file: Path, archive: Archive) -> None:
    with file.open("rb") as stream:
        got = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if got != archive.md5:
        raise CxlpError(f"{file} has MD5 {got}, expected {archive.md5}: incomplete? Delete it and run again.")
