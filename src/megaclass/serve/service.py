"""A model at work for many requests at once. Shapes: H, W = size that the model takes, N = images, D = columns."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from megaclass.data.decode import Decoded
from megaclass.data.faces import face_seen, upright
from megaclass.data.threads import one_silent_thread
from megaclass.evaluation.embed import features
from megaclass.gallery.gallery import Gallery
from megaclass.inference.model import Model
from megaclass.results.machine import usable_cores
from megaclass.serve.metrics import BATCHES
from megaclass.serve.uploads import Limits


@dataclass
class Service:
    """``await service(images)`` gives features of encoded images, inside the block of :meth:`running`.

    Images are prepared by a thread a core, and wait for the one thread of the model, which takes up to ``batch`` at
    once, of any requests in the order of their arrival. A batch that is not full begins when its first image has
    waited ``wait_s`` seconds. threshold: cosine at or above which two images show one identity. keys: their digests.
    """

    model: Model
    limits: Limits = Limits()
    threshold: float | None = None
    keys: Sequence[bytes] = ()
    gallery: Gallery | None = None
    batch: int = 32
    wait_s: float = 0.005

    def __post_init__(self) -> None:
        self._transform = self.model.preprocessing.transform()
        self._shape = (self.model.preprocessing.height, self.model.preprocessing.width, 3)
        self._queue: asyncio.Queue[tuple[np.ndarray, float, asyncio.Future[Tensor]]] = asyncio.Queue()
        self._decoders = ThreadPoolExecutor(usable_cores(), "decoder")
        self._thread = ThreadPoolExecutor(1, "model")
        self.slots = asyncio.Semaphore(self.limits.requests)
        self.model.backbone.eval()
        blank = np.zeros(self._shape, np.uint8)
        self._features([blank] * self.batch)  # so that the first client need not wait for what is made once

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        with one_silent_thread(), self._decoders, self._thread:
            self.working = asyncio.create_task(self._work())
            yield
            self.working.cancel()

    async def __call__(self, images: Sequence[bytes]) -> Tensor:
        """fp32 (N, D), not normalised. Raises DamagedSampleError, which names "image 2"."""
        loop = asyncio.get_running_loop()
        works = [partial(self._prepared, image, f"image {n}") for n, image in enumerate(images, start=1)]
        ready = await asyncio.gather(*(loop.run_in_executor(self._decoders, work) for work in works))
        rows: list[asyncio.Future[Tensor]] = [loop.create_future() for _ in ready]
        for image_HWC, row in zip(ready, rows, strict=True):
            self._queue.put_nowait((image_HWC, loop.time(), row))
        return torch.stack(await asyncio.gather(*rows))

    async def _work(self) -> None:
        """Batch after batch. An error of the model is raised for each image of its batch."""
        while True:
            batch = [await self._queue.get()]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(batch[0][1] + self.wait_s):
                    while len(batch) < self.batch:
                        batch.append(await self._queue.get())
            work = partial(self._features, [image_HWC for image_HWC, *_ in batch])
            working = asyncio.get_running_loop().run_in_executor(self._thread, work)
            await asyncio.wait([working])
            for number, (*_, row) in enumerate(batch):
                if row.done():  # whoever asked has gone
                    continue
                if error := working.exception():
                    row.set_exception(error)
                else:
                    row.set_result(working.result()[number])

    def _prepared(self, encoded: bytes, where: str) -> np.ndarray:
        """uint8 (H, W, 3): the image upright or, of a model that looks at faces alone, its face."""
        self.limits.check(encoded, where)
        image_HWC, out_HWC = upright(encoded, where), np.empty(self._shape, np.uint8)
        if self.model.detector:
            advice = "; take another photograph"
            image_HWC = face_seen(image_HWC, self.model.detector, *self._shape[:2], where, advice)
        self._transform(Decoded.whole(image_HWC), np.empty(0), out_HWC)
        return out_HWC

    def _features(self, images: list[np.ndarray]) -> Tensor:
        BATCHES.observe(len(images))
        reader, flip = self.model.reader, self.model.about.flip
        with torch.inference_mode():
            inputs_BCHW = reader.to_input(torch.from_numpy(np.stack(images)))
            found_BD = features(partial(reader.features, self.model.backbone), inputs_BCHW, flip)
        return found_BD.cpu().clone()  # an ordinary tensor
