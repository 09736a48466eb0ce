"""Inference as a benchmark: a turn is an epoch, which is a number of steps."""

from typing import Any

import torch

from megaclass.bench import epochs
from megaclass.bench.benchmark import Tell
from megaclass.bench.infer.cases import InferCase
from megaclass.bench.infer.contender import Inference
from megaclass.bench.infer.engines import load_engine_libraries
from megaclass.bench.timing import Stopwatch
from megaclass.parallel.groups import World


class InferBenchmark:
    """See :class:`megaclass.bench.benchmark.Benchmark`."""

    case_type = InferCase

    def load_libraries(self, case: InferCase, world: World) -> None:
        """A small product and convolution, and what the engine is made of: that is no memory of the model."""
        images = torch.randn(1, 3, 8, 8, device=world.device)
        torch.nn.Conv2d(3, 8, 3, device=world.device)(images).flatten(1)
        load_engine_libraries(case)

    def contender(
        self, implementation: str, case: InferCase, world: World, options: dict[str, Any]
    ) -> Inference:
        return Inference(case, world)

    def turn(self, contender: Inference, index: int, watch: Stopwatch, tell: Tell) -> dict[str, Any]:
        return contender.epoch(tell) | {"engine_s": contender.engine_s}

    def limits(self, case: InferCase, world: World) -> dict[str, float]:
        return {}

    def measures(
        self,
        implementation: str,
        case: InferCase,
        turns: list[list[dict[str, Any]]],
        limits: list[dict[str, float]],
    ) -> dict[str, Any]:
        """``compile_s`` of the work, where something is compiled: how long the engine took to be made and to take its
        first step, before the warm-up."""
        ((answer,), *_) = turns
        work = {} if case.engine == "eager" else {"compile_s": round(answer["engine_s"], 3)}
        return epochs.measures(turns, case.batch_size) | {"work": work}
