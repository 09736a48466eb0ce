"""How kernels are started, and the blocks of the two passes: the rows of batch and classes that a program holds.

The choice of blocks depends on the columns and the precision, and on what the device accepts: the first of a fixed
list whose kernels fit, spill little and compute what plain PyTorch does. It is not timed, because the order of the sums
follows from it, and a resumed run repeats the bits.

Registers decide. A program keeps BLOCK x BLOCK_D fp32 accumulators through its loop, and a multiprocessor has
65,536 registers: at D = 512 half of them are the accumulators of 64 rows. docs/explanation/kernels.md has more.
"""

import contextlib
from dataclasses import dataclass
from typing import Any

import torch

MAX_DIM = 1024
# Registers a thread: the best blocks of an H100 put up to 104 aside, hardly any inside the loop.
MOST_SPILLS = 112


@dataclass(frozen=True)
class Blocks:
    """rows: of accumulators; turn: rows of a turn of the loop; stages: of loads."""

    rows: int
    turn: int
    warps: int
    stages: int


def block_dim(dim: int) -> int:
    """The columns with their padding: a power of two, at least what a product takes."""
    return max(16, 1 << (dim - 1).bit_length())


# rows, turn, warps, stages, by precision and the most columns: those that should be fastest first. fp32 has no matrix
# units, each product is unrolled into multiplications; tf32 beyond 512 columns spills whatever the blocks.
_BLOCKS: dict[str, dict[int, list[tuple[int, int, int, int]]]] = {
    "bf16": {
        128: [(128, 64, 8, 2), (64, 64, 8, 2)],
        256: [(128, 64, 8, 2), (64, 32, 8, 2)],
        512: [(64, 64, 8, 2), (32, 32, 8, 2)],
        1024: [(32, 64, 8, 1), (16, 32, 8, 1)],
    },
    "tf32": {
        128: [(128, 64, 8, 2), (64, 64, 8, 2)],
        256: [(64, 64, 8, 2), (32, 32, 8, 2)],
        512: [(32, 32, 8, 2)],
        1024: [],
    },
    "fp32": {128: [(32, 32, 8, 1)], 1024: []},
}


def candidates(dim: int, precision: str) -> list[Blocks]:
    """Blocks for both passes: those that should be fastest first, the smallest last."""
    known = _BLOCKS[precision]
    columns = next(most for most in known if dim <= most)
    return [*(Blocks(*numbers) for numbers in known[columns]), Blocks(16, 16, 8, 1)]


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
