"""This project's inference as a contender: from the loader's batch to the result on the device."""

import contextlib
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from megaclass.bench.benchmark import Tell
from megaclass.bench.epochs import device_clock, run_epoch
from megaclass.bench.infer.cases import InferCase, config_of
from megaclass.bench.infer.engines import Forward, build_engine
from megaclass.bench.infer.images import host_batches
from megaclass.bench.infer.model import build_scorer
from megaclass.parallel.groups import World
from megaclass.train.model import input_function

_FIRST_STEPS = {"cudagraph": 3}  # compiled in the first one, recorded in the second, replayed from then on


class Inference:
    """Steps one by one: each result is there before the next batch is asked for."""

    def __init__(self, case: InferCase, world: World) -> None:
        self._case = case
        config = config_of(case)
        scorer, arithmetic = build_scorer(config, world.device)
        self._to_input = input_function(config, arithmetic)
        self._batches = host_batches(case, config, world.device)
        self._clock = device_clock(world.device)
        self._channels_last = arithmetic.channels_last
        # How fp32 products are computed is a state of the process, which this model has to itself.
        self._held = contextlib.ExitStack()
        self._held.enter_context(arithmetic.active())
        with torch.inference_mode():
            shape = (case.batch_size, case.image_size, case.image_size, 3)
            example = self._to_input(torch.zeros(shape, dtype=torch.uint8))
            self.engine_s, self._forward = self._made(lambda: build_engine(scorer, example, case), example)

    def _made(self, make: Callable[[], Forward], example: Tensor) -> tuple[float, Forward]:
        """An engine, and how long it took to make it and to take its first step, or as many as it takes otherwise."""
        begin = time.perf_counter()
        forward = make()
        for _ in range(_FIRST_STEPS.get(self._case.engine, 1)):
            forward(example)
        self._clock.wait()
        return time.perf_counter() - begin, forward

    def epoch(self, tell: Tell) -> dict[str, Any]:
        """``iterations`` steps."""
        with torch.inference_mode():
            return run_epoch(
                self._batches, self._step, self._case.iterations, self._clock, tell, one_by_one=True
            )

    def _step(self, images_BSSC: Tensor) -> Tensor:
        return self._forward(self._to_input(images_BSSC))

    def facts(self) -> dict[str, Any]:
        return {"channels_last": self._channels_last}
