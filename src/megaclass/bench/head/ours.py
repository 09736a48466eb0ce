"""This project's head as a contender.

Shapes: B = rows of the global batch, b = rows of this rank, D = embedding columns.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from megaclass.bench.head.cases import HeadCase
from megaclass.bench.head.contender import LEARNING_RATE, MOMENTUM, WEIGHT_DECAY, Inputs, classes_of_process
from megaclass.heads.margins import ArcFace, CosFace
from megaclass.heads.partial_fc import PartialFC
from megaclass.heads.sgd import HeadSGD
from megaclass.heads.storage import Storage
from megaclass.parallel.groups import Simulated, World


class Megaclass:
    """PartialFC with HeadSGD, as rank ``world.rank`` of a job or as rank 0 of a simulated one."""

    def __init__(self, case: HeadCase, world: World, options: dict[str, Any]) -> None:
        self._inputs = Inputs(case, world.device)
        rows = case.batch_size // case.ranks
        self._mine = slice(world.rank * rows, (world.rank + 1) * rows)
        self._case = case
        self._whole: tuple[Tensor, Tensor]  # what all ranks bring to this step: unit embeddings, labels
        margin = ArcFace() if case.margin == "arcface" else CosFace()
        self.head = PartialFC(
            case.num_classes,
            case.embedding_dim,
            margin=margin,
            sample_rate=case.sample_rate,
            precision=case.precision,
            seed=case.seed,
            device=world.device,
            storage=case.storage,
            kernels=case.kernels,
            group=Simulated(case.simulate_ranks, self._gathered) if case.simulate_ranks > 1 else None,
        )
        self._optimizer = HeadSGD(self.head, LEARNING_RATE, MOMENTUM, WEIGHT_DECAY)

    def _gathered(self, tensor_b: Tensor) -> Tensor:
        """This rank's rows and then those of the simulated ones: labels where it brings labels."""
        embeddings_BD, labels_B = self._whole
        whole = embeddings_BD if tensor_b.is_floating_point() else labels_B
        return torch.cat([tensor_b, whole[len(tensor_b) :]])

    def prepare(self, step: int) -> None:
        embeddings_BD, labels_B = self._inputs.of_step(step)
        self._whole = normalize(embeddings_BD), labels_B
        self._embeddings_bD = embeddings_BD[self._mine].clone().requires_grad_()
        self._labels_b = labels_B[self._mine].clone()

    def step(self) -> Tensor:
        loss: Tensor = self.head(self._embeddings_bD, self._labels_b)
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad()
        return loss.detach()

    def facts(self) -> dict[str, Any]:
        return {"kernels": self.head.shard.engine.name}


def work(case: HeadCase) -> dict[str, float]:
    """Operations and bytes of a step over all measured processes.

    A scored class takes 8 B D operations: four products of 2 B D, logits and embedding gradient in pass 1,
    logits and centre gradient in pass 2. The least that must move: pass 1 reads a centre, pass 2 reads and
    writes it and its momentum.
    """
    _, scored = classes_of_process(case)
    storage = Storage.named(case.storage)
    momentum = 2 if storage.momentum else 0
    return {
        "flops": 8 * case.batch_size * case.embedding_dim * scored,
        "bytes": (3 + momentum) * storage.dtype.itemsize * case.embedding_dim * scored,
    }
