"""What a measurement asks of an implementation of the head, and the work that all of them are given.

Shapes: B = rows of the global batch, b = rows of this rank, D = embedding columns.
"""

from typing import Any, Protocol

import torch
from torch import Tensor

from megaclass.bench.head.cases import HeadCase
from megaclass.parallel.seeding import derive_key

LEARNING_RATE, MOMENTUM, WEIGHT_DECAY = 0.1, 0.9, 5e-4


class Contender(Protocol):
    """One implementation of the head, in a process that measures nothing else."""

    def prepare(self, step: int) -> None:
        """Make the inputs of a step ready; not timed."""

    def step(self) -> Tensor:
        """Forward, backward to the embeddings, update and zero_grad; returns the loss."""

    def facts(self) -> dict[str, Any]:
        """Parameters of the case as this implementation really ran it."""


class Inputs:
    """The inputs of a step: a function of seed and step, so that all contenders and ranks agree."""

    def __init__(self, case: HeadCase, device: torch.device) -> None:
        self._case, self._device = case, device

    def of_step(self, step: int) -> tuple[Tensor, Tensor]:
        """Embeddings (B, D) fp32 and labels (B,) int64, uniform over all classes."""
        case = self._case
        generator = torch.Generator().manual_seed(derive_key("bench", case.seed, step))
        embeddings_BD = torch.randn(case.batch_size, case.embedding_dim, generator=generator)
        labels_B = torch.randint(case.num_classes, (case.batch_size,), generator=generator)
        return embeddings_BD.to(self._device), labels_B.to(self._device)


def classes_of_process(case: HeadCase) -> tuple[float, float]:
    """The classes that the measured processes hold, and those that they score in a step."""
    held = case.num_classes / case.simulate_ranks
    return held, held * case.sample_rate
