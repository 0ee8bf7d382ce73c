"""Small archives on a local server."""

import hashlib
import io
import tarfile
from pathlib import Path

from cxlp.data.download import Archive
from cxlp.utils.fetching import Remote
from tests.server import Server

BIRDS = {"BIRDS/images.txt": b"1 a.jpg\n", "BIRDS/images/a.jpg": b"pixels", "BESIDE.txt": b"not wanted"}


def tar(members: dict[str, bytes], mode: str = "w:gz") -> bytes:
    """Return the bytes of an archive with these files."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def offer(server: Server, content: bytes) -> Archive:
    """Serve an archive."""
    return Archive(
        urls=(server.offer("/birds.tgz", content) + "?download=1",),
        file="birds.tgz",
        checksum=f"md5:{hashlib.md5(content, usedforsecurity=False).hexdigest()}",
        size=len(content),
        folders=("BIRDS",),
        marker="images.txt",
    )


def plain(server: Server, file: str, content: bytes) -> Remote:
    """Serve a file that is not an archive."""
    sha1 = hashlib.sha1(content, usedforsecurity=False).hexdigest()
    return Remote(urls=(server.offer(f"/{file}", content),), file=file, checksum=f"sha1:{sha1}", size=len(content))


def left(folder: Path) -> list[str]:
    """List all files and folders, also hidden ones."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))
