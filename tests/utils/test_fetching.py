"""Downloading from a server that truncates, stalls, redirects, fails, ignores ranges, and sends other bytes."""

import hashlib
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import cxlp.utils.fetching
from cxlp.utils.errors import CxlpError
from cxlp.utils.fetching import Remote, fetch, verify
from tests.server import Answer, Server, serving

CONTENT = bytes(range(256)) * 8000  # two megabytes: more than one chunk
OTHER = bytes(reversed(CONTENT))
TOTAL = len(CONTENT)
SHA256 = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
AT_ONCE = (0.0, 0.0)


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


def remote(*urls: str, checksum: str | None = SHA256, size: int | str = "2 MB") -> Remote:
    return Remote(urls=urls, file="file.bin", checksum=checksum, size=size)


def begun(server: Server, folder: Path, file: Remote, cut: Answer) -> int:
    """Leave a part of a file, like an interrupted download, and return its size."""
    path = "/" + file.urls[0].rpartition("/")[2]
    later = server.answers[path]
    server.answers[path] = [cut]
    with pytest.raises(CxlpError, match="connection was lost"):
        fetch(file, folder, waits=())
    server.answers[path] = later
    server.asked.clear()
    return (folder / "file.bin.part").stat().st_size


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- complete files


@pytest.mark.parametrize("algorithm", ["md5", "sha1", "sha256"])
@pytest.mark.parametrize("sized", [True, False])
def test_a_file_is_fetched_once(server: Server, tmp_path: Path, algorithm: str, sized: bool) -> None:
    checksum = f"{algorithm}:{hashlib.new(algorithm, CONTENT).hexdigest()}"
    file = remote(server.offer("/file", Answer(CONTENT, sized=sized)), checksum=checksum, size=TOTAL)
    folder = tmp_path / "new" / "folder"
    for _ in range(2):
        assert fetch(file, folder) == folder / "file.bin"
    assert (folder / "file.bin").read_bytes() == CONTENT
    assert len(server.asked) == 1, "the second call sent no request"
    assert names(folder) == ["file.bin"]


def test_without_a_published_checksum_the_actual_one_is_printed(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fetch(remote(server.offer("/file", CONTENT), checksum=None), tmp_path)
    assert f"No checksum of file.bin is published; this file has SHA-256 {SHA256[7:]}" in capsys.readouterr().err


def test_redirects_are_followed(server: Server, tmp_path: Path) -> None:
    server.offer("/there", Answer(CONTENT))
    file = remote(server.offer("/here", Answer(location="/there")))
    begun(server, tmp_path, replace(file, urls=(server.url("/there"),)), Answer(CONTENT, cut_after=1_500_000))
    fetch(file, tmp_path)
    assert [(a.path, a.range) for a in server.asked] == [("/here", "bytes=1500000-"), ("/there", "bytes=1500000-")]
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


# --- continued downloads


@pytest.mark.parametrize("checksum", [None, SHA256])
def test_a_lost_connection_is_resumed(server: Server, tmp_path: Path, checksum: str | None) -> None:
    cut = Answer(CONTENT, cut_after=900_000, etag='"v1"')
    url = server.offer("/file", cut, cut, Answer(CONTENT, etag='"v1"'))
    fetch(remote(url, checksum=checksum), tmp_path, waits=AT_ONCE)
    assert [a.range for a in server.asked] == [None, "bytes=900000-", "bytes=1800000-"]
    assert [a.if_range for a in server.asked] == [None, '"v1"', '"v1"']
    assert sum(a.sent for a in server.asked) == TOTAL, "nothing was sent twice"
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_stalled_connection_counts_as_lost(server: Server, tmp_path: Path) -> None:
    file = remote(server.offer("/file", Answer(CONTENT, cut_after=TOTAL // 2, stalls=True), Answer(CONTENT)))
    start = time.perf_counter()
    fetch(file, tmp_path, stall=0.2, waits=AT_ONCE)
    assert 0.2 <= time.perf_counter() - start < 5
    assert [a.sent for a in server.asked] == [TOTAL // 2, TOTAL // 2]
    server.offer("/file", Answer(CONTENT, cut_after=0, stalls=True))
    with pytest.raises(CxlpError, match=r"/file: no data for 0\.2 s"):
        fetch(file, tmp_path / "elsewhere", stall=0.2, waits=())


def test_attempts_are_bounded_unless_bytes_arrive(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cxlp.utils.fetching, "PROGRESS", 1000)
    file = remote(server.offer("/file", Answer(CONTENT, cut_after=300_000)))
    fetch(file, tmp_path / "a", waits=(0.0,))
    assert len(server.asked) == 7, "each added 300,000 bytes"
    server.asked.clear()
    server.offer("/file", Answer(CONTENT, cut_after=300_000, ranges=False))
    with pytest.raises(CxlpError, match=r"lost after 300,000 of 2,048,000 bytes\. By hand\."):
        fetch(file, tmp_path / "b", "By hand.", waits=(0.0,))
    assert len(server.asked) == 2, "the second one ended at the same place as the first"


#: Downloads in a new process, with this module only: it does not need torch.
CHILD = """
import sys, types
from pathlib import Path
cxlp = sys.modules["cxlp"] = types.ModuleType("cxlp")
cxlp.__path__ = [sys.argv[1]]
from cxlp.utils.fetching import Remote, fetch
assert "torch" not in sys.modules
fetch(Remote(urls=(sys.argv[3],), file="file.bin", checksum=sys.argv[4] or None, size="2 MB"), Path(sys.argv[2]))
"""


def child(folder: Path, url: str, checksum: str) -> subprocess.Popen[str]:
    package = str(Path(cxlp.__file__).parent)
    command = [sys.executable, "-c", CHILD, package, str(folder), url, checksum]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.parametrize("checksum", ["", SHA256])
def test_a_killed_download_is_resumed_by_the_next_process(server: Server, tmp_path: Path, checksum: str) -> None:
    half = TOTAL // 2
    url = server.offer("/file", Answer(CONTENT, cut_after=half, stalls=True, etag='"v1"'), Answer(CONTENT, etag='"v1"'))
    process = child(tmp_path, url, checksum)
    part = tmp_path / "file.bin.part"
    deadline = time.monotonic() + 20
    while not (part.exists() and part.stat().st_size > half - 20_000) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.communicate(timeout=20)
    kept = part.stat().st_size
    assert kept > half - 20_000
    fetch(remote(url, checksum=checksum or None), tmp_path)
    assert [(a.range, a.sent) for a in server.asked] == [(None, half), (f"bytes={kept}-", TOTAL - kept)]
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert names(tmp_path) == ["file.bin"]


def test_a_complete_part_needs_no_request(server: Server, tmp_path: Path) -> None:
    file = remote(server.offer("/file", CONTENT))
    begun(server, tmp_path, file, Answer(CONTENT, cut_after=TOTAL - 1))
    with (tmp_path / "file.bin.part").open("ab") as part:
        part.write(CONTENT[-1:])  # the process was killed just before it renamed the file
    fetch(file, tmp_path)
    assert server.asked == []
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("before", "after", "checksum", "ranges"),
    [
        # By If-Range, the server notices that the part is of another file, and sends its whole file.
        (Answer(OTHER, etag='"v1"'), Answer(CONTENT, etag='"v2"'), None, ["bytes=900000-"]),
        # It ignores If-Range, but its ETag differs.
        (
            Answer(OTHER, etag='"v1"'),
            Answer(CONTENT, etag='"v2"', keeps_to_if_range=False),
            None,
            ["bytes=900000-", None],
        ),
        # Its size differs: larger, or smaller than the part.
        (Answer(OTHER + b"more"), Answer(CONTENT), SHA256, ["bytes=900000-", None]),
        (Answer(OTHER * 2, cut_after=TOTAL + 9), Answer(CONTENT), SHA256, [f"bytes={TOTAL + 9}-", None]),
        # Only the checksum differs, at the end.
        (Answer(OTHER), Answer(CONTENT), SHA256, ["bytes=900000-", None]),
        # Nothing would differ; a weak ETag does not guarantee equal bytes.
        (Answer(OTHER), Answer(CONTENT), None, [None]),
        (Answer(OTHER, etag='W/"v1"'), Answer(CONTENT, etag='W/"v1"'), None, [None]),
        # It does not support ranges.
        (Answer(OTHER), Answer(CONTENT, ranges=False), SHA256, ["bytes=900000-"]),
    ],
    ids=["If-Range", "ETag", "longer", "shorter", "checksum", "nothing", "weak ETag", "no ranges"],
)
def test_a_part_of_another_file_is_restarted(
    server: Server, tmp_path: Path, before: Answer, after: Answer, checksum: str | None, ranges: list[str | None]
) -> None:
    file = remote(server.offer("/file", after), checksum=checksum)
    begun(server, tmp_path, file, replace(before, cut_after=before.cut_after or 900_000))
    fetch(file, tmp_path, waits=())
    assert [a.range for a in server.asked] == ranges
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert names(tmp_path) == ["file.bin"]


@pytest.mark.parametrize("note", [b"", b'{"url": "http://', b"[]", b"\xff", b'{"url": "", "validator": ""}', None])
def test_a_part_with_a_truncated_note_is_restarted(server: Server, tmp_path: Path, note: bytes | None) -> None:
    file = remote(server.offer("/file", CONTENT))
    (tmp_path / "file.bin.part").write_bytes(OTHER[:500])
    if note is not None:
        (tmp_path / "file.bin.part.json").write_bytes(note)
    fetch(file, tmp_path)
    assert [a.range for a in server.asked] == [None]
    assert names(tmp_path) == ["file.bin"]


# --- mirrors


@pytest.mark.parametrize(("status", "attempts"), [(403, 1), (404, 1), (429, 3), (500, 3), (503, 3)])
def test_after_an_error_comes_the_next_mirror(server: Server, tmp_path: Path, status: int, attempts: int) -> None:
    first, second = server.offer("/first", Answer(status=status)), server.offer("/second", CONTENT)
    fetch(remote(first, second), tmp_path, waits=AT_ONCE)
    assert [a.path for a in server.asked] == ["/first"] * attempts + ["/second"]
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_server_that_recovers_is_kept(server: Server, tmp_path: Path) -> None:
    url = server.offer("/first", Answer(status=503), Answer(status=500), Answer(CONTENT))
    fetch(remote(url, server.offer("/second", CONTENT)), tmp_path, waits=AT_ONCE)
    assert [a.path for a in server.asked] == ["/first"] * 3


@pytest.mark.parametrize(("checksum", "sent"), [(SHA256, TOTAL - 900_000), (None, TOTAL)])
def test_another_mirror_sends_the_rest_if_a_checksum_is_known(
    server: Server, tmp_path: Path, checksum: str | None, sent: int
) -> None:
    first = server.offer("/first", Answer(CONTENT, cut_after=900_000, etag='"v1"'), Answer(status=404))
    second = server.offer("/second", Answer(CONTENT, etag='"of another kind"'))
    fetch(remote(first, second, checksum=checksum), tmp_path, waits=AT_ONCE)
    assert [(a.path, a.sent) for a in server.asked] == [("/first", 900_000), ("/first", 0), ("/second", sent)]
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_wrong_bytes_are_deleted_and_the_next_mirror_is_tried(server: Server, tmp_path: Path) -> None:
    first, second = server.offer("/first", OTHER), server.offer("/second", CONTENT)
    fetch(remote(first, second), tmp_path)
    assert [(a.path, a.range) for a in server.asked] == [("/first", None), ("/second", None)]
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_mirror_whose_file_has_another_size_sends_nothing(server: Server, tmp_path: Path) -> None:
    page = server.offer("/first", b"<html>moved</html>")
    with pytest.raises(CxlpError, match=r"/first: .* 18 bytes, expected 2,048,000"):
        fetch(remote(page, size=TOTAL), tmp_path)
    unsized = server.offer("/second", Answer(b"<html>moved</html>", sized=False))
    with pytest.raises(CxlpError, match=r"/second: the downloaded file has 18 bytes, expected 2,048,000"):
        fetch(remote(unsized, size=TOTAL), tmp_path)
    assert names(tmp_path) == []


def test_if_all_mirrors_fail_each_is_named_and_no_file_is_left(server: Server, tmp_path: Path) -> None:
    urls = server.offer("/first", OTHER), server.url("/gone"), server.offer("/busy", Answer(status=500))
    with pytest.raises(CxlpError) as caught:
        fetch(remote(*urls), tmp_path, "Look it up.", waits=())
    got = hashlib.sha256(OTHER).hexdigest()
    assert str(caught.value) == (
        f"cannot download {urls[0]}: the downloaded file has SHA-256 {got}, expected {SHA256[7:]}; "
        f"cannot download {urls[1]}: HTTP Error 404: Not Found; "
        f"cannot download {urls[2]}: HTTP Error 500: Internal Server Error. Look it up."
    )
    assert names(tmp_path) == []


def test_a_closed_port_fails_at_once(tmp_path: Path) -> None:
    with socket.socket() as taken:  # bound but not listening: no other process can answer there
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/file"
        with pytest.raises(CxlpError, match=r"cannot download http.*refused.* Put it at X\."):
            fetch(remote(url), tmp_path, "Put it at X.", waits=(60.0,))
    assert names(tmp_path) == []


# --- existing files


def test_an_existing_file_is_verified(server: Server, tmp_path: Path) -> None:
    url = server.offer("/file", CONTENT)
    placed = tmp_path / "file.bin"
    placed.write_bytes(OTHER)
    got = hashlib.sha256(OTHER).hexdigest()
    with pytest.raises(CxlpError, match=rf"{placed} has SHA-256 {got}, expected {SHA256[7:]}: .* Delete it"):
        fetch(remote(url), tmp_path)
    with pytest.raises(CxlpError, match=rf"{placed} has 2,048,000 bytes, expected 7: .* Delete it"):
        verify(placed, remote(url, checksum=None, size=7))
    with pytest.raises(CxlpError, match=rf"cannot read {tmp_path}: Is a directory"):
        verify(tmp_path, remote(url))
    assert placed.read_bytes() == OTHER, "the user's own files must not be deleted"
    placed.write_bytes(CONTENT)
    assert fetch(remote(url), tmp_path) == placed
    assert server.asked == []


# --- the disk


def test_a_full_disk_is_reported_and_the_partial_file_is_kept(server: Server, tmp_path: Path) -> None:
    file = remote(server.offer("/file", CONTENT))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    try:
        with pytest.raises(CxlpError, match=r"cannot write .*file\.bin\.part: File too large.*run again"):
            fetch(file, tmp_path, waits=AT_ONCE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    kept = (tmp_path / "file.bin.part").stat().st_size
    assert 0 < kept <= 1_000_000
    fetch(file, tmp_path)
    assert [a.range for a in server.asked] == [None, f"bytes={kept}-"]
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_folder_that_cannot_be_created_is_reported(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(CxlpError, match=rf"cannot write or lock files in {tmp_path}/taken"):
        fetch(remote("http://127.0.0.1:9/file"), tmp_path / "taken")


# --- several processes


def test_one_of_two_processes_downloads_while_the_other_waits(server: Server, tmp_path: Path) -> None:
    url = server.offer("/file", Answer(CONTENT, cut_after=TOTAL // 2, stalls=True), Answer(CONTENT))
    first = child(tmp_path, url, SHA256)
    deadline = time.monotonic() + 20
    while not server.asked and time.monotonic() < deadline:
        time.sleep(0.01)
    second = child(tmp_path, url, SHA256)
    assert second.stdout is not None
    assert second.stdout.readline() == "Another process is downloading file.bin: waiting for it\n"
    server.over.set()  # the stalled connection ends; the first process continues
    for process in (first, second):
        output, _ = process.communicate(timeout=20)
        assert process.returncode == 0, output
    assert [a.range for a in server.asked] == [None, f"bytes={TOTAL // 2}-"], "only the first one sent requests"
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert names(tmp_path) == ["file.bin"]
