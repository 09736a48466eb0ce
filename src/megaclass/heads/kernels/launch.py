"""What every start of a kernel needs."""

import contextlib

import torch


def on_device(device: torch.device) -> contextlib.AbstractContextManager:
    """Triton starts kernels on the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def signed(key: int) -> int:
    """The int32 of the same bits: kernels are compiled by the type of a number, which must not change with it."""
    return key - (1 << 32) if key >= 1 << 31 else key
