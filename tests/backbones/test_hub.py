"""Pretrained weights without a network connection."""

import socket
import time
from pathlib import Path
from typing import NoReturn

import pytest
from huggingface_hub import constants, hf_hub_download
from torch import nn

from cxlp.backbones.hub import answers, pretrained
from cxlp.utils.errors import CxlpError


def test_an_unavailable_hub_is_explained() -> None:
    model = nn.Linear(1, 1)
    assert pretrained(lambda: model, "net") is model

    def fail() -> NoReturn:
        raise ConnectionError("x" * 1000)

    with pytest.raises(CxlpError, match=r"weights of net: ConnectionError: x+\. Offline\? .*local FILE") as caught:
        pretrained(fail, "net")
    assert len(str(caught.value)) < 600
    assert isinstance(caught.value.__cause__, ConnectionError)


@pytest.fixture
def closed_port(monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the address of a server that does not exist."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


def test_hugging_face_is_not_retried_without_a_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed_port: str
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", closed_port)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    start = time.monotonic()

    def load() -> nn.Module:
        hf_hub_download("timm/resnet10t.c3_in1k", "model.safetensors", cache_dir=tmp_path)
        return nn.Identity()

    with pytest.raises(CxlpError, match=r"of net: 127\.0\.0\.1 cannot be reached, .*cache\. "):
        pretrained(load, "net", hugging_face=True)
    assert time.monotonic() - start < 10 and not constants.HF_HUB_OFFLINE


def test_cached_weights_need_no_network(monkeypatch: pytest.MonkeyPatch, closed_port: str) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", closed_port)
    found: list[bool] = []

    def load() -> nn.Module:
        found.append(constants.HF_HUB_OFFLINE)
        return nn.Identity()

    pretrained(load, "net", hugging_face=True)
    pretrained(load, "net")
    assert found == [True, False]


def test_reachable_servers_and_slow_name_lookups(monkeypatch: pytest.MonkeyPatch, closed_port: str) -> None:
    assert not answers(closed_port)
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert answers(f"http://127.0.0.1:{server.getsockname()[1]}")

    def slow(*_: object, **__: object) -> NoReturn:
        time.sleep(5)
        raise OSError

    monkeypatch.setattr(socket, "create_connection", slow)
    start = time.monotonic()
    assert not answers("https://huggingface.co", patience=0.2)
    assert time.monotonic() - start < 3
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    assert answers("https://huggingface.co", patience=0.2)  # the proxy resolves names
