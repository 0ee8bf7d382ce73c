"""Getting a data set: fetch, verify, unpack aside, rename."""

import shutil
import tarfile
import tempfile
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
    if root.exists() and any(root.iterdir()):
        raise CxlpError(f"{name}: {root} holds something else than the data set. {by_hand(archive, root)}")
    if not allowed and not found.exists():
        raise CxlpError(f"{name} not found in {root}, and download is off. {by_hand(archive, root)}")
    hint = f"{name} was looked for in {root}. {by_hand(archive, root)}"
    fetch(archive.url, found, md5=archive.md5, by_hand=hint)
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{archive.folder}-") as aside:
        try:
            with tarfile.open(found) as tar:
                # "data" refuses paths and links out of the folder, devices, and odd permissions.
                tar.extractall(aside, filter="data")
        except (tarfile.TarError, OSError, EOFError) as error:
            raise CxlpError(f"cannot unpack {found}: {error}. Delete it and run again.") from error
        if root.exists():
            root.rmdir()
        shutil.move(str(Path(aside) / archive.folder), root)
    found.unlink()
