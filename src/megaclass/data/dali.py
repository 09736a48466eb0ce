"""Batches decoded by NVIDIA's DALI, with the order, the labels and the geometry of our own loader.

DALI's readers would bring an order of their own, which no other number of ranks and no resumed run repeats. So
the sampler and the data set stay ours: DALI gets encoded bytes, and the box and the flip that the transform has
planned for each. It decodes, cuts, resizes and flips, on the GPU where there is one.

DALI fails a whole batch for one image, and does not say whose. A step that it cannot do, because of a damaged
image or one in a format that it lacks, is made by our own loader: same labels, the same treatment of damage.
What DALI decodes although our decoder would refuse it (bits flipped in the middle of a JPEG) is not noticed here.

DALI is an optional dependency (``megaclass[dali]``), imported by what uses it.

Shapes: B = images of this rank in a step, S = image size, C = 3 channels (RGB).
"""

import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from megaclass.data.augment import TrainTransform
from megaclass.data.dataset import Dataset
from megaclass.data.decode import check_header
from megaclass.data.loader import Batch, Loader
from megaclass.errors import UserError, extra, first_line

logger = logging.getLogger(__name__)

_PREFETCH = 2  # steps that DALI works on at once
_GIF = b"GIF8"  # the one format of ours that DALI lacks


class DaliLoader:
    """Turns a dataset into batches as :class:`~megaclass.data.loader.Loader` does, and takes what that takes.

    Of the ``transform``, crop and flip are done, nothing else. Pixels differ from that loader's by rounding, by a few
    steps of 255 where that one decodes at a reduced size, and on a GPU by its decoder. On CUDA the images of a batch
    lie on the ``device`` already. ``workers`` threads read, and as many of DALI's decode. A batch's ``decode_ms`` is
    how long the loop waited for DALI.

    Raises UserError if DALI is not installed.
    """

    def __init__(
        self,
        dataset: Dataset,
        transform: TrainTransform,
        indices_of_step: Callable[[int], tuple[np.ndarray, np.ndarray]],
        *,
        device: torch.device,
        workers: int = 1,
        on_error: Literal["fail", "skip"] = "fail",
    ) -> None:
        try:
            extra("nvidia.dali.pipeline", "dali")
        except UserError as error:
            raise UserError(f"data.loader: 'dali': {error}; or set data.loader to 'threads'") from None
        pin_memory = device.type == "cuda"
        self._ours = Loader(
            dataset, transform, indices_of_step, workers=workers, on_error=on_error, pin_memory=pin_memory
        )
        self._dataset = dataset
        self._transform = transform
        self._indices_of_step = indices_of_step
        self._device = device
        self._workers = workers
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None

    @property
    def damaged(self) -> frozenset[int]:
        """The damaged samples that were met so far (with ``on_error="skip"``), by their numbers in the dataset."""
        return self._ours.damaged

    def steps(self, start: int, stop: int) -> Iterator[Batch]:
        """The batches of the steps ``start`` to ``stop - 1``, in order. Errors are raised at their step."""
        pool = ThreadPoolExecutor(self._workers, "dali-reader")
        begun: dict[int, Future[Inputs | None]] = {}

        def inputs(step: int) -> Inputs | None:
            # Read ahead: DALI takes them some steps before the loop does.
            for later in range(step, min(step + 2 * _PREFETCH, stop)):
                if later not in begun:
                    begun[later] = pool.submit(self.gathered, later)
            return begun[step].result()

        try:
            pipeline = None
            for step in range(start, stop):
                began = time.perf_counter()
                images, given = None, inputs(step)
                decodes = time.perf_counter()
                if given is not None:
                    if pipeline is None:
                        able = (found[:4] for later in range(step, stop) if (found := inputs(later)))
                        pipeline = self._pipeline(able, len(given.labels_B))
                    try:
                        images = self._images(pipeline)
                    except RuntimeError as error:
                        # A pipeline that failed is no longer valid, so the next step gets another.
                        pipeline = None
                        _tell(step, error)
                del begun[step]
                if given is None or images is None:
                    (batch,) = self._ours.steps(step, step + 1)
                else:
                    decode_ms = 1e3 * (time.perf_counter() - decodes)
                    labels = torch.from_numpy(given.labels_B)
                    batch = Batch(images, labels, 0.0, read_ms=given.read_ms, decode_ms=decode_ms)
                yield batch._replace(wait_ms=1e3 * (time.perf_counter() - began))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def gathered(self, step: int) -> "Inputs | None":
        """What DALI needs for this step; None if our own loader has to make it, or to say what is wrong."""
        began = time.perf_counter()
        indices_B, numbers_B = self._indices_of_step(step)
        plan_BK = self._transform.plan(numbers_B)
        encoded, labels, boxes = [], [], []
        try:
            for index, plan_K in zip(indices_B.tolist(), plan_BK, strict=True):
                sample = self._dataset.read(index)
                height, width = check_header(sample.encoded, "")
                if sample.encoded.startswith(_GIF):
                    return None
                encoded.append(np.frombuffer(sample.encoded, np.uint8))
                labels.append(sample.label)
                boxes.append(self._transform.box(height, width, plan_K))
        except UserError:
            return None
        left, top, width_B, height_B = np.array(boxes, np.int32).reshape(-1, 4).T
        return Inputs(
            encoded,
            np.stack([top, left], 1),
            np.stack([height_B, width_B], 1),
            plan_BK[:, 0].astype(np.int32),
            np.array(labels, np.int64),
            1e3 * (time.perf_counter() - began),
        )

    def _pipeline(self, inputs: Iterator[tuple[Any, ...]], batch_size: int) -> Any:
        """DALI's pipeline for these steps. UserError if it cannot be set up."""
        size, on_gpu = self._transform.shape[0], self._device.type == "cuda"
        fn, types = extra("nvidia.dali.fn", "dali"), extra("nvidia.dali.types", "dali")
        try:
            pipeline = extra("nvidia.dali.pipeline", "dali").Pipeline(
                batch_size=batch_size,
                num_threads=self._workers,
                device_id=(self._device.index or 0) if on_gpu else None,
                prefetch_queue_depth=_PREFETCH,
            )
            with pipeline:
                encoded, anchor, shape, flip = fn.external_source(
                    source=inputs,
                    num_outputs=4,
                    dtype=[types.UINT8, types.INT32, types.INT32, types.INT32],
                    ndim=[1, 1, 1, 0],
                )
                images = fn.decoders.image_slice(
                    encoded,
                    anchor,
                    shape,
                    device="mixed" if on_gpu else "cpu",
                    axis_names="HW",
                    output_type=types.RGB,
                    adjust_orientation=False,  # as our decoder has it
                    jpeg_fancy_upsampling=True,  # the same
                )
                images = fn.resize(
                    images, resize_x=size, resize_y=size, interp_type=types.INTERP_LINEAR, antialias=True
                )
                pipeline.set_outputs(fn.flip(images, horizontal=flip))
            pipeline.build()
        except RuntimeError as error:
            raise UserError(
                f"data.loader: DALI cannot be set up on {self._device} ({first_line(error)}); "
                "set data.loader to 'threads'"
            ) from None
        return pipeline

    def _images(self, pipeline: Any) -> Tensor:
        """The next batch, uint8 BxSxSxC, in memory of its own: DALI uses its own again."""
        (output,) = pipeline.run()
        if self._device.type != "cuda":
            return torch.from_numpy(np.array(output.as_tensor()))
        # DALI copies on a stream of its own and waits for it, but not for ours. Memory of a stream on which nothing
        # is computed has no work left on it: the feed says which step uses it.
        with torch.cuda.stream(self._copies):
            images = torch.empty(output.as_tensor().shape(), dtype=torch.uint8, device=self._device)
        extra("nvidia.dali.plugin.pytorch", "dali").feed_ndarray(output.as_tensor(), images)
        return images


class Inputs(NamedTuple):
    """One step, as DALI gets it."""

    encoded: list[np.ndarray]  # B files as uint8
    anchor_B2: np.ndarray  # upper and left edge of the box, pixels, int32
    shape_B2: np.ndarray  # its height and width
    flip_B: np.ndarray  # 1: mirror, int32
    labels_B: np.ndarray  # int64; these and what follows stay here
    read_ms: float  # how long reading took


def _tell(step: int, error: Exception) -> None:
    # Between the place in this file and a remark about the pipeline.
    told = str(error).partition("encountered:")[2].partition("Current pipeline")[0]
    reason = " ".join(told.split()).rstrip(" :") or first_line(error)
    logger.warning("DALI cannot decode step %d (%s); our own loader makes it", step, reason)
