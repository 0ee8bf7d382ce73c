"""Getting a data set from a server on this machine: verified, unpacked aside, never half."""

import hashlib
import io
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from cxlp.data import cub200
from cxlp.data.cub200 import CUB200
from cxlp.data.download import Archive, by_hand, obtain
from cxlp.errors import CxlpError
from tests.generate import write_cub200

Server = tuple[str, list[str]]  # its address, and the paths that were asked for


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Serves ``tmp_path/served``."""
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            asked.append(self.path)

    (tmp_path / "served").mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(tmp_path / "served"))) as http:
        Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}", asked
        http.shutdown()


def tar(members: dict[str, bytes], mode: str = "w:gz") -> bytes:
    """An archive of files."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def offer(tmp_path: Path, server: Server, content: bytes) -> Archive:
    """Put an archive on the server."""
    (tmp_path / "served" / "birds.tgz").write_bytes(content)
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    return Archive(f"{server[0]}/birds.tgz?download=1", "birds.tgz", md5, "1 kB", "BIRDS")


def left(folder: Path) -> list[str]:
    """All files and folders, hidden ones too."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


BIRDS = {"BIRDS/images.txt": b"1 a.jpg\n", "BIRDS/images/a.jpg": b"pixels", "BESIDE.txt": b"not wanted"}


def test_archive_is_fetched_verified_unpacked_and_renamed(tmp_path: Path, server: Server) -> None:
    archive = offer(tmp_path, server, tar(BIRDS))
    root = tmp_path / "new" / "data" / "birds"  # not the archive's own name, and no parents yet
    obtain(archive, root, "Birds")
    assert left(root.parent) == ["birds", "birds/images", "birds/images.txt", "birds/images/a.jpg"]
    assert (root / "images" / "a.jpg").read_bytes() == b"pixels"


def test_empty_folder_is_filled(tmp_path: Path, server: Server) -> None:
    root = tmp_path / "data" / "birds"
    root.mkdir(parents=True)
    obtain(offer(tmp_path, server, tar(BIRDS)), root, "Birds")
    assert (root / "images.txt").is_file()


def test_wrong_checksum_is_refused_before_unpacking(tmp_path: Path, server: Server) -> None:
    archive = replace(offer(tmp_path, server, tar(BIRDS)), md5="0" * 32)
    root = tmp_path / "data" / "birds"
    with pytest.raises(CxlpError, match=f"expected {'0' * 32}") as caught:
        obtain(archive, root, "Birds")
    assert "By hand: fetch" in str(caught.value)
    assert left(root.parent) == []


def test_incomplete_transfer_is_refused(tmp_path: Path, server: Server) -> None:
    archive = offer(tmp_path, server, tar(BIRDS))
    file = tmp_path / "served" / "birds.tgz"
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(CxlpError, match="checksum"):
        obtain(archive, tmp_path / "data" / "birds", "Birds")
    assert left(tmp_path / "data") == []


@pytest.mark.parametrize("content", [tar(BIRDS)[:-40], tar(BIRDS, "w")[:515], b"<html>moved</html>", b""])
def test_archive_that_cannot_be_unpacked_is_named(tmp_path: Path, server: Server, content: bytes) -> None:
    archive = offer(tmp_path, server, content)  # its checksum is right: it was published like this
    with pytest.raises(CxlpError, match=r"(?s)cannot unpack .*birds\.tgz: .*Delete it") as caught:
        obtain(archive, tmp_path / "data" / "birds", "Birds")
    assert str(tmp_path / "data" / "birds.tgz") in str(caught.value)
    assert left(tmp_path / "data") == ["birds.tgz"], "no half-unpacked folder is left"


def test_archive_without_the_folder_is_refused(tmp_path: Path, server: Server) -> None:
    archive = offer(tmp_path, server, tar({"OTHER/images.txt": b""}))
    with pytest.raises(CxlpError, match="holds no folder BIRDS"):
        obtain(archive, tmp_path / "data" / "birds", "Birds")
    assert left(tmp_path / "data") == ["birds.tgz"]


def outside(kind: str, target: Path) -> bytes:
    """An archive that tries to write to a file outside the folder it is unpacked into."""
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
    # The archive is unpacked into a folder beside the root, so ".." from there is "data".
    target = tmp_path / "data" / "target.txt"
    archive = offer(tmp_path, server, outside(kind, target))
    target.parent.mkdir()
    if kind == "hard link":
        target.write_bytes(b"mine")
    before = left(tmp_path / "data")
    with pytest.raises(CxlpError, match="cannot unpack"):
        obtain(archive, tmp_path / "data" / "birds", "Birds")
    assert left(tmp_path / "data") == sorted([*before, "birds.tgz"])
    assert not target.exists() or target.read_bytes() == b"mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "served"]


def test_absolute_paths_stay_inside(tmp_path: Path, server: Server) -> None:
    target = tmp_path / "absolute.txt"
    obtain(offer(tmp_path, server, tar(BIRDS | {str(target): b"evil"})), tmp_path / "data" / "birds", "Birds")
    assert not target.exists()
    assert "birds/images.txt" in left(tmp_path / "data")


def test_folder_that_cannot_be_put_in_place_is_named(tmp_path: Path, server: Server) -> None:
    root = tmp_path / "data" / "birds"
    root.parent.mkdir()
    (tmp_path / "elsewhere").mkdir()
    root.symlink_to(tmp_path / "elsewhere")  # an empty folder, but not one that a rename can replace
    with pytest.raises(CxlpError, match=f"cannot move BIRDS to {root}"):
        obtain(offer(tmp_path, server, tar(BIRDS)), root, "Birds")
    assert left(tmp_path / "elsewhere") == []


def test_other_content_is_refused_without_a_download(tmp_path: Path, server: Server) -> None:
    archive = offer(tmp_path, server, tar(BIRDS))
    root = tmp_path / "data"
    root.mkdir()
    (root / "thesis.txt").write_text("years of work")
    for place in (root, root / "thesis.txt"):
        with pytest.raises(CxlpError, match="holds something else") as caught:
            obtain(archive, place, "Birds")
        assert str(place) in str(caught.value)
    assert server[1] == []
    assert left(root) == ["thesis.txt"]


def test_download_off_asks_no_server(tmp_path: Path, server: Server) -> None:
    archive = offer(tmp_path, server, tar(BIRDS))
    root = tmp_path / "data" / "birds"
    with pytest.raises(CxlpError, match="download is off") as caught:
        obtain(archive, root, "Birds", allowed=False)
    assert server[1] == []
    assert not root.parent.exists()
    for part in (str(root), archive.url, archive.md5, archive.size, archive.folder, "demo.yaml"):
        assert part in str(caught.value)


def test_archive_placed_by_hand_is_verified_used_and_kept(tmp_path: Path, server: Server) -> None:
    archive = offer(tmp_path, server, tar(BIRDS))
    root = tmp_path / "data" / "birds"
    root.parent.mkdir()
    placed = root.parent / "birds.tgz"
    placed.write_bytes(tar(BIRDS)[:-5])  # a browser's download that broke off
    with pytest.raises(CxlpError, match=r"birds\.tgz has MD5 .*, expected .*Delete it"):
        obtain(archive, root, "Birds", allowed=False)
    assert left(root.parent) == ["birds.tgz"]
    content = (tmp_path / "served" / "birds.tgz").read_bytes()
    placed.write_bytes(content)
    obtain(archive, root, "Birds", allowed=False)
    assert server[1] == [], "it is there: no download, and none need be allowed"
    assert (root / "images.txt").is_file()
    assert placed.read_bytes() == content, "what somebody put there is not ours to delete"


@pytest.mark.parametrize("path", ["/moved.tgz", ""])
def test_unreachable_archive_says_how_to_do_it_by_hand(tmp_path: Path, server: Server, path: str) -> None:
    archive = offer(tmp_path, server, tar(BIRDS))
    # No such file on the server; no server at the port (0 is never one).
    archive = replace(archive, url=f"{server[0]}{path}" if path else "http://127.0.0.1:0/birds.tgz")
    root = tmp_path / "data" / "birds"
    with pytest.raises(CxlpError, match=f"cannot download {archive.url}") as caught:
        obtain(archive, root, "Birds")
    assert by_hand(archive, root) in str(caught.value)
    assert left(root.parent) == []


def test_another_run_that_was_faster_keeps_its_files(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "data" / "birds"
    unpack = tarfile.TarFile.extractall

    def meanwhile(*arguments: Any, **options: Any) -> None:
        root.mkdir(parents=True)
        (root / "images.txt").write_text("theirs")
        unpack(*arguments, **options)

    monkeypatch.setattr(tarfile.TarFile, "extractall", meanwhile)
    obtain(offer(tmp_path, server, tar(BIRDS)), root, "Birds")
    assert left(root) == ["images.txt"]
    assert (root / "images.txt").read_text() == "theirs"


def test_benchmark_downloads_once_and_loads(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_cub200(tmp_path / "source", size=32)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        archive.add(folder, "CUB_200_2011")
    offered = offer(tmp_path, server, stream.getvalue())
    monkeypatch.setattr(cub200, "ARCHIVE", replace(offered, folder="CUB_200_2011"))
    module = CUB200(tmp_path / "data" / "CUB_200_2011", image_size=16)
    module.prepare_data()
    module.prepare_data()
    assert len(server[1]) == 1
    module.setup()
    assert {split: len(data) for split, data in module.splits.items()} == {"train": 18, "val": 0, "test": 9}
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["CUB_200_2011"]
