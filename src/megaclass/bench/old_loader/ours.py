"""This project's loader as a contender, and what each stage of it costs.

Shapes: B = images of a batch, K = numbers a sample, S = image size, H, W = size of a decoded image, C = 3.
"""

import threading
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from megaclass.bench.old_loader.cases import LoaderCase
from megaclass.bench.old_loader.clock import Time, timed
from megaclass.bench.old_loader.contender import Order, Turn, in_threads, steps_of_turn
from megaclass.bench.old_loader.delivery import Clock, Delivery
from megaclass.bench.peers import dali
from megaclass.data.dali import DaliLoader
from megaclass.data.decode import Decoded, decode_part
from megaclass.data.loader import BatchSource, Loader
from megaclass.data.open import open_dataset
from megaclass.data.synthetic import SyntheticLoader
from megaclass.parallel.groups import World


class _Part(NamedTuple):
    """A batch of a pass over the first stages alone."""

    indices: list[int]
    plan_BK: np.ndarray


class Megaclass:
    """``Loader`` on records or a folder.

    A turn has a pass for each stage, over the same samples by as many threads, and each pass does what the one
    before it does and one thing more: read; decode; augment; assemble (the loader itself, which also draws order
    and plan of the samples and makes batches); copy (to the device, and normalise there). The pass that counts is
    the last that decodes for this device: assemble on a CPU, copy on CUDA.
    """

    def __init__(self, case: LoaderCase, world: World, options: dict[str, Any], clock: Clock = timed) -> None:
        self._case, self._delivery, self._clock = case, Delivery(world.device), clock
        self._dataset = open_dataset(options["directory"])
        self._transform = case.transform()
        self._order = Order(case, len(self._dataset))
        self._loader = Loader(
            self._dataset,
            self._transform,
            self._order.of_step,
            workers=case.threads,
            prefetch=case.prefetch,
            pin_memory=world.device.type == "cuda",
        )
        self._own = threading.local()  # a picture of each thread, in place of its place in a batch

    def turn(self, index: int) -> Turn:
        steps = steps_of_turn(self._case, index)
        parts = [self._part(step) for step in steps]
        works = {"read": self._read, "decode": self._decode, "augment": self._augment}
        stages = {
            name: self._clock(partial(in_threads, self._case, parts, work)) for name, work in works.items()
        }
        return _with_whole(stages, self._loader, steps, self._delivery, self._clock)

    def facts(self) -> dict[str, Any]:
        return {}

    def _part(self, step: int) -> _Part:
        indices_B, numbers_B = self._order.of_step(step)
        return _Part(indices_B.tolist(), self._transform.plan(numbers_B))

    def _read(self, part: _Part, position: int) -> tuple[bytes, str]:
        index = part.indices[position]
        return self._dataset.read(index).encoded, self._dataset.describe(index)

    def _decode(self, part: _Part, position: int) -> Decoded:
        need = partial(self._transform.need, plan_K=part.plan_BK[position])
        return decode_part(*self._read(part, position), self._picture(), need)

    def _augment(self, part: _Part, position: int) -> None:
        self._transform(self._decode(part, position), part.plan_BK[position], self._picture())

    def _picture(self) -> np.ndarray:
        if not hasattr(self._own, "picture_SSC"):
            size = self._case.image_size
            self._own.picture_SSC = np.empty((size, size, 3), np.uint8)
        picture_SSC: np.ndarray = self._own.picture_SSC
        return picture_SSC


class WithDali:
    """``DaliLoader``: our order, labels and plan, and DALI to decode, on the GPU where there is one.

    Each pass begins with one batch that does not count: DALI's pipeline is set up for it, as once in a run.
    """

    def __init__(self, case: LoaderCase, world: World, options: dict[str, Any], clock: Clock = timed) -> None:
        self._case, self._delivery, self._clock = case, Delivery(world.device), clock
        dataset = open_dataset(options["directory"])
        self._loader = DaliLoader(
            dataset,
            case.crop_transform(),
            Order(case, len(dataset)).of_step,
            device=world.device,
            workers=case.threads,
            prefetch=case.prefetch,
        )

    def turn(self, index: int) -> Turn:
        steps = steps_of_turn(self._case, index)
        batches = self._loader.steps(steps.start, steps.stop + 1)
        next(batches)
        return Turn(self._delivery.whole(batches, self._clock), {})

    def facts(self) -> dict[str, Any]:
        return {"version": dali.version()}


class Synthetic:
    """``SyntheticLoader``: what a batch costs that nobody reads or decodes."""

    def __init__(self, case: LoaderCase, world: World, options: dict[str, Any], clock: Clock = timed) -> None:
        self._case, self._delivery, self._clock = case, Delivery(world.device), clock
        self._loader = SyntheticLoader(
            1000, case.image_size, case.batch_size, seed=case.seed, device=world.device
        )

    def turn(self, index: int) -> Turn:
        steps = steps_of_turn(self._case, index)
        return _with_whole({}, self._loader, steps, self._delivery, self._clock)

    def facts(self) -> dict[str, Any]:
        return {}


def _with_whole(
    stages: dict[str, Time], loader: BatchSource, steps: range, delivery: Delivery, clock: Clock
) -> Turn:
    """Those stages, and the two that the batches take from there to the model."""
    assemble = clock(partial(delivery.to_host, loader.steps(steps.start, steps.stop)))
    copy = clock(partial(delivery.to_model, loader.steps(steps.start, steps.stop)))
    return Turn(copy if delivery.on_cuda else assemble, stages | {"assemble": assemble, "copy": copy})
