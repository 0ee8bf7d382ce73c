"""Weights: downloads that are whole or not there, files that say what is wrong with them, strict loading."""

import hashlib
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cxlp.errors import CxlpError
from cxlp.weights import fetch, in_order, load_strictly, pretrained, read_state_dict

CONTENT = bytes(range(256)) * 8000  # two megabytes: more than one chunk


class Server(HTTPServer):
    """Counts what was asked for."""

    asked: list[str]


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Server)
        self.server.asked.append(self.path)
        if self.path not in ("/whole", "/cut", "/unsized"):
            self.send_error(404)
            return
        self.send_response(200)
        if self.path != "/unsized":
            self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[:-100_000] if self.path == "/cut" else CONTENT)

    def log_message(self, *_args: Any) -> None:
        """Stay silent."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server(("127.0.0.1", 0), Handler)
    server.asked = []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def url(server: Server, path: str) -> str:
    return f"http://127.0.0.1:{server.server_port}{path}"


SHA256, MD5 = hashlib.sha256(CONTENT).hexdigest(), hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()


@pytest.mark.parametrize("checksum", [{}, {"sha256": SHA256}, {"md5": MD5}], ids=["none", "sha256", "md5"])
@pytest.mark.parametrize("path", ["/whole", "/unsized"])
def test_fetch_once(server: Server, tmp_path: Path, checksum: dict[str, str], path: str) -> None:
    target = tmp_path / "new" / "folder" / "file.bin"
    server.asked.clear()
    assert fetch(url(server, path), target, **checksum) == target
    assert target.read_bytes() == CONTENT
    assert fetch(url(server, path), target, **checksum) == target
    assert server.asked == [path]  # the second call asked for nothing
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("checksum", [{"sha256": "0" * 64}, {"md5": "0" * 32}], ids=["sha256", "md5"])
def test_a_wrong_checksum_leaves_nothing(server: Server, tmp_path: Path, checksum: dict[str, str]) -> None:
    with pytest.raises(CxlpError, match=r"/whole came with checksum \w+, expected 0+\. Look it up\."):
        fetch(url(server, "/whole"), tmp_path / "file.bin", by_hand="Look it up.", **checksum)
    assert not list(tmp_path.iterdir())


def test_a_lost_connection_leaves_nothing_even_without_a_checksum(server: Server, tmp_path: Path) -> None:
    with pytest.raises(CxlpError, match=r"/cut: .*1948000 of 2048000 bytes\. By hand\."):
        fetch(url(server, "/cut"), tmp_path / "file.bin", by_hand="By hand.")
    assert not list(tmp_path.iterdir())


def test_not_found_is_told(server: Server, tmp_path: Path) -> None:
    with pytest.raises(CxlpError, match=r"cannot download http.*/gone: HTTP Error 404.*By hand\."):
        fetch(url(server, "/gone"), tmp_path / "file.bin", by_hand="By hand.")
    assert not list(tmp_path.iterdir())


def test_no_server_is_told(tmp_path: Path) -> None:
    with socket.socket() as taken:  # bound and never listening: nobody else can answer there
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}/file"
        with pytest.raises(CxlpError, match=r"cannot download .*refused.* Put it at X\."):
            fetch(address, tmp_path / "file.bin", by_hand="Put it at X.")
    assert not list(tmp_path.iterdir())


# --- files


STATE = {"conv.weight": torch.rand(2, 3), "conv.bias": torch.rand(2)}


@pytest.mark.parametrize(
    "saved",
    [
        STATE,
        {"state_dict": STATE, "epoch": 3},
        {"model": STATE, "args": "x"},
        {f"module.{k}": v for k, v in STATE.items()},
        {"state_dict": {"model": {f"module.{k}": v for k, v in STATE.items()}}},
    ],
    ids=["plain", "state_dict", "model", "module.", "all"],
)
def test_wrappings_are_looked_through(saved: dict[str, Any], tmp_path: Path) -> None:
    torch.save(saved, tmp_path / "w.pth")
    found = read_state_dict(tmp_path / "w.pth")
    assert list(found) == list(STATE)
    assert all(torch.equal(found[k], STATE[k]) for k in STATE)


def test_a_missing_file_lists_near_ones(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "resnet18.pth")
    with pytest.raises(CxlpError, match=r"not found: .*resnet19.pth. Did you mean 'resnet18.pth'"):
        read_state_dict(tmp_path / "resnet19.pth")
    with pytest.raises(CxlpError, match=r"not found: .*There is no folder .*nowhere"):
        read_state_dict(tmp_path / "nowhere" / "w.pth")
    with pytest.raises(CxlpError, match="not found"):  # a folder is no file
        read_state_dict(tmp_path)


class Trap:
    """Would make a file when it is unpickled."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.made,)


def test_unreadable_files_are_named_and_run_no_code(tmp_path: Path) -> None:
    (tmp_path / "empty.pth").touch()
    (tmp_path / "garbage.pth").write_bytes(b"<!DOCTYPE html><html>not found</html>" * 9)
    whole = tmp_path / "whole.pth"
    torch.save(STATE, whole)
    (tmp_path / "half.pth").write_bytes(whole.read_bytes()[:700])
    torch.save({"w": Trap(tmp_path / "made")}, tmp_path / "trap.pth")
    for name in ("empty", "garbage", "half", "trap"):
        with pytest.raises(CxlpError, match=rf"{name}.pth is not a readable weights file"):
            read_state_dict(tmp_path / f"{name}.pth")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, torch.rand(3), {}, {0: torch.rand(3)}, {"state_dict": {}}])
def test_a_file_without_a_state_dict_is_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(CxlpError, match=r"w.pth holds no state dict"):
        read_state_dict(tmp_path / "w.pth")


# --- loading


class Whole(nn.Module):
    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, classes)


class Kept(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)


def test_a_classifier_of_other_classes_is_accepted_and_left_out() -> None:
    kept, state = Kept(), Whole(classes=99).state_dict()
    load_strictly(kept, Whole(), state, "f.pth")
    assert all(torch.equal(v, state[k]) for k, v in kept.state_dict().items())
    load_strictly(Kept(), Whole(), {k: v for k, v in state.items() if not k.startswith("head")}, "f.pth")


def test_batch_counters_may_be_absent() -> None:
    state = Whole().state_dict()
    del state["norm.num_batches_tracked"]
    load_strictly(Kept(), Whole(), state, "f.pth")


def test_everything_that_does_not_fit_is_named_and_nothing_is_loaded() -> None:
    kept, state = Kept(), Whole().state_dict()
    before = {k: v.clone() for k, v in kept.state_dict().items()}
    del state["conv.bias"]
    state["norm.weight"] = torch.rand(7)
    state["neck.weight"] = torch.rand(1)
    with pytest.raises(CxlpError) as caught:
        load_strictly(kept, Whole(), state, "f.pth")
    message = str(caught.value)
    assert message.startswith("f.pth does not fit this network: ")
    assert "1 missing (conv.bias)" in message
    assert "1 unknown (neck.weight)" in message
    assert "1 of another shape (norm.weight: (7,) in the file, (4,) in the network)" in message
    assert all(torch.equal(v, before[k]) for k, v in kept.state_dict().items())


def test_a_file_of_another_network_gets_a_short_list() -> None:
    state = {f"layer{i}.weight": torch.rand(1) for i in range(50)}
    with pytest.raises(CxlpError, match=r"6 missing .*50 unknown \(layer0.weight; .*layer3.weight; \.\.\.\)"):
        load_strictly(Kept(), Whole(), state, "f.pth")


def test_in_order_renames_by_place() -> None:
    model = Kept()
    values = [torch.full_like(v, i) for i, v in enumerate(model.state_dict().values())]
    renamed = in_order({f"other{i}": v for i, v in enumerate(values)}, model)
    assert list(renamed) == list(model.state_dict())
    assert all(a is b for a, b in zip(renamed.values(), values, strict=True))
    with pytest.raises(CxlpError, match="holds 1 tensors, the network 7"):
        in_order({"a": torch.rand(1)}, model)


def test_pretrained_explains_a_failing_hub() -> None:
    model = nn.Linear(1, 1)
    assert pretrained(lambda: model, "net") is model

    def fail() -> nn.Module:
        raise ConnectionError("x" * 1000)

    with pytest.raises(CxlpError, match=r"weights of net: ConnectionError: x+\. Offline\? .*weights FILE") as caught:
        pretrained(fail, "net")
    assert len(str(caught.value)) < 600
    assert isinstance(caught.value.__cause__, ConnectionError)
