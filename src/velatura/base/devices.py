"""Choice of the device and the precision in which a base computes.

Attention uses torch's fused kernel everywhere, except in the small copy that is trained on a CPU: see
training/precision.py.
"""

from __future__ import annotations

import torch

from velatura.errors import UnknownName

# Bytes of a UNet's weights below which half precision gains nothing on a CPU: with AVX512-bf16 it makes a step of an
# SD1 2.3 times as fast, one of the tiny base 1.06 times. Small bases stay exact, and their pictures bit for bit.
MIN_HALF_PRECISION_BYTES = 256 * 2**20

PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def find_device(name: str | torch.device) -> torch.device:
    """Return the device of a name; "auto" prefers CUDA to MPS, and MPS to the CPU.

    Raises:
        UnknownName: if the name is not a device, or this machine does not have it.
    """
    if name == "auto":
        return torch.device(_available_devices()[0])
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UnknownName.with_suggestions("device", str(name), ["auto", "cpu", "cuda", "mps"]) from None
    is_past_last_index = device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
    if device.type in {"cuda", "mps"} and (device.type not in _available_devices() or is_past_last_index):
        raise UnknownName(
            f"this machine does not have {device}: choose one of {', '.join(['auto', *_available_devices()])}"
        )
    return device


def find_dtype(name: str | torch.dtype, device: torch.device, byte_count: int) -> torch.dtype:
    """Return the precision of a name; "auto" is the fastest one that is exact enough.

    "auto" is float16 on GPUs, bfloat16 on CPUs with instructions for it, and float32 elsewhere.

    Args:
        name: "auto", or a precision's name or dtype.
        device: Device on which the base computes.
        byte_count: Bytes of the UNet's weights: a small UNet stays in float32 on a CPU.

    Raises:
        UnknownName: if the name is not a precision.
    """
    if isinstance(name, torch.dtype):
        return name
    if name == "auto":
        return _fastest_dtype(device, byte_count)
    if name not in PRECISIONS:
        raise UnknownName.with_suggestions("precision", name, ["auto", *PRECISIONS])
    return PRECISIONS[name]


def has_fast_bfloat16() -> bool:
    """Return True if this CPU has AMX or AVX512-bf16. Without them bfloat16 is slower than float32."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def _available_devices() -> list[str]:
    """Return the kinds of devices on this machine, the fastest first."""
    availability = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    return [kind for kind, is_available in availability.items() if is_available]


def _fastest_dtype(device: torch.device, byte_count: int) -> torch.dtype:
    if device.type in {"cuda", "mps"}:
        return torch.float16
    if device.type == "cpu" and byte_count >= MIN_HALF_PRECISION_BYTES and has_fast_bfloat16():
        return torch.bfloat16
    return torch.float32
