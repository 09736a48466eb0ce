"""``megaclass bench infer``: latency and throughput of inference, from a batch in host memory to the result on the
device, by batch size, precision and engine.

Shapes: B = images of a batch, S = image size, HW = image, C = 3 channels.
"""

import contextlib
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from megaclass.bench.case import (
    EPOCHS_SPEED,
    FLOPS,
    MEMORY,
    OF_LIMIT,
    Answers,
    Benchmark,
    Implementation,
    Metric,
    latency,
    parameter,
    value_of,
)
from megaclass.bench.flags import cases_of
from megaclass.bench.recipes import (
    ITERATIONS,
    SYNTHETIC,
    ModelCase,
    backbone_cost,
    check_settings,
    config_of,
    open_images,
    precision,
    timed_epochs,
)
from megaclass.bench.timing import beside_limits, device_clock, epoch_measures, measure, run_epoch

if TYPE_CHECKING:
    from torch import Tensor

    from megaclass.parallel.groups import World

ENGINES = ("eager", "compiled", "cudagraph", "onnx")
_FIRST_STEPS = {"cudagraph": 3}  # compiled in the first one, recorded in the second, replayed from then on


@dataclass(frozen=True, kw_only=True)
class InferCase(ModelCase):
    """One measurement of inference, by one process on one device.

    num_classes: of a linear head; a margin head scores no classes when it is used, so there embeddings are the output
    and this is 0.
    """

    benchmark: ClassVar[str] = "infer"
    world_size: ClassVar[int] = 1

    num_classes: int = parameter(
        0, "of a linear head; 0: the recipe's or its data's, else 1000", low=0, title="classes"
    )
    precision: str = precision("float32")
    engine: str = parameter(
        "eager",
        "eager, compiled (torch.compile), cudagraph (that, replayed) or onnx",
        sweeps=True,
        choices=ENGINES,
    )
    batch_size: int = parameter(
        1,
        "images of a step",
        sweeps=True,
        flags=("-b", "--batch-size"),
        given="1,2,4,8,16,32,64,128,192,256",
        low=1,
        title="batch",
    )

    def resolved(self) -> "InferCase":
        config = config_of(self)
        return replace(
            self,
            backbone=config.model.name,
            num_classes=config.data.num_classes if config.head.kind == "linear" else 0,
            image_size=config.data.image_size,
            iterations=self.iterations or ITERATIONS[self.device],
        )

    def why_skipped(self, gpus: int) -> str:
        if self.device == "cuda" and gpus < 1:
            return "no GPU is visible"
        if self.device == "cpu" and (self.precision == "tf32" or self.tf32):
            return "tf32 exists on CUDA only"
        if self.device == "cpu" and self.engine == "cudagraph":
            return "CUDA graphs exist on CUDA only"
        if self.engine == "onnx" and self.precision == "bf16":
            return "ONNX Runtime has no bf16 convolution"
        if self.engine == "onnx" and self.precision == "fp16" and self.device == "cpu":
            return "ONNX Runtime computes fp16 convolutions on a CPU in fp32"
        return ""


class Inference:
    """Steps one by one: each result is there before the next batch is asked for."""

    def __init__(self, case: InferCase, world: "World", name: str, options: dict[str, Any]) -> None:
        import torch

        from megaclass.bench.engines import build_engine, build_scorer
        from megaclass.train.model import input_function

        self._case = case
        config = config_of(case)
        if case.engine == "onnx":  # it has one order of the dimensions
            config = replace(config, precision=replace(config.precision, channels_last=False))
        scorer, arithmetic = build_scorer(config, world.device)
        self._to_input = input_function(config, arithmetic)
        self._batches = host_batches(case, config.evaluate.resize, world.device)
        self._clock = device_clock(world.device)
        self._channels_last = arithmetic.channels_last
        # How fp32 products are computed is a state of the process, which this model has to itself.
        contextlib.ExitStack().enter_context(arithmetic.active())
        with torch.inference_mode():
            shape = (case.batch_size, case.image_size, case.image_size, 3)
            example = self._to_input(torch.zeros(shape, dtype=torch.uint8))
            begin = time.perf_counter()
            self._forward = build_engine(scorer, example, case)
            for _ in range(_FIRST_STEPS.get(case.engine, 1)):
                self._forward(example)
            self._clock.wait()
            self._engine_s = time.perf_counter() - begin

    def turn(self, index: int) -> dict[str, Any]:
        """An epoch; ``engine_s`` is how long the engine took to be made and to take its first steps."""
        import torch

        with torch.inference_mode():
            times = run_epoch(
                self._batches,
                lambda images_BSSC: self._forward(self._to_input(images_BSSC)),
                self._case.iterations,
                self._clock,
                one_by_one=True,
            )
        return times | {"engine_s": self._engine_s}

    def facts(self) -> dict[str, Any]:
        return {"channels_last": self._channels_last}


def host_batches(case: InferCase, resize: int, device: Any) -> "Iterator[Tensor]":
    """uint8 (B, S, S, C) in host memory, pinned where they go to a GPU; each is good until the next one is asked for.

    Noise, or a set in its order as an evaluation reads it, which begins anew at its end, in the middle of a batch if
    need be: all batches are full.
    """
    import numpy as np

    from megaclass.data.augment import EvalTransform
    from megaclass.data.loader import Loader
    from megaclass.data.synthetic import SyntheticLoader

    pin_memory = device.type == "cuda"
    if case.data == SYNTHETIC:
        noise = SyntheticLoader(1, case.image_size, case.batch_size, seed=case.seed)
        made = [batch.images for batch in noise.steps(0, 2)]
        yield from itertools.cycle([images.pin_memory() for images in made] if pin_memory else made)
        return
    dataset = open_images(case.data)

    def indices_of_step(step: int) -> tuple[np.ndarray, np.ndarray]:
        numbers_B = np.arange(step * case.batch_size, (step + 1) * case.batch_size)
        return numbers_B % len(dataset), numbers_B

    transform = EvalTransform(case.image_size, resize)
    loader = Loader(dataset, transform, indices_of_step, workers=case.threads, pin_memory=pin_memory)
    yield from (batch.images for batch in loader.steps(0, case.all_steps))


def libraries(case: InferCase, world: "World") -> None:
    """A small convolution, and what the engine is made of: that is no memory of the model."""
    import torch

    from megaclass.bench.engines import load_libraries

    torch.nn.Conv2d(3, 8, 3, device=world.device)(torch.randn(1, 3, 8, 8, device=world.device)).flatten(1)
    load_libraries(case.engine)


def measures(name: str, case: InferCase, turns: Answers, limits: list[dict[str, float]]) -> dict[str, Any]:
    """``compile_s`` of the work, where something is compiled: how long it took before the warm-up."""
    found = epoch_measures(turns, case.batch_size)
    work = beside_limits({"flops": forward_flops(case)}, found["step_ms"]["p50"], limits)
    made = {} if case.engine == "eager" else {"compile_s": round(turns[0][0]["engine_s"], 3)}
    return found | {"work": work | made}


def cases(options: Any) -> list[InferCase]:
    check_settings(InferCase, list(options.settings))
    if options.data != SYNTHETIC:
        open_images(options.data)
    return cases_of(InferCase, options, epochs=timed_epochs(options), settings=[options.settings])


def implementations(case: InferCase, options: Any) -> list[Implementation]:
    from megaclass.bench.engines import missing

    return [Implementation(missing=missing(case.device) if case.engine == "onnx" else "")]


def forward_flops(case: InferCase) -> float:
    """Operations of a batch."""
    return case.batch_size * backbone_cost(config_of(case)).forward_flops


METRICS = (
    EPOCHS_SPEED,
    *(
        latency(name, f"{'Mean' if name == 'mean' else name} latency, ms")
        for name in ("mean", "p50", "p90", "p95", "p99", "p100")
    ),
    Metric(
        "data_ms", "Waiting, ms", lambda row: sum(row.data_ms) / len(row.data_ms) if row.data_ms else None
    ),
    MEMORY,
    FLOPS,
    OF_LIMIT,
    Metric("compile_s", "Ready after, s", value_of("work", "compile_s"), "lower"),
)

BENCHMARK = Benchmark(
    "infer",
    "Inference",
    "latency and throughput of inference, by batch, precision and engine",
    InferCase,
    METRICS,
    "samples_per_second",
    prepare=Inference,
    measures=measures,
    libraries=libraries,
    limits=measure,
    settings=True,
    cases=cases,
    implementations=implementations,
)
