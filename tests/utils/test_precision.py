"""The fastest precision, from the properties of the hardware."""

from typing import Any

import pytest
import torch

from cxlp.utils.precision import fastest_precision


@pytest.mark.parametrize(
    ("says", "name"),
    [
        ({"architecture": "x86_64", "avx512_bf16": True, "amx_bf16": False}, "bf16-mixed"),
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": True}, "bf16-mixed"),
        ({"architecture": "x86_64", "avx512_bf16": False, "avx512_f": True}, "32-true"),
        ({"architecture": "aarch64", "neon": True, "bf16": True}, "bf16-mixed"),
        ({"architecture": "aarch64", "neon": True, "bf16": False}, "32-true"),
    ],
)
def test_precision_of_a_processor(monkeypatch: pytest.MonkeyPatch, says: dict[str, Any], name: str) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: says, raising=False)
    assert fastest_precision("cpu").name == name


@pytest.mark.parametrize("known", [True, False])
def test_precision_of_a_processor_with_an_older_torch(monkeypatch: pytest.MonkeyPatch, known: bool) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: known)
    assert fastest_precision("cpu").name == ("bf16-mixed" if known else "32-true")


@pytest.mark.parametrize(("capability", "name"), [((9, 0), "bf16-mixed"), ((8, 0), "bf16-mixed"), ((7, 5), "32-true")])
def test_precision_of_a_gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], name: str) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", None)
    found = fastest_precision("cuda:1")
    assert found.name == name and f"CUDA {capability[0]}.{capability[1]}" in found.why


def test_precision_of_other_devices() -> None:
    assert fastest_precision("mps").name == "32-true"
