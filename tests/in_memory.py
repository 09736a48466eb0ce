"""A data set in memory, and the orders in which tests load it."""

import cv2
import numpy as np
import simplejpeg

from megaclass.data.dataset import DamagedSampleError, Sample
from megaclass.data.sampler import EpochSampler, rank_part


class InMemory:
    """``count`` JPEG files of soft noise, of sides from ``low`` to ``high`` pixels; the classes come in turns.

    ``files`` may be changed: one that is None cannot be read.
    """

    num_classes = 10

    def __init__(self, count=50, low=24, high=24):
        self.files = [self._encoded(np.random.default_rng(i), low, high) for i in range(count)]

    @staticmethod
    def _encoded(random, low, high):
        height, width = random.integers(low, high, 2, endpoint=True)
        soft = cv2.GaussianBlur(random.normal(size=(height, width, 3)), (0, 0), 2)
        image = cv2.normalize(soft, None, 0, 255, cv2.NORM_MINMAX).round().astype(np.uint8)
        return simplejpeg.encode_jpeg(image, quality=92)

    def __len__(self):
        return len(self.files)

    def read(self, index):
        if self.files[index] is None:
            raise DamagedSampleError(f"{self.describe(index)}: cannot be read")
        return Sample(self.files[index], index % 10)

    def labels(self):
        return np.arange(len(self)) % 10

    def describe(self, index):
        return f"memory record {index}"


def in_order(batch):
    """Samples 0, 1, 2 ..., ``batch`` a step."""
    return lambda step: (np.arange(step * batch, (step + 1) * batch),) * 2


def shuffled(dataset, batch):
    """The order of a run."""
    sampler = EpochSampler(len(dataset), 0)
    return lambda step: (sampler.indices(rank_part(step, batch, 0, 1)), rank_part(step, batch, 0, 1))


def collected(loader, start=0, stop=4):
    """Images and labels of each step."""
    return [(b.images.numpy().copy(), b.labels.numpy().copy()) for b in loader.steps(start, stop)]
