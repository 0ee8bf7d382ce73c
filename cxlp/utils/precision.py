"""Choice of the fastest precision for forward passes without gradients."""

from typing import Any, Literal, NamedTuple

import torch


class Precision(NamedTuple):
    """Lightning's name of a precision, and the reason for its choice."""

    name: Literal["bf16-mixed", "32-true"]
    why: str


def fastest_precision(device: str | torch.device = "auto") -> Precision:
    """Choose bfloat16 (autocast) if the hardware supports it, otherwise float32.

    With hardware support, a convolution in bfloat16 takes about half the time of one in float32. Without it, bfloat16
    is emulated and slower than float32.

    Args:
        device: ``cpu``, ``cuda``, ``cuda:1``, ...; ``auto``: a GPU if one is available, otherwise the CPU.

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
        return Precision("bf16-mixed", f"{what} supports bfloat16")
    return Precision("32-true", f"{what} does not support bfloat16")


def _cpu_knows_bfloat16() -> bool:
    """Return whether the CPU has bfloat16 instructions: AVX512-BF16 or AMX on x86, BF16 on ARM."""
    ask = getattr(torch.cpu, "get_capabilities", None)
    if ask is None:  # before torch 2.10, which only supports this check on x86
        return bool(torch.cpu._is_avx512_bf16_supported())
    found: dict[str, Any] = dict(ask())
    return any(found.get(name) is True for name in ("avx512_bf16", "amx_bf16", "bf16"))
