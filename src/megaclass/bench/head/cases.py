"""The cases of ``bench head``: what a user may vary, and every combination of it."""

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from megaclass.bench.arguments import check_counts, crowded
from megaclass.errors import UserError, lookup
from megaclass.heads.step import KERNELS, PRECISIONS
from megaclass.heads.storage import STORAGES

MARGINS = ("arcface", "cosface")


@dataclass(frozen=True, kw_only=True)
class HeadCase:
    """One measurement of a head.

    num_classes and batch_size are those of the whole job; with ``world_size`` ranks, or ``simulate_ranks``,
    each rank holds its share of both. ``threads`` are those of one process.
    """

    benchmark: ClassVar[str] = "head"

    num_classes: int = 100_000
    embedding_dim: int = 512
    batch_size: int = 128
    sample_rate: float = 1.0
    precision: str = "fp32"
    storage: str = "fp32"
    world_size: int = 1
    simulate_ranks: int = 1
    margin: str = "arcface"
    kernels: str = "auto"
    device: str = "cpu"
    threads: int = 1
    steps: int = 20
    warmup: int = 3
    seed: int = 0

    @property
    def ranks(self) -> int:
        """Among how many the classes and the batch are divided."""
        return self.world_size * self.simulate_ranks

    @property
    def text(self) -> str:
        """For a person, in a line."""
        text = (
            f"{self.num_classes:,} x {self.embedding_dim}, batch {self.batch_size}, rate {self.sample_rate:g}"
        )
        if self.simulate_ranks > 1:
            text += f", rank 0 of {self.simulate_ranks}"
        if self.world_size > 1:
            text += f", {self.world_size} ranks"
        return f"{text}, {self.precision} products, {self.storage} storage, {self.device}"

    def parameters(self) -> dict[str, Any]:
        """For a row."""
        return asdict(self) | {"collectives": "none" if self.simulate_ranks > 1 else "included"}

    def check(self) -> None:
        """What no machine could run is the user's mistake."""
        for name in ("precision", "storage", "margin", "kernels"):
            lookup(dict.fromkeys(_CHOICES[name]), getattr(self, name), name)
        check_counts(self, ("warmup", "seed"))
        if not 0 < self.sample_rate <= 1:
            raise UserError(f"--sample-rate: {self.sample_rate} is outside (0, 1]")
        if self.world_size > 1 and self.simulate_ranks > 1:
            raise UserError("--simulate-ranks stands for the other ranks: it goes with --world-size 1")

    def why_skipped(self, gpus: int) -> str:
        """Why this case does not fit the machine or itself, or an empty string."""
        if self.batch_size % self.ranks:
            return f"a batch of {self.batch_size} does not divide into {self.ranks} ranks"
        if self.device == "cuda" and self.world_size > gpus:
            return f"{self.world_size} processes need as many GPUs, and there are {gpus}"
        if reason := crowded(self.device, self.world_size):
            return reason
        if self.device == "cpu" and self.precision == "tf32":
            return "tf32 exists on CUDA only"
        if self.device == "cpu" and self.kernels == "triton":
            return "Triton kernels exist on CUDA only"
        return ""


_CHOICES = {
    "precision": PRECISIONS,
    "storage": STORAGES,
    "margin": MARGINS,
    "kernels": KERNELS,
}


def sweep(lists: dict[str, Sequence[Any]], **fixed: Any) -> list[HeadCase]:
    """Every combination of the lists; the last varies fastest. UserError: one that makes no sense."""
    cases = [
        HeadCase(**dict(zip(lists, values, strict=True)), **fixed)
        for values in itertools.product(*lists.values())
    ]
    for case in cases:
        case.check()
    return cases
