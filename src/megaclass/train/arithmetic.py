"""Threads, memory, determinism and the precision of the backbone's arithmetic."""

import contextlib
import ctypes
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from megaclass.errors import UserError
from megaclass.heads.precision import cpu_has_bf16, fp32_products
from megaclass.parallel.rendezvous import number
from megaclass.results.machine import usable_cores


def use_threads(count: int) -> int:
    """Set the CPU threads of this process; 0: its share of the machine's cores. Returns the number.

    A process that is alone follows ``OMP_NUM_THREADS``; under torchrun, which sets it to 1, the share counts.
    """
    if count == 0 and "LOCAL_WORLD_SIZE" not in os.environ:
        asked = os.environ.get("OMP_NUM_THREADS", "")
        count = int(asked) if asked.isdigit() else 0
    if count == 0:
        count = max(1, usable_cores() // number("LOCAL_WORLD_SIZE", 1, least=1))
    torch.set_num_threads(count)
    return count


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def keep_freed_memory() -> None:
    """Have glibc keep what is freed for the next step, where this is glibc.

    By default it gives every large block back to the kernel, which hands it out again page by page, each one cleared:
    as much time as an elementwise operation on it takes. For good, and for the whole process, which then stays as
    large as it once was.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def use_deterministic_kernels() -> None:
    """Ask for bit-reproducible kernels; an operation that has none warns."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)


@dataclass(frozen=True)
class Arithmetic:
    """How the backbone computes: ``fp32``, ``tf32``, ``bf16`` or ``fp16`` on a device."""

    compute: str
    device: torch.device
    channels_last: bool
    tf32: bool = False  # allowed in what stays in fp32 beside 16-bit products
    keeps_casts: bool = True  # of weights, within a pass; a CUDA graph must make its own

    @property
    def needs_loss_scale(self) -> bool:
        return self.compute == "fp16"

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def autocast(self) -> AbstractContextManager:
        if self.compute in ("bf16", "fp16"):
            dtype = torch.bfloat16 if self.compute == "bf16" else torch.float16
            return torch.autocast(self.device.type, dtype=dtype, cache_enabled=self.keeps_casts)
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Allow tf32 in fp32 products and convolutions, or forbid it, for the time of a run."""
        wanted = "tf32" if self.compute == "tf32" or self.tf32 else "ieee"
        known: Any = torch.backends
        parts = (known.cuda.matmul, known.cudnn.conv, known.cudnn.rnn) if self.device.type == "cuda" else ()
        # Few shapes come again and again, so measuring the convolutions once for each pays.
        torch.backends.cudnn.benchmark = not torch.are_deterministic_algorithms_enabled()
        with fp32_products(wanted, *parts):
            yield

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """For a pass of the backbone on its own: both of the above."""
        with self.active(), self.autocast():
            yield


def pick_arithmetic(compute: str, channels_last: bool, device: torch.device, tf32: bool = False) -> Arithmetic:
    """Resolve ``auto``, and refuse what the device does not have."""
    if compute == "auto":  # a GPU before compute capability 8.0 emulates bf16, slowly
        has_bf16 = torch.cuda.is_bf16_supported(False) if device.type == "cuda" else cpu_has_bf16()
        compute = "bf16" if has_bf16 else "fp32"
    if compute == "tf32" and device.type != "cuda":
        raise UserError("precision.compute: 'tf32' exists on CUDA only; use fp32, bf16 or auto on a CPU")
    return Arithmetic(compute, device, channels_last, tf32)
