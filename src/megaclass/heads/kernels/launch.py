"""How kernels are started, and the blocks of the two passes: the rows of batch and classes that a program holds.

The choice of blocks depends on the columns and the precision, and on what the device accepts: the first of a fixed
list whose kernels start. It is not timed, because the order of the sums follows from it, and a resumed run repeats the
bits.

Registers decide. A program keeps BLOCK x BLOCK_D fp32 accumulators through its loop, and a multiprocessor has
65,536 registers: at D = 512 half of them are the accumulators of 64 rows. docs/explanation/kernels.md has more.
"""

import contextlib
from dataclasses import dataclass
from typing import Any

import torch

MAX_DIM = 1024
MOST_SPILLS = 96  # registers a thread: the best of an H100 keep 83 outside their loops


@dataclass(frozen=True)
class Blocks:
    """Rows of accumulators, rows a turn of the loop, warps, stages of loads."""

    rows: int
    turn: int
    warps: int
    stages: int


def block_dim(dim: int) -> int:
    """The columns with their padding: a power of two, at least what a product takes."""
    return max(16, 1 << (dim - 1).bit_length())


def candidates(dim: int, precision: str) -> list[Blocks]:
    """Blocks for both passes: those that should be fastest first, those that always fit last."""
    columns, small = block_dim(dim), Blocks(16, 16, 8, 1)
    if precision == "fp32":  # no matrix units: each product is unrolled into multiplications
        return [Blocks(32, 32, 8, 1), small] if columns <= 128 else [small]
    if columns <= 128:
        return [Blocks(128, 64, 8, 2), Blocks(64, 64, 8, 2), small]
    if precision == "tf32":
        return (
            [Blocks(64, 64, 8, 2), Blocks(32, 32, 8, 2), small]
            if columns <= 256
            else [Blocks(32, 32, 8, 2), small]
        )
    if columns <= 256:
        return [Blocks(128, 64, 8, 2), Blocks(64, 32, 8, 2), small]
    if columns <= 512:
        return [Blocks(64, 64, 8, 2), Blocks(32, 32, 8, 2), small]
    return [Blocks(32, 64, 8, 1), Blocks(16, 16, 8, 2)]


def check_spills(compiled: Any) -> None:
    """Load a compiled kernel; RuntimeError where the device lacks what it takes, or registers were not enough."""
    compiled.run  # noqa: B018 - loads it
    if compiled.n_spills > MOST_SPILLS:
        raise RuntimeError(f"{compiled.name} spills {compiled.n_spills} registers a thread")


def on_device(device: torch.device) -> contextlib.AbstractContextManager:
    """Triton starts kernels on the current device."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def signed(key: int) -> int:
    """The int32 of the same bits: kernels are compiled by the type of a number, which must not change with it."""
    return key - (1 << 32) if key >= 1 << 31 else key
