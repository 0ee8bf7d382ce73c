"""Small archives on a server of this machine."""

import hashlib
import io
import tarfile
from pathlib import Path

from cxlp.data.download import Archive
from cxlp.utils.fetching import Remote
from tests.server import Server

BIRDS = {"BIRDS/images.txt": b"1 a.jpg\n", "BIRDS/images/a.jpg": b"pixels", "BESIDE.txt": b"not wanted"}


def tar(members: dict[str, bytes], mode: str = "w:gz") -> bytes:
    """An archive of files."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def offer(server: Server, content: bytes) -> Archive:
    """Put an archive on the server."""
    return Archive(
        urls=(server.offer("/birds.tgz", content) + "?download=1",),
        file="birds.tgz",
        checksum=f"md5:{hashlib.md5(content, usedforsecurity=False).hexdigest()}",
        size=len(content),
        folders=("BIRDS",),
        marker="images.txt",
    )


def plain(server: Server, file: str, content: bytes) -> Remote:
    """Put a file that is not to be unpacked on the server."""
    sha1 = hashlib.sha1(content, usedforsecurity=False).hexdigest()
    return Remote(urls=(server.offer(f"/{file}", content),), file=file, checksum=f"sha1:{sha1}", size=len(content))


def left(folder: Path) -> list[str]:
    """All files and folders, hidden ones too."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
