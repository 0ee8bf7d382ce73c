"""The precision in which forward passes without gradients are fastest."""

from typing import Any, Literal, NamedTuple

import torch


class Precision(NamedTuple):
    """A precision as Lightning names it, and why it was chosen, in words."""

    name: Literal["bf16-mixed", "32-true"]
    why: str


def fastest_precision(device: str | torch.device = "auto") -> Precision:
    """Choose bfloat16 (autocast) where the hardware computes with it, else float32.

    A convolution in bfloat16 takes about half the time of one in float32 there. Elsewhere it is emulated, and slower.

    Args:
        device: ``cpu``, ``cuda``, ``cuda:1``, ...; ``auto``: a GPU where there is one.

    Example:
        >>> fastest_precision("cpu").name in ("bf16-mixed", "32-true")  # pl.Trainer(precision=fastest_precision().name)
        True
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(device)
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        known = major >= 8 or torch.version.hip is not None
        what = f"CUDA {major}.{minor}" if torch.version.hip is None else "ROCm"
    else:
        known, what = device.type == "cpu" and _cpu_knows_bfloat16(), f"this {device.type.upper()}"
    if known:
        return Precision("bf16-mixed", f"{what} computes with bfloat16")
    return Precision("32-true", f"{what} has no bfloat16 of its own")


def _cpu_knows_bfloat16() -> bool:
    """Whether there are instructions for products of bfloat16: AVX512-BF16 or AMX on x86, BF16 on ARM."""
    ask = getattr(torch.cpu, "get_capabilities", None)
    if ask is None:  # before torch 2.10, which knows of x86 only
        return bool(torch.cpu._is_avx512_bf16_supported())
    found: dict[str, Any] = dict(ask())
    return any(found.get(name) is True for name in ("avx512_bf16", "amx_bf16", "bf16"))
