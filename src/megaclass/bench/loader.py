"""``megaclass bench loader``: images to batches, by stage, beside bare decode and DALI.

All implementations of a case read the same files, and a turn is a pass over some batches of them, from an idle machine
to an idle machine. CPU time says more than the wall's clock on a shared machine: both are in a row.

Shapes: B = images of a batch, K = numbers a sample, S = image size, C = 3 channels (RGB).
"""

import itertools
import tempfile
import time
from argparse import ArgumentParser
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, ClassVar, NamedTuple

import cv2
import numpy as np
import simplejpeg

from megaclass.bench.case import (
    MEMORY,
    SPEED,
    Answers,
    Benchmark,
    Case,
    Implementation,
    Metric,
    Planned,
    Turns,
    parameter,
    samples_ms,
    value_of,
)
from megaclass.bench.flags import names
from megaclass.bench.peers import dali
from megaclass.data.decode import Decoded, Memory, decode_part
from megaclass.data.open import open_dataset
from megaclass.errors import lookup
from megaclass.results import rows

BARE = "simplejpeg"
STAGES = ("read", "decode", "augment", "assemble", "copy")


class Workload(NamedTuple):
    """What a loader has to do."""

    image_size: int  # of the square that it delivers
    look: str  # of the photographs that stand for the data set
    images: int  # how many distinct ones
    batches: int  # of a pass, about a second of CPU time
    crop: float = 1.0  # the least share of their area that a random crop takes
    evaluates: bool = False  # in stored order, with nothing random


WORKLOADS = {
    "faces": Workload(112, "face", images=2000, batches=100),
    "imagenet": Workload(224, "photograph", images=500, batches=10, crop=0.08),
    "imagenet-eval": Workload(224, "photograph", images=500, batches=10, evaluates=True),
}


@dataclass(frozen=True, kw_only=True)
class LoaderCase(Case):
    """One measurement of a loader: passes of ``batches`` batches by ``threads`` threads.

    device: where the batches are delivered; what knows no device has ``cpu`` here.
    """

    world_size: ClassVar[int] = 1

    workload: str = parameter(
        "faces",
        "faces (112 px, flip), imagenet (random crop 224), imagenet-eval",
        sweeps=True,
        given="faces,imagenet",
        choices=[*WORKLOADS],
    )
    source: str = parameter("records", sweeps=True)
    data: str = parameter("", "record set or image folder to take images from, instead of made photographs")
    distinct_images: int = parameter(0, "distinct images; 0: 2000 faces, 500 photographs", flags=("--images",), low=0)
    batch_size: int = parameter(128, "images of a batch", low=1)
    batches: int = parameter(0, "batches of a pass; 0: as many as take about a second", low=0)
    threads: int = parameter(0, "of a loader; 0: as many as there are cores", low=0)
    prefetch: int = parameter(2, "batches that are made ahead", low=1)
    device: str = parameter("auto", "auto, cpu or cuda: where our loader delivers the batches")
    rounds: int = parameter(10, "timed passes of every loader", low=1, effort=True)
    warmup: int = parameter(1, "passes before them that are not timed", low=0, effort=True)
    seed: int = parameter(0, "of images, order and augmentation", low=0)

    @property
    def steps(self) -> int:
        return self.rounds

    @property
    def samples(self) -> int:
        return self.batch_size * self.batches

    @property
    def work(self) -> Workload:
        return WORKLOADS[self.workload]

    def resolved(self) -> "LoaderCase":
        if self.data:
            open_dataset(self.data)
        images, batches = self.distinct_images or self.work.images, self.batches or self.work.batches
        return replace(self, batches=batches, distinct_images=images)

    def transform(self) -> Any:
        """This project's transform for the workload."""
        from megaclass.data.augment import EvalTransform, TrainTransform
        from megaclass.parallel.seeding import derive_key

        size, seed = self.work.image_size, derive_key("augment", self.seed)
        if self.work.evaluates:
            return EvalTransform(size, resize=256)
        return TrainTransform(size, flip=True, crop_scale_min=self.work.crop, seed=seed)


class Time(NamedTuple):
    """ms: on the wall. cpu_ms: user and system time of all threads of this process."""

    ms: float
    cpu_ms: float


def timed(work: Callable[[], object]) -> Time:
    """How long ``work`` takes. Its last thread has to be done when it returns: what comes later is not seen."""
    cpu_s, begin = time.process_time(), time.perf_counter()
    work()
    return Time(1e3 * (time.perf_counter() - begin), 1e3 * (time.process_time() - cpu_s))


class Passes(Turns):
    """An implementation at work: turn ``index`` makes the ``case.batches`` batches of a pass, which goes on where the
    last one ended. ``counts`` names the stage whose time is that of the pass."""

    counts = "whole"

    def __init__(self, case: LoaderCase, device: Any, directory: str) -> None:
        from megaclass.data.sampler import EpochSampler

        self.case, self._device, self.dataset = case, device, open_dataset(directory)
        self._sampler = EpochSampler(len(self.dataset), case.seed, shuffle=not case.work.evaluates)

    def order(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Indices and global numbers of the samples of a step, int64 (B,) each: shuffled as in training, in stored
        order for an evaluation."""
        numbers_B = step * self.case.batch_size + np.arange(self.case.batch_size)
        return self._sampler.indices(numbers_B), numbers_B

    def turn(self, index: int) -> dict[str, Any]:
        times = self.stages(range(index * self.case.batches, (index + 1) * self.case.batches))
        cpu_ms = {name: found.cpu_ms for name, found in times.items()}
        return {"ms": times[self.counts].ms, "cpu_ms": cpu_ms[self.counts], "stages": cpu_ms}

    def stages(self, steps: range) -> dict[str, Time]:
        raise NotImplementedError

    def in_threads(self, work: Callable[..., object], samples: Sequence[Any], scratch: Callable[[], Any]) -> None:
        """``work(sample, mine)`` for every sample; ``mine`` is what ``scratch`` made for the thread."""
        left = iter(samples)  # each goes to the thread that is free

        def take() -> None:
            mine = scratch()
            for sample in left:
                work(sample, mine)

        with ThreadPoolExecutor(self.case.threads, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
            for done in [pool.submit(take) for _ in range(self.case.threads)]:
                done.result()


class BareDecode(Passes):
    """simplejpeg on files that lie in memory, into an array as NumPy makes it: whole images, nothing else. A loader can
    be faster that decodes into better memory (``data.decode.Memory``), or less than whole images."""

    def __init__(self, case: LoaderCase, device: Any, directory: str) -> None:
        super().__init__(case, device, directory)
        self._files = [self.dataset.read(index).encoded for index in range(len(self.dataset))]
        headers = [simplejpeg.decode_jpeg_header(encoded) for encoded in self._files]
        self._sizes = [3 * height * width for height, width, _, _ in headers]

    def stages(self, steps: range) -> dict[str, Time]:
        # The order is drawn beforehand: here nothing but decoding counts.
        samples = [sample for step in steps for sample in self.order(step)[0].tolist()]
        scratch = partial(np.empty, max(self._sizes), np.uint8)
        return {"whole": timed(lambda: self.in_threads(self._decode, samples, scratch))}

    def _decode(self, sample: int, pixels: np.ndarray) -> None:
        simplejpeg.decode_jpeg(self._files[sample], buffer=pixels[: self._sizes[sample]])


class Megaclass(Passes):
    """``Loader`` on records or a folder.

    A turn has a pass for each stage, over the same samples by as many threads, and each does what the one before it
    does and one thing more: read; decode; augment; assemble (the loader itself, which also draws order and plan of the
    samples and makes batches); copy (to the device, and normalise there). The pass that counts is assemble on a CPU,
    copy on CUDA, where it ends when the device is idle.
    """

    def __init__(self, case: LoaderCase, device: Any, directory: str) -> None:
        from megaclass.data.feed import DeviceFeed
        from megaclass.data.loader import Loader

        super().__init__(case, device, directory)
        self.transform = case.transform()
        # One for all passes, as a run has one: memory that was copied to is used again on the same stream only.
        self._feed = DeviceFeed(device)
        self._on_cuda = device.type == "cuda"
        self.counts = "copy" if self._on_cuda else "assemble"
        self.loader = Loader(
            self.dataset,
            self.transform,
            self.order,
            workers=case.threads,
            prefetch=case.prefetch,
            pin_memory=self._on_cuda,
        )

    def stages(self, steps: range) -> dict[str, Time]:
        samples: list[tuple[int, np.ndarray]] = []  # of the whole pass: index and plan
        for step in steps:
            indices_B, numbers_B = self.order(step)
            samples += zip(indices_B.tolist(), self.transform.plan(numbers_B), strict=True)
        size = self.case.work.image_size
        scratch = lambda: (Memory(size, size), np.empty((size, size, 3), np.uint8))  # noqa: E731
        return {
            "read": timed(lambda: self.in_threads(self._read, samples, scratch)),
            "decode": timed(lambda: self.in_threads(self._decode, samples, scratch)),
            "augment": timed(lambda: self.in_threads(self._augment, samples, scratch)),
            "assemble": timed(lambda: deque(self.loader.steps(steps.start, steps.stop), maxlen=0)),
            "copy": timed(lambda: self._copy(steps)),
        }

    def _read(self, sample: tuple[int, np.ndarray], scratch: tuple[Memory, np.ndarray]) -> bytes:
        return self.dataset.read(sample[0]).encoded

    def _decode(self, sample: tuple[int, np.ndarray], scratch: tuple[Memory, np.ndarray]) -> Decoded:
        where, need = self.dataset.describe(sample[0]), partial(self.transform.need, plan_K=sample[1])
        encoded = self._read(sample, scratch)
        return scratch[0].fitted(encoded) or decode_part(encoded, where, scratch[0], need)

    def _augment(self, sample: tuple[int, np.ndarray], scratch: tuple[Memory, np.ndarray]) -> None:
        self.transform(self._decode(sample, scratch), sample[1], scratch[1])

    def _copy(self, steps: range) -> None:
        """Copied to the device one batch ahead, and normalised there."""
        import torch

        from megaclass.data.loader import to_model_input

        for batch in self._feed(self.loader.steps(steps.start, steps.stop)):
            to_model_input(batch.images, self._device)
        if self._on_cuda:
            torch.cuda.synchronize(self._device)


class Dali(Passes):
    """DALI's CPU pipeline, by its own readers: it knows no order but theirs."""

    def __init__(self, case: LoaderCase, device: Any, directory: str) -> None:
        super().__init__(case, device, directory)
        self.pipeline = dali.Pipeline(case, directory)

    def stages(self, steps: range) -> dict[str, Time]:
        return {"whole": timed(lambda: self.pipeline.batches(lambda images_BSSC, labels_B: None))}

    def facts(self) -> dict[str, Any]:
        return {"version": dali.version()}


IMPLEMENTATIONS: dict[str, type[Passes]] = {BARE: BareDecode, "megaclass": Megaclass, dali.NAME: Dali}


def prepare(case: LoaderCase, world: Any, name: str, options: dict[str, Any]) -> Passes:
    return IMPLEMENTATIONS[name](case, world.device, options["directory"])


def measures(name: str, case: LoaderCase, turns: Answers, limits: list[dict[str, float]]) -> dict[str, Any]:
    """The fields of a row that follow from the passes. ``work`` has the CPU time of an image, of the median pass, and
    what each stage adds to the one before it."""
    answers = [answer for (answer,) in turns]
    cpu_ms = [round(answer["cpu_ms"], 4) for answer in answers]
    cpu_us = 1000 * median(cpu_ms) / case.samples
    work = {"cpu_us": round(cpu_us, 3), "samples_per_cpu_second": round(1e6 / cpu_us, 3)}
    for before, stage in itertools.pairwise(["", *STAGES]):
        if stage in answers[0]["stages"]:
            added_ms = [answer["stages"][stage] - answer["stages"].get(before, 0.0) for answer in answers]
            work[f"cpu_us_{stage}"] = round(1000 * median(added_ms) / case.samples, 3)
    return rows.timed(samples_ms(turns), case.samples) | {"cpu_ms": cpu_ms, "work": work}


def implementations(case: LoaderCase, options: Any) -> list[Implementation]:
    """Bare decode; ours from every source; peers from all that they read. What delivers to host memory is to leave the
    GPU alone."""
    on_host = {"device": "cpu"} if case.device != "cpu" else {}
    found = [Implementation(name=BARE, changes={"source": "folder"} | on_host)]
    for source in options.source:
        lookup(dict.fromkeys(dali.SOURCES), source, "source")
        found.append(Implementation(changes={"source": source}))
    missing = dali.missing()
    for source in () if options.peer == "none" else dali.SOURCES[:1] if missing else dali.SOURCES:
        found.append(Implementation(name=dali.NAME, changes={"source": source} | on_host, missing=missing))
    return found


@contextmanager
def on_images(planned: Planned) -> Iterator[Planned]:
    """The case with the images that all its loaders read, on disk meanwhile. UserError: a set that cannot be
    measured."""
    from megaclass.bench.photographs import write_images

    case = planned.case
    with tempfile.TemporaryDirectory(prefix="megaclass-loader-") as directory:
        facts = write_images(
            Path(directory),
            case.work.look,
            case.distinct_images,
            data=case.data,
            seed=case.seed,
            threads=case.threads,
        )
        told = [
            replace(who, extra=facts, options={"directory": f"{directory}/{who.changes['source']}"})
            for who in planned.implementations
        ]
        yield replace(planned, implementations=tuple(told))


def flags(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("--source", type=names, default="records,folder", metavar="LIST", help="what our loader reads")
    peer = "another loader that takes turns with ours, where installed"
    add("--peer", default=dali.NAME, choices=(dali.NAME, "none"), help=peer)


METRICS = (
    SPEED,
    Metric("samples_per_cpu_second", "Images a CPU second", value_of("work", "samples_per_cpu_second"), "higher"),
    Metric("cpu_us", "CPU µs an image", value_of("work", "cpu_us"), "lower"),
    *(Metric(f"cpu_us_{stage}", f"{stage}, CPU µs", value_of("work", f"cpu_us_{stage}"), "lower") for stage in STAGES),
    MEMORY,
)

BENCHMARK = Benchmark(
    "loader",
    "Loader",
    "images to batches, by stage, beside bare decode and DALI",
    LoaderCase,
    METRICS,
    "samples_per_cpu_second",
    prepare=prepare,
    measures=measures,
    flags=flags,
    implementations=implementations,
    surroundings=on_images,
)
