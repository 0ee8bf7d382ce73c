"""A local web server that misbehaves as tests require."""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Answer:
    """The response to one request.

    Attributes:
        content: The content of the file.
        status: The status; other than 200, the response is an error without content.
        location: The address of a redirect, which is sent instead.
        cut_after: Number of bytes after which the connection is closed.
        stalls: Whether the connection stays open after these bytes, without sending more.
        ranges: Whether range requests are supported.
        etag: The ETag of the file; empty for none.
        keeps_to_if_range: Whether ``If-Range`` is supported.
        sized: Whether ``Content-Length`` is sent.
    """

    content: bytes = b""
    status: int = 200
    location: str = ""
    cut_after: int | None = None
    stalls: bool = False
    ranges: bool = True
    etag: str = ""
    keeps_to_if_range: bool = True
    sized: bool = True


class Asked(NamedTuple):
    """A request, and the number of bytes of content that were sent."""

    path: str
    range: str | None
    if_range: str | None
    sent: int


class Server(ThreadingHTTPServer):
    """Sends the responses in :attr:`answers` for each path in turn, and repeats the last one; otherwise 404."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: dict[str, list[Answer]] = {}
        self.asked: list[Asked] = []
        self.over = Event()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"

    def offer(self, path: str, *answers: Answer | bytes) -> str:
        """Serve a path from now on, and return its address."""
        self.answers[path] = [Answer(a) if isinstance(a, bytes) else a for a in answers]
        return self.url(path)


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Server)
        queue = self.server.answers.get(self.path.partition("?")[0], [Answer(status=404)])
        answer = queue.pop(0) if len(queue) > 1 else queue[0]
        range_, if_range = self.headers.get("Range"), self.headers.get("If-Range")
        content, headers, status = self._choose(answer, range_, if_range)
        sent = content[: answer.cut_after]
        self.server.asked.append(Asked(self.path, range_, if_range, len(sent)))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        with suppress(ConnectionError):
            self.wfile.write(sent)
            if answer.stalls:
                self.server.over.wait(timeout=20)

    def _choose(self, answer: Answer, range_: str | None, if_range: str | None) -> tuple[bytes, dict[str, str], int]:
        if answer.location:
            return b"", {"Location": answer.location, "Content-Length": "0"}, 302
        if answer.status != 200:
            return b"", {"Content-Length": "0"}, answer.status
        headers = {"ETag": answer.etag} if answer.etag else {}
        content, status = answer.content, 200
        is_same = if_range in (None, answer.etag) or not answer.keeps_to_if_range
        if range_ and answer.ranges and is_same:
            start, total = int(re.findall(r"bytes=(\d+)-", range_)[0]), len(content)
            if start >= total:
                return b"", {"Content-Range": f"bytes */{total}", "Content-Length": "0"}, 416
            content, status = content[start:], 206
            headers["Content-Range"] = f"bytes {start}-{total - 1}/{total}"
        if answer.sized:
            headers["Content-Length"] = str(len(content))
        return content, headers, status

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


@contextmanager
def serving() -> Iterator[Server]:
    """Run a server in a thread."""
    with Server() as server:
        server.daemon_threads = True
        thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.over.set()
        server.shutdown()
        thread.join(timeout=5)
