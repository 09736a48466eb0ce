"""The training that ``bench train`` measures, in a worker.

Shapes: b = rows of this rank's batch, D = embedding columns.
"""

import sys
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from megaclass.bench.case import Turns
from megaclass.bench.timing import device_clock, run_epoch
from megaclass.config import Config
from megaclass.data.loader import Batch
from megaclass.parallel import groups
from megaclass.parallel.groups import Simulated, World
from megaclass.parallel.seeding import derive_key
from megaclass.train.arithmetic import keep_freed_memory
from megaclass.train.guard import Guard
from megaclass.train.job import build_job
from megaclass.train.loop import set_learning_rate, train_step


class Training(Turns):
    """The job that ``megaclass train`` builds, step by step, as rank ``world.rank`` of a job or as rank 0 of a
    simulated one."""

    def __init__(self, case: Any, config: Config, world: World) -> None:
        self._case, self._device, head_group = case, world.device, None
        if case.simulate_ranks > 1:
            world = World(0, case.simulate_ranks, world.device)
            head_group = Simulated(case.simulate_ranks, self._gathered)
            self._generator = torch.Generator(world.device)
            self._others_unit = torch.empty(0, 0, device=world.device)
        if config.speed.keep_memory and world.device.type == "cpu":
            keep_freed_memory()
        self._job = build_job(config, world, lambda line: print(line, file=sys.stderr), head_group)
        self._guard = Guard(self._job)
        self._job.model.train()
        self._clock = device_clock(world.device)
        self._step = 0
        # Steps that both optimizers left out, which is less work; those that look for the fp16 scale do not count.
        self._not_finite = torch.zeros((), dtype=torch.int64, device=world.device)
        self._batches = self._job.feed(self._job.loader.steps(0, case.all_steps))

    def turn(self, index: int) -> dict[str, Any]:
        """An epoch of ``iterations`` steps; the loss of the last one comes with the times."""
        with self._job.arithmetic.active():
            groups.barrier()
            answer = run_epoch(self._batches, self._take, self._case.iterations, self._clock)
        if skipped := int(self._not_finite):
            raise ArithmeticError(
                f"{skipped} of {self._step} steps had a loss or gradient that is not finite, and were left out; lower "
                "optim.lr"
            )
        return answer | {"loss": float(self._loss)}

    def _take(self, batch: Batch) -> None:
        if self._case.simulate_ranks > 1:
            self._draw_labels((self._case.simulate_ranks - 1) * len(batch.labels))
        set_learning_rate(self._job, min(self._step, self._job.total_steps - 1))
        outcome = train_step(self._job, batch, self._step, self._guard)
        self._not_finite += outcome.skipped & ~outcome.rescaled
        self._loss = outcome.loss
        self._step += 1

    def facts(self) -> dict[str, Any]:
        job = self._job
        facts: dict[str, Any] = {
            "channels_last": job.arithmetic.channels_last,
            "num_classes": job.num_classes,
        }
        if shard := getattr(job.head, "shard", None):
            facts |= {"kernels": shard.engine.name}
        if self._case.ranks > 1:
            facts |= {"collectives": "none" if self._case.simulate_ranks > 1 else "included"}
        return facts

    def _draw_labels(self, count: int) -> None:
        """Of the ranks that are only simulated, for this step; their embeddings stay."""
        self._generator.manual_seed(derive_key("other ranks", self._case.seed, self._step))
        classes = self._case.num_classes
        self._others_labels = torch.randint(classes, (count,), device=self._device, generator=self._generator)

    def _gathered(self, tensor_b: Tensor) -> Tensor:
        """This rank's rows, labels (b,), lengths (b,) or unit embeddings (b, D), and then those of the others."""
        others = (self._case.simulate_ranks - 1) * len(tensor_b)
        if not tensor_b.is_floating_point():
            return torch.cat([tensor_b, self._others_labels[:others]])
        if tensor_b.dim() == 1:
            return tensor_b.repeat(self._case.simulate_ranks)
        if self._others_unit.shape[0] < others:
            shape = (others, tensor_b.shape[1])
            self._others_unit = normalize(torch.randn(shape, device=self._device, generator=self._generator))
        return torch.cat([tensor_b, self._others_unit[:others].to(tensor_b.dtype)])
