"""Getting a data set from a server on this machine: verified, unpacked aside, never half."""

import hashlib
import importlib
import io
import re
import shutil
import tarfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

import cxlp.data.download
from cxlp.data import DATA_MODULES
from cxlp.data.download import Archive, by_hand, missing, obtain
from cxlp.utils.errors import CxlpError
from cxlp.utils.fetching import Remote
from tests.server import Answer, Server, serving

#: What unpacks: the standard library's, or where that is too old, its successor.
UNPACKER: Any = vars(cxlp.data.download)["tarfile"]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving() as server:
        yield server


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


BIRDS = {"BIRDS/images.txt": b"1 a.jpg\n", "BIRDS/images/a.jpg": b"pixels", "BESIDE.txt": b"not wanted"}


def test_archive_is_fetched_verified_unpacked_and_renamed(tmp_path: Path, server: Server) -> None:
    archive = offer(server, tar(BIRDS))
    root = tmp_path / "new" / "data" / "birds"  # not the archive's own name, and no parents yet
    for _ in range(2):
        obtain([archive], root, "Birds")
    assert len(server.asked) == 1, "the second call asked for nothing"
    assert left(root.parent) == ["birds", "birds/images", "birds/images.txt", "birds/images/a.jpg"]
    assert (root / "images" / "a.jpg").read_bytes() == b"pixels"


def test_empty_folder_is_filled(tmp_path: Path, server: Server) -> None:
    root = tmp_path / "data" / "birds"
    root.mkdir(parents=True)
    obtain([offer(server, tar(BIRDS))], root, "Birds")
    assert (root / "images.txt").is_file()


def test_wrong_checksum_is_refused_before_unpacking(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = replace(offer(server, tar(BIRDS)), checksum=f"md5:{'0' * 32}")
    monkeypatch.setattr(tarfile, "open", None)
    root = tmp_path / "data" / "birds"
    with pytest.raises(CxlpError, match=f"expected {'0' * 32}") as caught:
        obtain([archive], root, "Birds")
    assert "By hand: put" in str(caught.value)
    assert left(root.parent) == []


BROKEN = [tar(BIRDS)[:-40], tar(BIRDS, "w")[:515], b"<html>moved</html>", b""]


@pytest.mark.parametrize("content", BROKEN)
def test_archive_that_cannot_be_unpacked_is_deleted_if_it_came_by_download(
    tmp_path: Path, server: Server, content: bytes
) -> None:
    archive = replace(offer(server, content), checksum=None)
    with pytest.raises(CxlpError, match=r"Birds: cannot unpack birds\.tgz \(.*\) from http.*deleted"):
        obtain([archive], tmp_path / "data" / "birds", "Birds")
    assert left(tmp_path / "data") == []


@pytest.mark.parametrize("content", BROKEN)
def test_archive_that_cannot_be_unpacked_is_kept_if_it_was_placed_by_hand(
    tmp_path: Path, server: Server, content: bytes
) -> None:
    archive = replace(offer(server, content), checksum=None)
    (tmp_path / "birds.tgz").write_bytes(content)
    with pytest.raises(CxlpError, match=rf"cannot unpack {tmp_path / 'birds.tgz'}: .*Delete it"):
        obtain([archive], tmp_path / "birds", "Birds")
    assert left(tmp_path) == ["birds.tgz"]


@pytest.mark.parametrize("name", ["OTHER/images.txt", "BIRDS/other.txt"])
def test_archive_without_the_folder_or_its_marker_is_refused(tmp_path: Path, server: Server, name: str) -> None:
    archive = replace(offer(server, tar({name: b""})), folders=("BIRDS", "old/BIRDS"))
    with pytest.raises(CxlpError, match=r"it holds no BIRDS or old/BIRDS with images\.txt"):
        obtain([archive], tmp_path / "data" / "birds", "Birds")
    assert left(tmp_path / "data") == []


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
    # Two folders above the one that it is unpacked into.
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


def test_folder_that_cannot_be_put_in_place_is_named(tmp_path: Path, server: Server) -> None:
    root = tmp_path / "data" / "birds"
    root.parent.mkdir()
    (tmp_path / "elsewhere").mkdir()
    root.symlink_to(tmp_path / "elsewhere")  # an empty folder, but not one that a rename can replace
    with pytest.raises(CxlpError, match=rf"cannot make {root}: .*{root}"):
        obtain([offer(server, tar(BIRDS))], root, "Birds")
    assert left(tmp_path / "elsewhere") == []


def test_full_disk_is_told_and_the_download_is_kept(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    root, archive = tmp_path / "birds", offer(server, tar(BIRDS))
    with monkeypatch.context() as patch:
        patch.setattr(UNPACKER, "copyfileobj", full)
        with pytest.raises(CxlpError, match=rf"cannot make {root}: .*No space left.* is kept: make room there"):
            obtain([archive], root, "Birds")
    assert left(tmp_path) == [".birds.partial", ".birds.partial/birds.tgz"]
    obtain([archive], root, "Birds")
    assert len(server.asked) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["birds"]


def test_what_a_killed_run_left_is_gone_on_with(tmp_path: Path, server: Server) -> None:
    content = tar(BIRDS)
    archive = offer(server, content)
    aside = tmp_path / ".birds.partial"
    (aside / "whole" / "images").mkdir(parents=True)  # it was killed while unpacking
    (aside / "whole" / "images" / "stray.jpg").touch()
    (aside / "birds.tgz").write_bytes(content)
    (tmp_path / ".birds.lock").touch()
    obtain([archive], tmp_path / "birds", "Birds")
    assert server.asked == []
    assert left(tmp_path) == ["birds", "birds/images", "birds/images.txt", "birds/images/a.jpg"]


def test_other_content_is_refused_without_a_download(tmp_path: Path, server: Server) -> None:
    archive = offer(server, tar(BIRDS))
    root = tmp_path / "data"
    root.mkdir()
    (root / "thesis.txt").write_text("years of work")
    for place in (root, root / "thesis.txt"):
        for files in ([archive], [plain(server, "list.txt", b"a")])[: 1 if place == root else 2]:
            with pytest.raises(CxlpError, match="holds something else") as caught:
                obtain(files, place, "Birds")
            assert str(place) in str(caught.value)
    assert server.asked == []
    assert left(root) == ["thesis.txt"]


def test_download_off_asks_no_server(tmp_path: Path, server: Server) -> None:
    archive = offer(server, tar(BIRDS))
    root = tmp_path / "data" / "birds"
    with pytest.raises(CxlpError, match="download is off") as caught:
        obtain([archive], root, "Birds", allowed=False)
    assert server.asked == []
    assert not root.parent.exists()
    message = str(caught.value)
    assert f"{root}," in message
    assert f"put the following into {root.parent}" in message
    for part in (archive.urls[0], f"MD5 {(archive.checksum or '')[4:]}", f"folder BIRDS becomes {root}", "demo.yaml"):
        assert part in message


def test_archive_placed_by_hand_is_verified_used_and_kept(tmp_path: Path, server: Server) -> None:
    content = tar(BIRDS)
    archive = offer(server, content)
    root = tmp_path / "data" / "birds"
    root.parent.mkdir()
    placed = root.parent / "birds.tgz"
    placed.write_bytes(content[:-5])  # a browser's download that broke off
    with pytest.raises(CxlpError, match=r"birds\.tgz has .* bytes, expected .*Delete it"):
        obtain([archive], root, "Birds", allowed=False)
    assert left(root.parent) == ["birds.tgz"]
    placed.write_bytes(content)
    obtain([archive], root, "Birds", allowed=False)
    assert server.asked == [], "it is there: no download, and none need be allowed"
    assert (root / "images.txt").is_file()
    assert placed.read_bytes() == content, "what somebody put there is not ours to delete"


@pytest.mark.parametrize("path", ["/moved.tgz", ""])
def test_unreachable_archive_says_how_to_do_it_by_hand(tmp_path: Path, server: Server, path: str) -> None:
    # No such file on the server; no server at the port (0 is never one).
    url = server.url(path) if path else "http://127.0.0.1:0/birds.tgz"
    files = [replace(offer(server, tar(BIRDS)), urls=(url,)), plain(server, "list.txt", b"a")]
    root = tmp_path / "data" / "birds"
    with pytest.raises(CxlpError, match=f"cannot download {url}") as caught:
        obtain(files, root, "Birds")
    assert by_hand(files, root) in str(caught.value)
    assert str(root) in str(caught.value)
    assert left(root.parent) == []


def test_of_two_runs_one_makes_it_and_the_other_waits(
    tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    content = tar(BIRDS)
    archive = offer(server, content)
    stalled = Answer(content, cut_after=9, stalls=True)
    server.offer("/birds.tgz", stalled, Answer(content))
    runs = [Thread(target=obtain, args=([archive], tmp_path / "birds", "Birds")) for _ in range(2)]
    for run in runs:
        run.start()
    said, deadline = "", time.monotonic() + 20
    while "Another process fetches Birds: waiting for it" not in said and time.monotonic() < deadline:
        time.sleep(0.01)
        said += capsys.readouterr().out
    server.over.set()
    for run in runs:
        run.join(timeout=20)
    assert "waiting for it" in said
    assert [a.range for a in server.asked] == [None, "bytes=9-"]
    assert left(tmp_path) == ["birds", "birds/images", "birds/images.txt", "birds/images/a.jpg"]


# --- the benchmarks' structures


@pytest.mark.parametrize("folder", ["Images", "indoorCVPR_09/Images"])
def test_mit67_is_one_archive_and_two_lists_beside_it(tmp_path: Path, server: Server, folder: str) -> None:
    content = tar({f"{folder}/mall/shopping mall.jpg": b"pixels", "indoorCVPR_09/Annotations/a.xml": b""}, "w")
    files = [
        replace(
            offer(server, content),
            checksum=f"sha1:{hashlib.sha1(content, usedforsecurity=False).hexdigest()}",
            folders=("Images", "indoorCVPR_09/Images"),
            into="Images",
            marker="Images",
        ),
        plain(server, "TrainImages.txt", b"mall/shopping mall.jpg"),
        plain(server, "TestImages.txt", b""),
    ]
    root = tmp_path / "mit67"
    for _ in range(2):
        obtain(files, root, "MIT Indoor-67")
    assert len(server.asked) == 3
    whole = ["Images", "Images/mall", "Images/mall/shopping mall.jpg", "TestImages.txt", "TrainImages.txt"]
    assert left(root) == whole
    assert (root / "TrainImages.txt").read_bytes() == b"mall/shopping mall.jpg"
    assert [path.name for path in tmp_path.iterdir()] == ["mit67"]

    # Somebody unpacked the archive by hand, and did not know of the lists.
    (root / "TrainImages.txt").unlink()
    (root / "TestImages.txt").unlink()
    server.asked.clear()
    obtain(files, root, "MIT Indoor-67")
    assert [a.path for a in server.asked] == ["/TrainImages.txt", "/TestImages.txt"]
    assert left(root) == whole
    assert [path.name for path in tmp_path.iterdir()] == ["mit67"]

    # The other way round, the lists are not enough.
    shutil.rmtree(root / "Images")
    with pytest.raises(CxlpError, match="holds something else than the data set, or a part of it: Images is not there"):
        obtain(files, root, "MIT Indoor-67")


def test_nothing_is_in_place_until_the_last_file_came(tmp_path: Path, server: Server) -> None:
    files = [offer(server, tar(BIRDS)), plain(server, "list.txt", b"a"), plain(server, "other.txt", b"b")]
    server.offer("/list.txt", Answer(status=404))
    (tmp_path / "other.txt").write_bytes(b"b")  # placed by hand
    root = tmp_path / "birds"
    with pytest.raises(CxlpError, match=r"/list\.txt: HTTP Error 404"):
        obtain(files, root, "Birds")
    assert left(tmp_path) == [".birds.partial", ".birds.partial/birds.tgz", "other.txt"]
    server.offer("/list.txt", b"a")
    obtain(files, root, "Birds")
    assert [a.path for a in server.asked] == ["/birds.tgz?download=1", "/list.txt", "/list.txt"]
    assert missing(files, root) == []
    assert (tmp_path / "other.txt").read_bytes() == (root / "other.txt").read_bytes() == b"b"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["birds", "other.txt"]


@pytest.mark.parametrize("name", DATA_MODULES)
def test_official_entries_are_well_formed(name: str) -> None:
    module = importlib.import_module(f"cxlp.data.{name}")
    for file in getattr(module, "FILES", ()):
        assert file.urls and all(re.match(r"https?://[\w.]+/", url) for url in file.urls)
        if file.checksum is not None:
            algorithm, _, digest = file.checksum.partition(":")
            assert len(bytes.fromhex(digest)) == hashlib.new(algorithm).digest_size
