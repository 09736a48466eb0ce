"""``megaclass bench infer``: latency and throughput of inference, from a batch in host memory to the result on the
device, by batch size, precision and engine.

Shapes: B = images of a batch, S = image size, HW = image, C = 3 channels.
"""

import contextlib
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
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
    Turns,
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
    part_of,
    precision,
    timed_epochs,
)
from megaclass.bench.timing import beside_limits, device_clock, epoch_measures, measure, run_epoch
from megaclass.results.rows import Row

if TYPE_CHECKING:
    from argparse import ArgumentParser

    from torch import Tensor

    from megaclass.parallel.groups import World

ENGINES = ("eager", "compiled", "cudagraph", "onnx", "openvino", "tensorrt")
# Images, at least: whose output is held to eager fp32's; by which int8 sets its ranges.
COMPARED, CALIBRATED = 16, 128
_FIRST_STEPS = {"cudagraph": 3}  # compiled in the first one, recorded in the second, replayed from then on


@dataclass(frozen=True, kw_only=True)
class InferCase(ModelCase):
    """One measurement of inference, by one process on one device.

    num_classes: of a linear head; a margin head scores no classes when it is used, so there embeddings are the output
    and this is 0.
    """

    world_size: ClassVar[int] = 1

    accuracy: str = parameter(
        "", "labelled set on which the engine is scored afterwards, as `evaluate` does it", effort=True
    )
    num_classes: int = parameter(
        0, "of a linear head; 0: the recipe's or its data's, else 1000", low=0, title="classes"
    )
    precision: str = precision("float32", "int8")
    engine: str = parameter(
        "eager",
        "eager, compiled (torch.compile), cudagraph (that, replayed), onnx (ONNX Runtime), openvino or tensorrt",
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
        cpu, engine, numbers = self.device == "cpu", self.engine, self.precision
        reasons = {
            "no GPU is visible": not cpu and gpus < 1,
            "tf32 exists on CUDA only": cpu and (numbers == "tf32" or self.tf32),
            "CUDA graphs exist on CUDA only": cpu and engine == "cudagraph",
            "TensorRT exists on CUDA only": cpu and engine == "tensorrt",
            "OpenVINO has no CUDA": not cpu and engine == "openvino",
            "ONNX Runtime has no bf16 convolution": engine in ("onnx", "tensorrt") and numbers == "bf16",
        }
        by_runtime = cpu and engine in ("onnx", "openvino")
        reasons["int8 is there for onnx and openvino, on a CPU"] = numbers == "int8" and not by_runtime
        reasons[f"{engine} computes fp16 convolutions on a CPU in fp32"] = numbers == "fp16" and by_runtime
        return next((reason for reason, holds in reasons.items() if holds), "")


class Inference(Turns):
    """Steps one by one: each result is there before the next batch is asked for."""

    def __init__(self, case: InferCase, world: "World", name: str, options: dict[str, Any]) -> None:
        import torch

        from megaclass.bench.engines import PACKAGES, build_engine, build_scorer
        from megaclass.train.model import input_function

        self._case = case
        config = config_of(case)
        if case.engine in PACKAGES:  # they have one order of the dimensions
            config = replace(config, precision=replace(config.precision, channels_last=False))
        scorer, arithmetic = build_scorer(config, world.device)
        self._config, self._arithmetic = config, arithmetic
        self._classes = scorer.head.out_features if scorer.head else 0
        self._to_input = input_function(config, arithmetic)
        self._batches = host_batches(case, config.evaluate.resize, world.device)
        self._clock = device_clock(world.device)
        # How fp32 products are computed is a state of the process, which this model has to itself.
        contextlib.ExitStack().enter_context(arithmetic.active())
        with torch.inference_mode():
            shape = (case.batch_size, case.image_size, case.image_size, 3)
            example = self._to_input(torch.zeros(shape, dtype=torch.uint8))
            begin = time.perf_counter()
            self._forward = build_engine(scorer, example, case, self._calibration)
            for _ in range(_FIRST_STEPS.get(case.engine, 1)):
                self._forward(example)
            self._clock.wait()
            self._engine_s = time.perf_counter() - begin

    def turn(self, index: int) -> dict[str, Any]:
        """An epoch; ``engine_s`` is how long the engine took to be made and to take its first steps."""
        import torch

        begin = time.process_time()
        with torch.inference_mode():
            times = run_epoch(
                self._batches,
                lambda images_BSSC: self._forward(self._to_input(images_BSSC)),
                self._case.iterations,
                self._clock,
                one_by_one=True,
            )
        return times | {"engine_s": self._engine_s, "cpu_ms": 1000 * (time.process_time() - begin)}

    def facts(self) -> dict[str, Any]:
        return {"channels_last": self._arithmetic.channels_last, "num_classes": self._classes}

    def result(self) -> dict[str, float]:
        """``agreement``: the mean cosine of its output with that of the same weights in eager fp32; of a linear head
        ``same_top1`` too, how often both choose the same class. And what ``accuracy`` asks for."""
        import torch
        from torch.nn.functional import cosine_similarity

        from megaclass.bench.engines import build_scorer

        case, device = self._case, self._arithmetic.device
        exact, plain = build_scorer(config_of(replace(case, precision="fp32", tf32=False)), device)
        found, expected = [], []
        with torch.inference_mode():
            for images_BSSC in host_batches(case, self._config.evaluate.resize, device, COMPARED):
                images_BCHW = self._to_input(images_BSSC)
                found.append(self._forward(images_BCHW)[:COMPARED].clone())
                with plain.active():
                    expected.append(exact(images_BCHW[:COMPARED]))
        # In fp64: outputs of fresh weights may be so large that their squares leave fp32, as those of an IResNet are.
        found_NR, exact_NR = torch.cat(found).double(), torch.cat(expected).double()
        told = {"agreement": cosine_similarity(found_NR, exact_NR).mean().item()}
        if self._classes:
            told["same_top1"] = (found_NR.argmax(1) == exact_NR.argmax(1)).float().mean().item()
        return told | (self._scored() if case.accuracy else {})

    def _scored(self) -> dict[str, float]:
        from megaclass.bench.engines import AsBackbone
        from megaclass.data.augment import EvalTransform
        from megaclass.evaluation.evaluators import build_classifier, build_verifier
        from megaclass.inference.model import GivenLogits
        from megaclass.results.rundir import RunDirectory
        from megaclass.train.job import image_reader

        case = self._case
        reader = replace(
            image_reader(self._config, self._arithmetic),
            transform=EvalTransform(case.image_size, self._config.evaluate.resize),
            batch_size=case.batch_size,
            to_input=self._to_input,
            precision=contextlib.nullcontext,
        )
        backbone = AsBackbone(self._forward, case.batch_size)
        if not self._classes:
            metrics = build_verifier(self._config, Path(case.accuracy), reader)(backbone, None).metrics
            return {"pair_accuracy": metrics["pair_accuracy"]}
        names = RunDirectory(Path(self._config.model.weights)).read_classes()
        classify = build_classifier(case.accuracy, self._classes, names, reader)
        return classify(backbone, GivenLogits()).metrics

    def _calibration(self) -> "Iterator[Tensor]":
        """Of the training part of the set where it has one."""
        data = self._case.data
        case = replace(self._case, data=data if data == SYNTHETIC else str(part_of(data, "train")))
        resize, device = self._config.evaluate.resize, self._arithmetic.device
        return map(self._to_input, host_batches(case, resize, device, CALIBRATED))


def host_batches(case: InferCase, resize: int, device: Any, spread: int = 0) -> "Iterator[Tensor]":
    """uint8 (B, S, S, C) in host memory, pinned where they go to a GPU; each is good until the next one is asked for.

    Noise, or a set in its order as an evaluation reads it, which begins anew at its end, in the middle of a batch if
    need be: all batches are full. ``spread``: only so many images, or a few more, from all over the set instead.
    """
    import numpy as np

    from megaclass.data.augment import EvalTransform
    from megaclass.data.loader import Loader
    from megaclass.data.synthetic import SyntheticLoader

    pin_memory, steps = device.type == "cuda", -(-spread // case.batch_size)
    if case.data == SYNTHETIC:
        noise = SyntheticLoader(1, case.image_size, case.batch_size, seed=case.seed)
        made = [batch.images for batch in noise.steps(0, steps or 2)]
        made = [images.pin_memory() for images in made] if pin_memory else made
        yield from made if spread else itertools.cycle(made)
        return
    dataset = open_images(case.data)
    chosen_N = np.linspace(0, len(dataset), steps * case.batch_size, endpoint=False).astype(np.int64)

    def indices_of_step(step: int) -> tuple[np.ndarray, np.ndarray]:
        numbers_B = np.arange(step * case.batch_size, (step + 1) * case.batch_size)
        return chosen_N[numbers_B] if spread else numbers_B % len(dataset), numbers_B

    transform = EvalTransform(case.image_size, resize)
    loader = Loader(dataset, transform, indices_of_step, workers=case.threads, pin_memory=pin_memory)
    yield from (batch.images for batch in loader.steps(0, steps or case.all_steps))


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
    if case.device == "cpu":  # what other programs disturb least, where there is one thread
        cpu_ms = sum(turn[0]["cpu_ms"] for turn in turns)
        work["samples_per_cpu_second"] = 1000 * case.batch_size * case.iterations * len(turns) / cpu_ms
    made = {} if case.engine == "eager" else {"compile_s": round(turns[0][0]["engine_s"], 3)}
    return found | {"work": work | made}


def cases(options: Any) -> list[InferCase]:
    check_settings(InferCase, list(options.settings))
    if options.data != SYNTHETIC:
        open_images(options.data)
    if options.accuracy:
        open_images(options.accuracy)
    given: dict[str, Any] = {"epochs": timed_epochs(options), "settings": [options.settings]}
    if options.in_turns:  # the others are implementations
        given |= {"engine": options.engine[:1], "precision": options.precision[:1]}
    return cases_of(InferCase, options, **given)


def flags(parser: "ArgumentParser") -> None:
    text = "engines and types of number take turns, epoch by epoch, in the place of one after the other"
    parser.add_argument("--in-turns", action="store_true", help=text)


def implementations(case: InferCase, options: Any) -> list[Implementation]:
    """Each engine at each precision that is asked for, in turns, or the one of the case."""
    import torch

    from megaclass.bench.engines import missing

    if not getattr(options, "in_turns", False):  # a suite has no such flag
        return [Implementation(missing=missing(case))]
    pairs = itertools.product(options.engine, options.precision)
    variants = [{"engine": engine, "precision": number_type} for engine, number_type in pairs]
    changed = [replace(case, **variant) for variant in variants]
    lacking = [one.why_skipped(torch.cuda.device_count()) or missing(one) for one in changed]
    return [Implementation(changes=c, missing=m) for c, m in zip(variants, lacking, strict=True)]


def forward_flops(case: InferCase) -> float:
    """Operations of a batch."""
    return case.batch_size * backbone_cost(config_of(case)).forward_flops


def _distance(row: Row) -> float | None:
    """Written so, since what matters of a cosine of 0.9998 are its last digits."""
    agreement = row.result.get("agreement")
    return None if agreement is None else max(0.0, 1 - agreement)


METRICS = (
    EPOCHS_SPEED,
    *(
        latency(name, f"{'Mean' if name == 'mean' else name} latency, ms")
        for name in ("mean", "p50", "p90", "p95", "p99", "p100")
    ),
    Metric("data_ms", "Waiting, ms", lambda row: sum(row.data_ms) / len(row.data_ms) if row.data_ms else None),
    MEMORY,
    FLOPS,
    OF_LIMIT,
    Metric("samples_per_cpu_second", "Images/CPU s", value_of("work", "samples_per_cpu_second"), "higher"),
    Metric("distance", "1 - cosine with fp32", _distance, "lower"),
    Metric("same_top1", "Top-1 as fp32, %", value_of("result", "same_top1", 100), "higher"),
    Metric("top1", "Top-1, %", value_of("result", "top1", 100), "higher"),
    Metric("pair_accuracy", "Pair accuracy, %", value_of("result", "pair_accuracy", 100), "higher"),
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
    flags=flags,
    settings=True,
    cases=cases,
    implementations=implementations,
)
