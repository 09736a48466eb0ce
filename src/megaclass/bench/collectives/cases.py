"""The cases of ``bench collectives``: an operation, the size of its message, and how many ranks take part."""

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from megaclass.bench.arguments import check_counts
from megaclass.errors import lookup

# What a rank sends and receives at the least, over the size of the message, by the number of ranks: bus bandwidth
# is so much of algorithm bandwidth (NVIDIA's nccl-tests, PERFORMANCE.md).
BUS_FACTORS = {
    "all_reduce": lambda n: 2 * (n - 1) / n,
    "all_gather": lambda n: (n - 1) / n,
    "reduce_scatter": lambda n: (n - 1) / n,
    "broadcast": lambda n: 1.0,
}
OPS = tuple(BUS_FACTORS)
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
BACKENDS = {"cpu": "gloo", "cuda": "nccl"}
MOST_RANKS = (
    64  # sums of so many small whole numbers are still exact in bfloat16: results are checked bit by bit
)


@dataclass(frozen=True, kw_only=True)
class CollectiveCase:
    """One operation of :mod:`torch.distributed` on tensors that lie ready, with one size of message.

    size_bytes, as nccl-tests counts it: of all_reduce and broadcast the tensor that every rank holds; of all_gather
    the whole that every rank receives, of which each sends its ``1 / world_size``; of reduce_scatter the whole that
    every rank sends, of which each receives the sum of its ``1 / world_size``. What does not divide into ranks and
    elements is rounded down: ``bytes`` in ``Row.work`` is what was sent.

    steps: timed turns. A turn is one call, or as many as make it long enough to be timed (``calls`` in the row).
    threads: of a process on a CPU. seed: where the pattern of the messages begins.
    """

    benchmark: ClassVar[str] = "collectives"

    op: str = "all_reduce"
    size_bytes: int = 1 << 20
    dtype: str = "float32"
    world_size: int = 2
    device: str = "cpu"
    threads: int = 1
    steps: int = 20
    warmup: int = 3
    seed: int = 0

    @property
    def backend(self) -> str:
        return BACKENDS[self.device]

    @property
    def elements(self) -> int:
        """Of the message, over all ranks where it is divided among them."""
        elements = self.size_bytes // ITEM_BYTES[self.dtype]
        return elements // self.world_size * self.world_size

    @property
    def bytes(self) -> int:
        """What is left of ``size_bytes`` when it is divided."""
        return self.elements * ITEM_BYTES[self.dtype]

    @property
    def text(self) -> str:
        """For a person, in a line."""
        size = f"{self.size_bytes:,} bytes of {self.dtype}"
        return f"{self.op}, {size}, {self.world_size} ranks, {self.backend}, {self.device}"

    def parameters(self) -> dict[str, Any]:
        """For a row."""
        return asdict(self) | {"backend": self.backend}

    def check(self) -> None:
        """What no machine could run is the user's mistake."""
        lookup(BUS_FACTORS, self.op, "operation")
        lookup(ITEM_BYTES, self.dtype, "dtype")
        check_counts(self, ("warmup", "seed"), {"world_size": (2, MOST_RANKS)})

    def why_skipped(self, gpus: int) -> str:
        """Why this case does not fit the machine or itself, or an empty string."""
        if self.device == "cuda" and self.world_size > gpus:
            return f"{self.world_size} processes need as many GPUs, and there {_are(gpus)}"
        if not self.elements:
            return f"{self.size_bytes} bytes hold no element for each of {self.world_size} ranks"
        return ""


def _are(count: int) -> str:
    return "is 1" if count == 1 else f"are {count}"


def sweep(lists: dict[str, Sequence[Any]], **fixed: Any) -> list[CollectiveCase]:
    """Every combination of the lists; the last varies fastest. UserError: one that makes no sense."""
    cases = [
        CollectiveCase(**dict(zip(lists, values, strict=True)), **fixed)
        for values in itertools.product(*lists.values())
    ]
    for case in cases:
        case.check()
    return cases
