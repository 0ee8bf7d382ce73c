"""Downloading a data set from a local server: verification, unpacking and atomic renaming."""

import hashlib
import importlib
import re
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

import cxlp.data.download
from cxlp.data import DATA_MODULES
from cxlp.data.download import by_hand, missing, obtain
from cxlp.utils.errors import CxlpError
from tests.data.archives import BIRDS, left, offer, plain, tar
from tests.server import Answer, Server

#: The module that unpacks: that of the standard library, or its backport if that is too old.
UNPACKER: Any = vars(cxlp.data.download)["tarfile"]


def test_archive_is_fetched_verified_unpacked_and_renamed(tmp_path: Path, server: Server) -> None:
    archive = offer(server, tar(BIRDS))
    root = tmp_path / "new" / "data" / "birds"  # another name than the archive's, and missing parents
    for _ in range(2):
        obtain([archive], root, "Birds")
    assert len(server.asked) == 1, "the second call sent no request"
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


def test_a_folder_that_cannot_be_created_is_named(tmp_path: Path, server: Server) -> None:
    root = tmp_path / "data" / "birds"
    root.parent.mkdir()
    (tmp_path / "elsewhere").mkdir()
    root.symlink_to(tmp_path / "elsewhere")  # an empty folder that a rename cannot replace
    with pytest.raises(CxlpError, match=rf"cannot create {root}: .*{root}"):
        obtain([offer(server, tar(BIRDS))], root, "Birds")
    assert left(tmp_path / "elsewhere") == []


def test_a_full_disk_is_reported_and_the_download_is_kept(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    root, archive = tmp_path / "birds", offer(server, tar(BIRDS))
    with monkeypatch.context() as patch:
        patch.setattr(UNPACKER, "copyfileobj", full)
        with pytest.raises(CxlpError, match=rf"cannot create {root}: .*No space left.*: make room there"):
            obtain([archive], root, "Birds")
    assert left(tmp_path) == [".birds.partial", ".birds.partial/birds.tgz"]
    obtain([archive], root, "Birds")
    assert len(server.asked) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["birds"]


def test_a_killed_download_is_continued(tmp_path: Path, server: Server) -> None:
    content = tar(BIRDS)
    archive = offer(server, content)
    aside = tmp_path / ".birds.partial"
    (aside / "unpacked" / "images").mkdir(parents=True)  # it was killed while unpacking
    (aside / "unpacked" / "images" / "stray.jpg").touch()
    (aside / "birds.tgz").write_bytes(content)
    (tmp_path / ".birds.lock").touch()
    obtain([archive], tmp_path / "birds", "Birds")
    assert server.asked == []
    assert left(tmp_path) == ["birds", "birds/images", "birds/images.txt", "birds/images/a.jpg"]


def test_other_content_is_refused_before_the_download(tmp_path: Path, server: Server) -> None:
    archive = offer(server, tar(BIRDS))
    root = tmp_path / "data"
    root.mkdir()
    (root / "thesis.txt").write_text("years of work")
    for place in (root, root / "thesis.txt"):
        for files in ([archive], [plain(server, "list.txt", b"a")])[: 1 if place == root else 2]:
            with pytest.raises(CxlpError, match=r"Birds: .* is missing") as caught:
                obtain(files, place, "Birds")
            assert str(place) in str(caught.value)
    assert server.asked == []
    assert left(root) == ["thesis.txt"]


def test_without_download_no_server_is_contacted(tmp_path: Path, server: Server) -> None:
    archive = offer(server, tar(BIRDS))
    root = tmp_path / "data" / "birds"
    with pytest.raises(CxlpError, match="download is off") as caught:
        obtain([archive], root, "Birds", allowed=False)
    assert server.asked == []
    assert not root.parent.exists()
    message = str(caught.value)
    assert f"{root}," in message
    assert f"put the following files into {root.parent}" in message
    for part in (archive.urls[0], f"MD5 {(archive.checksum or '')[4:]}", f"folder BIRDS becomes {root}", "demo.yaml"):
        assert part in message


def test_archive_placed_by_hand_is_verified_used_and_kept(tmp_path: Path, server: Server) -> None:
    content = tar(BIRDS)
    archive = offer(server, content)
    root = tmp_path / "data" / "birds"
    root.parent.mkdir()
    placed = root.parent / "birds.tgz"
    placed.write_bytes(content[:-5])  # an interrupted download of a browser
    with pytest.raises(CxlpError, match=r"birds\.tgz has .* bytes, expected .*Delete it"):
        obtain([archive], root, "Birds", allowed=False)
    assert left(root.parent) == ["birds.tgz"]
    placed.write_bytes(content)
    obtain([archive], root, "Birds", allowed=False)
    assert server.asked == [], "it exists: no download is needed"
    assert (root / "images.txt").is_file()
    assert placed.read_bytes() == content, "the user's own files must not be deleted"


@pytest.mark.parametrize("path", ["/moved.tgz", ""])
def test_an_unreachable_archive_explains_the_manual_download(tmp_path: Path, server: Server, path: str) -> None:
    # No such file on the server; no server at the port (0 is never used).
    url = server.url(path) if path else "http://127.0.0.1:0/birds.tgz"
    files = [replace(offer(server, tar(BIRDS)), urls=(url,)), plain(server, "list.txt", b"a")]
    root = tmp_path / "data" / "birds"
    with pytest.raises(CxlpError, match=f"cannot download {url}") as caught:
        obtain(files, root, "Birds")
    assert by_hand(files, root) in str(caught.value)
    assert str(root) in str(caught.value)
    assert left(root.parent) == []


def test_one_of_two_runs_creates_it_while_the_other_waits(
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
    while "Another process is downloading Birds: waiting for it" not in said and time.monotonic() < deadline:
        time.sleep(0.01)
        said += capsys.readouterr().err
    server.over.set()
    for run in runs:
        run.join(timeout=20)
    assert "waiting for it" in said
    assert [a.range for a in server.asked] == [None, "bytes=9-"]
    assert left(tmp_path) == ["birds", "birds/images", "birds/images.txt", "birds/images/a.jpg"]


# --- the structures of the benchmarks


def test_missing_lists_are_added_to_a_folder_but_no_archive(tmp_path: Path, server: Server) -> None:
    files = [offer(server, tar(BIRDS)), plain(server, "list.txt", b"a"), plain(server, "other.txt", b"b")]
    root = tmp_path / "birds"
    obtain(files, root, "Birds")
    whole = left(root)
    for name in ("list.txt", "other.txt"):  # the user has unpacked the archive but not downloaded the lists
        (root / name).unlink()
    server.asked.clear()
    obtain(files, root, "Birds")
    assert [a.path for a in server.asked] == ["/list.txt", "/other.txt"]
    assert left(root) == whole and [path.name for path in tmp_path.iterdir()] == ["birds"]
    (root / "images.txt").unlink()  # conversely, the lists are not enough
    with pytest.raises(CxlpError, match=r"images\.txt is missing"):
        obtain(files, root, "Birds")


def test_the_folder_appears_after_the_last_file(tmp_path: Path, server: Server) -> None:
    files = [offer(server, tar(BIRDS)), plain(server, "list.txt", b"a"), plain(server, "other.txt", b"b")]
    server.offer("/list.txt", Answer(status=404))
    (tmp_path / "other.txt").write_bytes(b"b")  # placed by the user
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
