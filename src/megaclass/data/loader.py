"""Batches of decoded images, made by threads ahead of the step that uses them.

Reading, decoding and warping release the GIL, so threads of one process suffice: no copies between processes,
no start-up time. Images stay uint8 until they are on the device.

Shapes: B = images of this rank in a step, S = image size, C = 3 channels (RGB).
"""

import itertools
import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Literal, NamedTuple, Protocol

import cv2
import numpy as np
import torch
from torch import Tensor

from megaclass.data.augment import Transform
from megaclass.data.dataset import DamagedSampleError, Dataset
from megaclass.data.decode import Decoded, Memory, decode, decode_part
from megaclass.errors import UserError, first_line

logger = logging.getLogger(__name__)

# Mean and standard deviation of a channel, of values in 0..1: of face networks both, of ImageNet.
SYMMETRIC = (0.5, 0.5, 0.5)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# With on_error="skip": so many damaged samples on end are no accident, and a search for a sound one has to end.
MAX_DAMAGED_IN_A_ROW = 100
PREFETCHED = 2  # batches that are made ahead
# Idle arrays that are kept: more were needed once, and may never be again.
_SPARE = 3
# Images that a thread takes at a time: few, so that the threads finish a batch together.
_TAKEN_IMAGES = 4


# A step that is being made: images, labels, and what the threads do.
_Pending = tuple[Tensor, Tensor, "list[Future[_Done]]"]


class Batch(NamedTuple):
    """One step's images (uint8, B x height x width x 3) and labels (int64, B), and how long one waited for them.

    ``read_ms`` and ``decode_ms``: the time of threads that went into reading files, and into the rest.
    """

    images: Tensor
    labels: Tensor
    wait_ms: float
    read_ms: float = 0.0
    decode_ms: float = 0.0


class BatchSource(Protocol):
    """What makes the batches of a run. ``damaged``: the samples (numbers in the dataset) that it left out so far."""

    @property
    def damaged(self) -> frozenset[int]: ...

    def steps(self, start: int, stop: int) -> Iterator[Batch]: ...


class Loader:
    """Turns a dataset into batches.

    ``indices_of_step(step)`` gives the dataset indices of a step and the global sample numbers that its
    random changes depend on, both int64 of shape (B,). ``workers`` threads work on ``prefetch`` steps at once;
    the bytes do not depend on either. ``on_error="skip"`` puts the next sound sample of the dataset in the
    place of a damaged one, so the bytes do not depend on the number of ranks either; ``damaged`` names the
    damaged ones that this rank met, and each is named in the log once. ``pin_memory`` allows copies to a GPU
    that overlap with its work. ``transform_of_step`` gives, in place of ``transform``, that of each step: images
    may grow in the course of a run.

    The first batch sets OpenCV's own threads to one in this process: the loader's threads use the cores better.
    """

    def __init__(
        self,
        dataset: Dataset,
        transform: Transform,
        indices_of_step: Callable[[int], tuple[np.ndarray, np.ndarray]],
        *,
        workers: int = 1,
        prefetch: int = PREFETCHED,
        on_error: Literal["fail", "skip"] = "fail",
        pin_memory: bool = False,
        transform_of_step: Callable[[int], Transform] | None = None,
    ) -> None:
        self._dataset = dataset
        self._transform_of_step = transform_of_step or (lambda step: transform)
        self._indices_of_step = indices_of_step
        self._workers = workers
        self._prefetch = prefetch
        self._on_error = on_error
        self._pin_memory = pin_memory
        self._buffers = Buffers(pin_memory)
        self._orient = getattr(dataset, "orient", None)
        self._damaged: set[int] = set()

    @property
    def damaged(self) -> frozenset[int]:
        """The damaged samples that were met so far (with ``on_error="skip"``), by their numbers in the dataset."""
        return frozenset(self._damaged)

    def steps(self, start: int, stop: int) -> Iterator[Batch]:
        """The batches of the steps ``start`` to ``stop - 1``, in order.

        An error of a worker is raised here, at its step. Closing the iterator, or dropping it, ends the
        threads.
        """
        pool = ThreadPoolExecutor(self._workers, "loader", initializer=cv2.setNumThreads, initargs=(1,))
        try:
            ahead = range(start, min(start + self._prefetch, stop))
            pending = deque(self._submit(pool, step) for step in ahead)
            for step in range(start, stop):
                began = time.perf_counter()
                batch = self._finish(*pending.popleft())
                # Begun before this batch is handed out, so that no thread idles meanwhile.
                if step + self._prefetch < stop:
                    pending.append(self._submit(pool, step + self._prefetch))
                yield batch._replace(wait_ms=1e3 * (time.perf_counter() - began))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _submit(self, pool: ThreadPoolExecutor, step: int) -> _Pending:
        indices_B, numbers_B = self._indices_of_step(step)
        transform = self._transform_of_step(step)
        images = self._buffers.take((len(indices_B), *transform.shape, 3))
        labels = torch.empty(len(indices_B), dtype=torch.int64, pin_memory=self._pin_memory)
        plan_BK, begins = transform.plan(numbers_B), itertools.count(0, _TAKEN_IMAGES)
        work = _Work(transform, indices_B.tolist(), plan_BK, images.numpy(), labels.numpy(), begins)
        return images, labels, [pool.submit(self._fill, work) for _ in range(self._workers)]

    def _fill(self, work: "_Work") -> "_Done":
        """Make images of a step, until other threads have made the rest."""
        done = _Done(Memory(*work.images_BSSC.shape[1:3]))
        began = time.perf_counter()
        for begin in work.begins:
            if begin >= len(work.indices):
                break
            for position in range(begin, min(begin + _TAKEN_IMAGES, len(work.indices))):
                work.labels_B[position] = self._make_sound(work, position, done)
        done.decode_s = time.perf_counter() - began - done.read_s
        return done

    def _make_sound(self, work: "_Work", position: int, done: "_Done") -> int:
        """Make the image at ``position``, with ``skip`` of the first sound sample from its own on; its label."""
        index = work.indices[position]
        for count in itertools.count(1):
            try:
                return self._make(index, work, position, done)
            except DamagedSampleError as error:
                if self._on_error == "fail":
                    raise
                done.damages.append((index, str(error)))
            if count == min(MAX_DAMAGED_IN_A_ROW, len(self._dataset)):
                break
            index = (index + 1) % len(self._dataset)
        raise UserError(f"{count} damaged samples in a row, too many to skip; the first: {done.damages[-count][1]}")

    def _make(self, index: int, work: "_Work", position: int, done: "_Done") -> int:
        """Write the image of sample ``index`` to its ``position`` and return its label."""
        began = time.perf_counter()
        sample = self._dataset.read(index)
        done.read_s += time.perf_counter() - began
        transform, plan_K, out_SSC = work.transform, work.plan_BK[position], work.images_BSSC[position]
        encoded, where = sample.encoded, self._dataset.describe
        if self._orient is None:
            decoded = done.memory.fitted(encoded) or decode_part(
                encoded, where(index), done.memory, partial(transform.need, plan_K=plan_K)
            )
        else:
            decoded = Decoded.whole(self._orient(index, decode(encoded, where(index))))
        try:
            transform(decoded, plan_K, out_SSC)
        except (cv2.error, MemoryError, RuntimeError) as error:
            height, width = decoded.image_HWC.shape[:2]
            raise DamagedSampleError(
                f"{where(index)}: an image of {width} x {height} pixels cannot be brought to {out_SSC.shape[1]} x "
                f"{out_SSC.shape[0]} ({first_line(error)}); replace or remove it"
            ) from None
        return sample.label

    def _finish(self, images: Tensor, labels: Tensor, tasks: "list[Future[_Done]]") -> Batch:
        made = [task.result() for task in tasks]
        for sample, message in itertools.chain.from_iterable(done.damages for done in made):
            if sample not in self._damaged:
                self._damaged.add(sample)
                logger.warning("%s; skipped, the next sound sample stands in for it", message)
        read_s, decode_s = sum(done.read_s for done in made), sum(done.decode_s for done in made)
        return Batch(images, labels, 0.0, 1e3 * read_s, 1e3 * decode_s)


@dataclass
class _Work:
    """What the threads of one step share."""

    transform: Transform
    indices: list[int]
    plan_BK: np.ndarray
    images_BSSC: np.ndarray
    labels_B: np.ndarray
    begins: Iterator[int]  # where to make the next images: each number goes to one thread


@dataclass
class _Done:
    """What one thread did for a step: the damage that it met, and its time.

    It decodes into ``memory``, which stays in its caches, and only what is done goes into the batch.
    """

    memory: Memory
    damages: list[tuple[int, str]] = field(default_factory=list)  # the number of a sample, what is wrong with it
    read_s: float = 0.0
    decode_s: float = 0.0


class Buffers:
    """Memory for batches, used again: a fresh page costs as much time as a tenth of the image decoded into it.

    Gives uint8 tensors of one shape. What the receiver, or a view of it, still holds is never given again.

    ``pin``: page-locked, for copies to a GPU that overlap with its work; PyTorch reuses those itself, and not
    before a copy from them is done.
    """

    def __init__(self, pin: bool = False) -> None:
        self._pin = pin
        self._arrays: list[np.ndarray] = []
        (self._idle,) = (sys.getrefcount(array) for array in [np.empty(1, np.uint8)])

    def take(self, shape: tuple[int, ...]) -> Tensor:
        """A tensor that nobody else holds; what is in it is left over."""
        if self._pin:
            return torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        if self._arrays and self._arrays[0].shape != shape:
            self._arrays.clear()
        # A tensor's storage refers to its array as long as any view of it lives.
        counts = [sys.getrefcount(array) for array in self._arrays]
        idle = [place for place, count in enumerate(counts) if count == self._idle]
        for place in reversed(idle[_SPARE:]):
            del self._arrays[place]
        if not idle:
            self._arrays.append(np.empty(shape, np.uint8))
        return torch.from_numpy(self._arrays[idle[0] if idle else -1])


def eval_batches(
    dataset: Dataset,
    transform: Transform,
    batch_size: int,
    start: int = 0,
    stop: int | None = None,
    *,
    workers: int = 1,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """The samples ``start`` to ``stop - 1`` in order, the last batch smaller. Damage is an error here:
    a skipped image would change what is reported."""
    stop = len(dataset) if stop is None else stop

    def indices_of_step(step: int) -> tuple[np.ndarray, np.ndarray]:
        begin = start + step * batch_size
        indices_B = np.arange(begin, min(begin + batch_size, stop))
        return indices_B, indices_B

    loader = Loader(dataset, transform, indices_of_step, workers=workers, pin_memory=pin_memory)
    return loader.steps(0, -(-(stop - start) // batch_size))


def to_model_input(
    images: Tensor,
    device: torch.device | str,
    channels_last: bool = True,
    mean: Sequence[float] = SYMMETRIC,
    std: Sequence[float] = SYMMETRIC,
) -> Tensor:
    """uint8 (B, height, width, C) on any device to normalised fp32 (B, C, height, width) on ``device``.

    The values are (x / 255 - mean) / std a channel. From pinned memory the copy does not block.
    """
    # Seen as NCHW, these bytes already lie in channels_last order.
    images = images.to(device, non_blocking=True).permute(0, 3, 1, 2).to(torch.float32)
    # One number for all channels takes a pass of vectors, three a loop over pixels.
    if mean == std == SYMMETRIC:
        images.sub_(127.5).div_(127.5)
    else:
        images.sub_(_per_channel(tuple(mean), images.device)).div_(_per_channel(tuple(std), images.device))
    return images if channels_last else images.contiguous()


@lru_cache(maxsize=16)
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    # Kept, since a fresh copy from pageable memory would make every step wait for the device.
    return torch.tensor([255 * value for value in values], device=device).view(1, -1, 1, 1)
