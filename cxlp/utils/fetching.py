"""Download of files over HTTP, with mirrors, resumption and verification."""

import hashlib
import http.client
import json
import re
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

from cxlp.utils.errors import CxlpError
from cxlp.utils.locking import locked
from cxlp.utils.progress import bar, say

#: Timeout in seconds for a connection that transfers no data.
STALL = 30.0
#: Waiting times in seconds before each retry of a mirror. They start over after each ``PROGRESS`` received bytes.
WAITS = (1.0, 4.0)
PROGRESS = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Remote:
    """A file on the web.

    Attributes:
        urls: URLs of the mirrors, in the order in which they are tried.
        file: Name of the file on disk.
        checksum: ``md5:...``, ``sha1:...`` or ``sha256:...`` in hexadecimal digits; ``None`` if none is published.
        size: Exact number of bytes, which is checked, or a description such as ``"244 MB"``.
    """

    urls: tuple[str, ...]
    file: str
    checksum: str | None
    size: int | str

    def __str__(self) -> str:
        size = self.size if isinstance(self.size, str) else _readable(self.size)
        checksum = "no checksum published" if self.checksum is None else _titled(*self.checksum.split(":"))
        return f"{self.file} ({size}, {checksum}) from {' or '.join(self.urls)}"


def fetch(
    remote: Remote, folder: Path, by_hand: str = "", *, stall: float = STALL, waits: Sequence[float] = WAITS
) -> Path:
    """Download a file unless it exists, and verify it.

    The download is written to ``NAME.part``, which a later call resumes, and is renamed when it is complete and
    verified. If several processes download the same file to the same folder, one of them does, and the others wait and
    use the result.

    Args:
        remote: The file. An existing file is verified, not downloaded.
        folder: Target folder.
        by_hand: Instructions for the error message, in case the download is impossible.
        stall: Timeout in seconds for a connection that transfers no data.
        waits: Waiting times in seconds before each retry of a mirror.

    Returns:
        Path of the file.

    Raises:
        CxlpError: If no mirror provides the expected file, the existing file differs, or the disk is full.
    """
    target = folder / remote.file
    if not target.exists():
        with locked(folder / f".{remote.file}.lock", remote.file):
            if not target.exists():
                part = _Part(target.with_name(f"{remote.file}.part"))
                try:
                    _download(remote, part, by_hand, stall, waits)
                    part.file.replace(target)
                finally:
                    if not part.size:
                        part.discard()
                return target
    verify(target, remote)
    return target


def verify(path: Path, remote: Remote) -> None:
    """Check size and checksum of a file.

    Raises:
        CxlpError: If the file is incomplete, a different file, or unreadable.
    """
    try:
        problem = _mismatch(path, remote)
    except OSError as error:
        raise CxlpError(f"cannot read {path}: {error.strerror}") from error
    if problem:
        raise CxlpError(f"{path} {problem}: it is incomplete or a different file. Delete it and run again.")


class _FailedError(Exception):
    """A mirror failed to provide the file."""

    def __init__(self, reason: str, worth_retrying: bool) -> None:
        super().__init__(reason)
        self.worth_retrying = worth_retrying


class _Part:
    """The partial download ``NAME.part``, with its URL, validator and total size in ``NAME.part.json``."""

    def __init__(self, file: Path) -> None:
        self.file, self.note = file, file.with_name(f"{file.name}.json")
        self.in_one_piece = False
        try:
            note = json.loads(self.note.read_text())
            self.url, self.validator, self.total = str(note["url"]), str(note["validator"]), int(note["total"])
        except (OSError, ValueError, TypeError, KeyError):  # missing, or incomplete because its process was killed
            self.url, self.validator, self.total = "", "", -1

    @property
    def size(self) -> int:
        return self.file.stat().st_size if self.file.exists() else 0

    def begin(self, url: str, validator: str, total: int) -> None:
        """Start a new download. A ``total`` of -1 means that the size is unknown."""
        self.url, self.validator, self.total, self.in_one_piece = url, validator, total, True
        self.file.write_bytes(b"")  # before the note, so that old bytes never exist with a new note
        self.note.write_text(json.dumps({"url": url, "validator": validator, "total": total}))

    def discard(self) -> None:
        self.file.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)


def _download(remote: Remote, part: _Part, by_hand: str, stall: float, waits: Sequence[float]) -> None:
    """Download the file to its part, from the first mirror that provides it, and verify the part."""
    problems = []
    for url in remote.urls:
        for _ in range(2):  # the second time from the start, if the resumed parts belong to different files
            try:
                _transfer(url, remote, part, stall, waits)
            except _FailedError as error:
                problem = str(error)
                break
            wrong = _mismatch(part.file, remote)
            if not wrong:
                return
            problem = f"the downloaded file {wrong}"
            part.discard()
            if part.in_one_piece:
                break
        problems.append(f"cannot download {url}: {problem}")
    raise CxlpError(f"{'; '.join(problems)}. {by_hand}".strip())


def _transfer(url: str, remote: Remote, part: _Part, stall: float, waits: Sequence[float]) -> None:
    """Download from one mirror, with retries."""
    furthest, left = part.size, list(waits)
    while True:
        try:
            return _receive(url, remote, part, stall)
        except _FailedError as error:
            if part.size >= furthest + PROGRESS:
                furthest, left = part.size, list(waits)
            if not error.worth_retrying or not left:
                raise
            time.sleep(left.pop(0))


def _receive(url: str, remote: Remote, part: _Part, stall: float) -> None:
    """Download with one request, which asks only for the rest of an existing part."""
    same_source = bool(part.validator) and part.url == url
    # Without a checksum, only the server's validator shows that the rest belongs to the same file.
    is_resumable = 0 < part.size <= part.total and (remote.checksum is not None or same_source)
    if is_resumable and part.size == part.total:
        return None
    headers = {"User-Agent": "cxlp", "Accept-Encoding": "identity"}
    if is_resumable:
        headers["Range"] = f"bytes={part.size}-"
        if same_source:
            headers["If-Range"] = part.validator
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=stall)
    except HTTPError as error:
        error.close()
        if error.code == 416 and is_resumable:  # the file on the server is now shorter
            part.discard()
            return _receive(url, remote, part, stall)
        raise _FailedError(str(error), error.code >= 500 or error.code in (408, 429)) from error
    except (ConnectionError, TimeoutError, http.client.HTTPException) as error:
        raise _FailedError(_reason(error, stall), worth_retrying=True) from error
    except OSError as error:  # unknown host, connection refused, invalid certificate
        raise _FailedError(str(getattr(error, "reason", error)), worth_retrying=False) from error
    with response:
        validator, total = _validator(response.headers), _number(response.headers.get("Content-Length"))
        is_rest = response.status == 206
        if is_rest:
            found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
            begins_at, total = (int(found[1]), int(found[2])) if found else (-1, -1)
            has_changed = same_source and validator != part.validator
            if (begins_at, total) != (part.size, part.total) or has_changed:
                if not is_resumable:
                    raise _FailedError("the server sent a part of the file without a request", worth_retrying=False)
                part.discard()
                return _receive(url, remote, part, stall)
        if isinstance(remote.size, int) and total not in (-1, remote.size):
            raise _FailedError(f"the file has {total:,} bytes, expected {remote.size:,}", worth_retrying=False)
        try:
            if is_rest:
                part.in_one_piece = False
            else:
                part.begin(url, validator, total)
            _write(response, part, remote.file, stall)
        except OSError as error:  # of the disk: _write converts errors of the network
            raise CxlpError(
                f"cannot write {part.file}: {error.strerror}. The partial download is kept: free space on this disk, "
                "then run again"
            ) from error
    if part.size < total:
        raise _FailedError(f"the connection was lost after {part.size:,} of {total:,} bytes", worth_retrying=True)
    return None


def _write(response: Any, part: _Part, name: str, stall: float) -> None:  # noqa: ANN401 (urlopen's type)
    total = part.total if part.total >= 0 else None
    with (
        bar(name, total, "B", part.size) as progress,
        part.file.open("ab") as file,
    ):
        while True:
            try:
                chunk = response.read1(1 << 20)  # returns early on slow connections, so that the bar moves
            except (OSError, http.client.HTTPException) as error:
                raise _FailedError(_reason(error, stall), worth_retrying=True) from error
            if not chunk:
                return
            file.write(chunk)
            progress.update(len(chunk))


def _mismatch(path: Path, remote: Remote) -> str | None:
    """Return how a file differs from its expected size or checksum, or ``None`` if it does not."""
    size = path.stat().st_size
    if isinstance(remote.size, int) and size != remote.size:
        return f"has {size:,} bytes, expected {remote.size:,}"
    algorithm, _, expected = (remote.checksum or "sha256:").partition(":")
    with path.open("rb") as stream:
        got = hashlib.file_digest(stream, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()
    if not expected:
        say(f"No checksum of {remote.file} is published; this file has {_titled(algorithm, got)}", sys.stderr)
    elif got != expected:
        return f"has {_titled(algorithm, got)}, expected {expected}"
    return None


def _validator(headers: Mapping[str, str]) -> str:
    """Return the validator for ``If-Range``: a strong ETag if there is one, otherwise the date."""
    tag = headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else headers.get("Last-Modified", "")


def _number(text: str | None) -> int:
    return int(text) if text and text.isdecimal() else -1


def _reason(error: Exception, stall: float) -> str:
    return f"no data for {stall:g} s" if isinstance(error, TimeoutError) else str(error) or type(error).__name__


def _titled(algorithm: str, digest: str) -> str:
    return f"{algorithm.upper().replace('SHA', 'SHA-')} {digest}"


def _readable(size: int) -> str:
    unit, name = next((u for u in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if size >= u[0]), (1, "bytes"))
    return f"{size / unit:.3g} {name}"
