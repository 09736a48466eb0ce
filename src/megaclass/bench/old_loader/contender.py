"""What a measurement asks of a loader, and the order of samples that those take which can be told one."""

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np

from megaclass.bench.old_loader.cases import EVALUATION, LoaderCase
from megaclass.bench.old_loader.clock import Time, timed
from megaclass.data.sampler import EpochSampler, rank_slice

_TAKEN_IMAGES = 4


class Turn(NamedTuple):
    """whole: the pass that counts. stages: passes that go a stage further each, ``whole`` among them."""

    whole: Time
    stages: dict[str, Time]


class Contender(Protocol):
    """A loader, in a process that measures nothing else."""

    def turn(self, index: int) -> Turn:
        """Make the ``case.batches`` batches of a pass, from an idle machine to an idle machine."""
        ...

    def facts(self) -> dict[str, Any]:
        """Parameters of the case as this loader really ran it."""
        ...


def whole_pass(work: Callable[[], object]) -> Turn:
    """The turn of a loader that is measured as a whole."""
    return Turn(timed(work), {})


def steps_of_turn(case: LoaderCase, index: int) -> range:
    """Each pass goes on where the last one ended."""
    return range(index * case.batches, (index + 1) * case.batches)


class Order:
    """Which sample comes when, shuffled as in training; in stored order for an evaluation."""

    def __init__(self, case: LoaderCase, num_samples: int) -> None:
        self._batch_size = case.batch_size
        self._sampler = EpochSampler(num_samples, case.seed, shuffle=case.workload != EVALUATION)

    def of_step(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Indices and global numbers of the samples of a step, int64 (B,) each, as ``Loader`` wants them."""
        start, count = rank_slice(step, self._batch_size, 0, 1)
        return self._sampler.indices(start, count), np.arange(start, start + count)


def in_threads(case: LoaderCase, batches: Sequence[Any], work: Callable[[Any, int], object]) -> None:
    """``work(batch, position)`` for every position of every batch, by the threads of the case, which take a few
    images at a time as those of the loader do."""
    begins = itertools.count(0, _TAKEN_IMAGES)  # each number goes to one thread

    def take() -> None:
        for begin in begins:
            if begin >= case.images:
                return
            for image in range(begin, min(begin + _TAKEN_IMAGES, case.images)):
                batch, position = divmod(image, case.batch_size)
                work(batches[batch], position)

    with ThreadPoolExecutor(case.threads, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        for done in [pool.submit(take) for _ in range(case.threads)]:
            done.result()
