"""Mixup: images and their targets as weighted means of two (Zhang et al., ICLR 2018, section 2).

Shapes: b = images of a micro-batch of this rank, C = classes. A trailing ... is any further shape.
"""

import numpy as np
import torch
from torch import Tensor

from megaclass.errors import UserError
from megaclass.parallel.seeding import derive_key

_LEAST = 1e-3  # of a smaller alpha nearly every share is 0 or 1, and at last none is a number


class Mixup:
    """Mixes a batch on its device, after normalisation.

    One share ~ Beta(alpha, alpha) for the whole global batch, a function of (seed, step) alone, as NVIDIA's
    ResNet recipes have it. Partners are neighbours in the global batch: images 0 and 1, 2 and 3, and so on,
    each of the two as the main one once. The stream is shuffled already, and neighbours stay together however
    the batch is split: as long as every micro-batch of every rank is even, the same images are mixed at any
    number of ranks and micro-batches. ``alpha`` 0 mixes nothing.
    """

    def __init__(self, alpha: float, num_classes: int, seed: int) -> None:
        if alpha and not _LEAST <= alpha < float("inf"):
            raise UserError(f"mixup: {alpha} is out of range; it must be 0, or {_LEAST} or more")
        self._alpha = alpha
        self._num_classes = num_classes
        self._seed = seed

    def share(self, step: int) -> float:
        """What an image keeps of itself in this step; the rest is its partner's."""
        key = derive_key("mixup", self._seed, step)
        # NumPy has promised that this old generator's numbers never change: a run may resume on a newer version.
        random = np.random.RandomState([key & 0xFFFFFFFF, key >> 32])
        return float(random.beta(self._alpha, self._alpha))

    def __call__(self, images: Tensor, labels_b: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Normalised images (b, ...) and int64 labels to mixed images and probabilities (b, C), fp32.

        Without mixing both come back as they are. b is even.
        """
        if not self._alpha:
            return images, labels_b
        share = self.share(step)
        targets_bC = torch.zeros(len(labels_b), self._num_classes, device=labels_b.device)
        targets_bC.scatter_(1, labels_b[:, None], 1.0)
        return _mixed(images, share), _mixed(targets_bC, share)


def _mixed(values: Tensor, share: float) -> Tensor:
    """Rows 2i and 2i + 1 (of any shape) mixed; the memory format stays."""
    partners = values.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
    return torch.lerp(partners, values, share)
