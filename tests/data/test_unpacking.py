"""Unpacking archives: only the data set's members, and only into its folder."""

import io
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from cxlp.data.download import obtain
from cxlp.utils.errors import CxlpError
from tests.data.archives import BIRDS, left, offer, tar
from tests.server import Server


@pytest.mark.parametrize(
    "content",
    [tar(BIRDS)[:-40], tar(BIRDS, "w")[:515], b"<html>moved</html>", b""],
    ids=[
        "cut tgz",
        "cut tar",
        "web page",
        "empty",
    ],  # an archive contains times: the processes would have different names
)
def test_archive_that_cannot_be_unpacked_is_deleted_unless_it_was_placed_by_hand(
    tmp_path: Path, server: Server, content: bytes
) -> None:
    archive = replace(offer(server, content), checksum=None)
    with pytest.raises(CxlpError, match=r"Birds: cannot unpack birds\.tgz \(.*\) from http.*deleted"):
        obtain([archive], tmp_path / "birds", "Birds")
    assert left(tmp_path) == []
    (tmp_path / "birds.tgz").write_bytes(content)
    with pytest.raises(CxlpError, match=rf"cannot unpack {tmp_path / 'birds.tgz'}: .*Delete it"):
        obtain([archive], tmp_path / "birds", "Birds")
    assert left(tmp_path) == ["birds.tgz"]


@pytest.mark.parametrize("name", ["OTHER/images.txt", "BIRDS/other.txt"])
def test_archive_without_the_folder_or_its_marker_is_refused(tmp_path: Path, server: Server, name: str) -> None:
    archive = replace(offer(server, tar({name: b""})), folders=("BIRDS", "old/BIRDS"))
    with pytest.raises(CxlpError, match=r"no BIRDS or old/BIRDS with images\.txt"):
        obtain([archive], tmp_path / "data" / "birds", "Birds")
    assert left(tmp_path / "data") == []


def outside(kind: str, target: Path) -> bytes:
    """Create an archive that tries to write to a file outside the target folder."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        link = tarfile.TarInfo("BIRDS/link")
        file = tarfile.TarInfo("BIRDS/images.txt")
        if kind == "parent":
            file.name = f"BIRDS/../../{target.name}"
        elif kind == "symbolic link":
            link.type, link.linkname = tarfile.SYMTYPE, str(target.parent)
            file.name = f"BIRDS/link/{target.name}"
        elif kind == "hard link":
            link.type, link.linkname = tarfile.LNKTYPE, f"../../{target.name}"
        elif kind == "device":
            link.type, link.devmajor, link.devminor = tarfile.CHRTYPE, 1, 3
        if link.type != tarfile.REGTYPE:
            archive.addfile(link)
        file.size = 4
        archive.addfile(file, io.BytesIO(b"evil"))
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["parent", "symbolic link", "hard link", "device"])
def test_paths_out_of_the_folder_are_refused(tmp_path: Path, server: Server, kind: str) -> None:
    # Two folders above the target folder.
    target = tmp_path / "data" / "target.txt"
    archive = offer(server, outside(kind, target))
    target.parent.mkdir()
    if kind == "hard link":
        target.write_bytes(b"mine")
    before = left(tmp_path)
    with pytest.raises(CxlpError, match="cannot unpack"):
        obtain([archive], tmp_path / "data" / "birds", "Birds")
    assert left(tmp_path) == before
    assert not target.exists() or target.read_bytes() == b"mine"


def test_absolute_paths_stay_inside(tmp_path: Path, server: Server) -> None:
    target = tmp_path / "absolute.txt"
    obtain([offer(server, tar(BIRDS | {str(target): b"evil"}))], tmp_path / "data" / "birds", "Birds")
    assert not target.exists()
    assert "birds/images.txt" in left(tmp_path / "data")


def test_links_inside_the_folder_are_kept(tmp_path: Path, server: Server) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, kind, link in [
            ("./BIRDS/images.txt", tarfile.REGTYPE, ""),
            ("./BIRDS/hard.txt", tarfile.LNKTYPE, "./BIRDS/images.txt"),
            ("./BIRDS/soft.txt", tarfile.SYMTYPE, "images.txt"),
        ]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, link, 0 if link else 4
            archive.addfile(info, io.BytesIO(b"list"))
    root = tmp_path / "birds"
    obtain([replace(offer(server, stream.getvalue()), into="deep/er", marker="deep/er/images.txt")], root, "Birds")
    assert left(root / "deep" / "er") == ["hard.txt", "images.txt", "soft.txt"]
    assert all(path.read_bytes() == b"list" for path in (root / "deep" / "er").iterdir())
