"""Bare decode: simplejpeg on files that lie in memory, into a picture that each thread has ready. No loader that
decodes whole images with it can be faster."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg

from megaclass.bench.old_loader.cases import LoaderCase
from megaclass.bench.old_loader.contender import Order, Turn, steps_of_turn, whole_pass
from megaclass.data.folder import FolderDataset
from megaclass.parallel.groups import World


class BareDecode:
    """The whole image of every sample, by the threads of the case, each with a part of the samples."""

    def __init__(self, case: LoaderCase, world: World, options: dict[str, Any]) -> None:
        dataset = FolderDataset(Path(options["directory"]))
        self._case = case
        self._files = [dataset.read(index).encoded for index in range(len(dataset))]
        headers = [simplejpeg.decode_jpeg_header(encoded) for encoded in self._files]
        self._sizes = [3 * height * width for height, width, _, _ in headers]
        self._order = Order(case, len(dataset))

    def turn(self, index: int) -> Turn:
        # The order is drawn beforehand: here nothing but decoding counts.
        steps = steps_of_turn(self._case, index)
        samples = np.concatenate([self._order.of_step(step)[0] for step in steps]).tolist()
        return whole_pass(partial(self._decode_all, samples))

    def facts(self) -> dict[str, Any]:
        return {}

    def _decode_all(self, samples: list[int]) -> None:
        threads = self._case.threads
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(self._decode, (samples[thread::threads] for thread in range(threads))))

    def _decode(self, samples: list[int]) -> None:
        pixels = np.empty(max(self._sizes), np.uint8)
        for sample in samples:
            simplejpeg.decode_jpeg(self._files[sample], buffer=pixels[: self._sizes[sample]])
