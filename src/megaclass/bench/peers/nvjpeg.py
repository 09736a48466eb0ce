"""What torchvision's users have on a GPU, as a contender: its nvJPEG decodes, PyTorch does the rest on the device.

Order, labels, boxes and flips are ours, so that the same work is done; the filter is that of our own loader too.

``torchvision.io.decode_jpeg`` writes on a stream of its own into memory that it takes from the caller's, without
waiting for what the caller has still to read there (pytorch/vision, pull request 9606; 0.26 has it). So each thread
that decodes has its own stream, and waits for it before it decodes again.

Shapes: B = images of a batch, H, W = size of an image, S = image size, C = 3 channels (RGB).
"""

import importlib.util
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from megaclass.bench.loader.cases import EVALUATION, LoaderCase
from megaclass.bench.loader.clock import timed
from megaclass.bench.loader.contender import Order, Turn, steps_of_turn
from megaclass.bench.loader.delivery import Clock, Delivery
from megaclass.data.decode import check_header
from megaclass.data.loader import Batch
from megaclass.data.open import open_dataset
from megaclass.parallel.groups import World

NAME = "nvjpeg"
SOURCES = ("records",)
ON_DEVICE = True

# torchvision decodes one batch at a time, whoever asks. Beside it another thread resizes and reads headers.
_DECODERS = 2

Decode = Callable[[list[Tensor], torch.device], list[Tensor]]
_bilinear = torch.ops.aten._upsample_bilinear2d_aa.out


def missing(case: LoaderCase) -> str:
    """Why it cannot be measured here, or an empty string."""
    if case.device != "cuda":
        return "nvJPEG decodes on CUDA devices only"
    if case.workload == EVALUATION:
        return "the geometry of training alone is written for it"
    if importlib.util.find_spec("torchvision") is None:
        return "torchvision is not installed: pip install torchvision"
    return ""


def decoded(encoded: list[Tensor], device: torch.device) -> list[Tensor]:
    """Whole images, uint8 CxHxW on the ``device``. RuntimeError: an image is damaged, or torchvision has no nvJPEG."""
    from torchvision.io import ImageReadMode, decode_jpeg

    images: list[Tensor] = decode_jpeg(encoded, mode=ImageReadMode.RGB, device=device)
    return images


class _Files(NamedTuple):
    """A batch before it is decoded."""

    encoded: list[Tensor]
    boxes: list[tuple[int, int, int, int]]  # left, top, width, height
    flip_B: Tensor
    labels_B: Tensor


class NvJpeg:
    """uint8 batches on the device, delivered as ours are. ``decode`` is torchvision's where no other is given."""

    def __init__(
        self,
        case: LoaderCase,
        world: World,
        options: dict[str, Any],
        clock: Clock = timed,
        decode: Decode = decoded,
    ) -> None:
        self._case, self._device, self._clock, self._decode = case, world.device, clock, decode
        self._dataset = open_dataset(options["directory"])
        self._order = Order(case, len(self._dataset))
        self._transform = case.crop_transform()
        self._delivery = Delivery(world.device)
        on_cuda = world.device.type == "cuda"
        self._streams = [torch.cuda.Stream(world.device) if on_cuda else None for _ in range(_DECODERS)]

    def turn(self, index: int) -> Turn:
        return Turn(self._delivery.whole(self.batches(steps_of_turn(self._case, index)), self._clock), {})

    def facts(self) -> dict[str, Any]:
        import torchvision

        return {"version": torchvision.__version__}

    def batches(self, steps: range) -> Iterator[Batch]:
        """Of these steps, uint8 BxSxSxC: read by the threads of the case, decoded ``prefetch`` batches ahead."""
        with ExitStack() as stack:
            readers = stack.enter_context(ThreadPoolExecutor(self._case.threads))
            decoders = [stack.enter_context(ThreadPoolExecutor(1)) for _ in self._streams]

            def begin(step: int) -> Future[Batch]:
                files = readers.submit(self._read, step)
                at = step % _DECODERS
                return decoders[at].submit(self._make, files, self._streams[at])

            pending: deque[Future[Batch]] = deque()
            for step in steps:
                pending.append(begin(step))
                if len(pending) > self._case.prefetch:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()

    def _read(self, step: int) -> _Files:
        indices_B, numbers_B = self._order.of_step(step)
        plan_BK = self._transform.plan(numbers_B)
        encoded, boxes, labels = [], [], []
        for index, plan_K in zip(indices_B.tolist(), plan_BK, strict=True):
            sample = self._dataset.read(index)
            boxes.append(self._transform.box(*check_header(sample.encoded, str(index)), plan_K))
            encoded.append(torch.from_numpy(np.frombuffer(sample.encoded, np.uint8).copy()))
            labels.append(sample.label)
        flip_B = torch.from_numpy(self._transform.flips(plan_BK))
        return _Files(encoded, boxes, flip_B, torch.tensor(labels))

    def _make(self, files: "Future[_Files]", stream: torch.cuda.Stream | None) -> Batch:
        with torch.cuda.stream(stream):  # None: no stream is changed
            found = files.result()
            images = self._fitted(self._decode(found.encoded, self._device), found)
            if stream is not None:
                stream.synchronize()  # see above: only now may the decoded images go
            return Batch(images, found.labels_B, 0.0)

    def _fitted(self, images: list[Tensor], files: _Files) -> Tensor:
        """Cut, resized where the box has another size, mirrored: uint8 BxSxSxC."""
        size = self._case.image_size
        flip_B = files.flip_B.to(self._device, non_blocking=True)
        cuts = [
            image[:, top : top + height, left : left + width]
            for image, (left, top, width, height) in zip(images, files.boxes, strict=True)
        ]
        if all(cut.shape[1:] == (size, size) for cut in cuts):
            images_BCSS = torch.stack(cuts)
        else:
            # On a GPU PyTorch has the filter for floating point only.
            resized_BCSS = torch.empty(len(cuts), 3, size, size, device=self._device)
            for cut, out in zip(cuts, resized_BCSS, strict=True):
                _bilinear(cut[None].float(), (size, size), False, None, None, out=out[None])
            images_BCSS = resized_BCSS.round_().clamp_(0, 255).to(torch.uint8)
        images_BCSS = torch.where(flip_B[:, None, None, None], images_BCSS.flip(3), images_BCSS)
        return images_BCSS.permute(0, 2, 3, 1).contiguous()
