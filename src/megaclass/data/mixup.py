"""Images and their targets made of two: mixup (Zhang et al., ICLR 2018, section 2) and CutMix (Yun et al., ICCV 2019,
section 3.1).

Shapes: b = images of a micro-batch of this rank, C = classes. A trailing ... is any further shape.
"""

import math

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
    number of ranks and micro-batches.

    ``cutmix`` is the alpha of CutMix, which pastes one box of the partner in place of its mean with it; the share is
    then what the box, cut off at the border, leaves. With both, half of the steps do one and half the other, as timm
    and torchvision have it. An alpha of 0: not at all.
    """

    def __init__(self, alpha: float, num_classes: int, seed: int, cutmix: float = 0.0) -> None:
        for name, value in (("mixup", alpha), ("cutmix", cutmix)):
            if value and not _LEAST <= value < float("inf"):
                raise UserError(f"augment.{name}: {value} is out of range; it must be 0, or {_LEAST} or more")
        self._alpha = alpha
        self._cutmix = cutmix
        self._num_classes = num_classes
        self._seed = seed

    def share(self, step: int) -> float:
        """What an image keeps of itself in this step under mixup; the rest is its partner's."""
        return float(self._random("mixup", step).beta(self._alpha, self._alpha))

    def box(self, step: int, height: int, width: int) -> tuple[int, int, int, int] | None:
        """(top, bottom, left, right) of what an image gets from its partner in this step; None: it is one of mixup.

        The middle is drawn evenly over the picture, and the sides are sqrt(1 - share) of the picture's.
        """
        random = self._random("cutmix", step)
        is_mixup = random.random_sample() < 0.5
        if not self._cutmix or (self._alpha and is_mixup):
            return None
        middle_y, middle_x = int(random.random_sample() * height), int(random.random_sample() * width)
        side = math.sqrt(1 - random.beta(self._cutmix, self._cutmix))
        half_y, half_x = int(height * side) // 2, int(width * side) // 2
        rows = max(0, middle_y - half_y), min(height, middle_y + half_y)
        return *rows, max(0, middle_x - half_x), min(width, middle_x + half_x)

    def _random(self, what: str, step: int) -> np.random.RandomState:
        key = derive_key(what, self._seed, step)
        # NumPy has promised that this old generator's numbers never change: a run may resume on a newer version.
        return np.random.RandomState([key & 0xFFFFFFFF, key >> 32])

    def __call__(self, images: Tensor, labels_b: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Normalised images (b, ..., height, width) and int64 labels to mixed images and probabilities (b, C), fp32.

        Without mixing both come back as they are. b is even.
        """
        if not (self._alpha or self._cutmix):
            return images, labels_b
        height, width = images.shape[-2:]
        if box := self.box(step, height, width):
            top, bottom, left, right = box
            share = 1 - (bottom - top) * (right - left) / (height * width)
            inside = (..., slice(top, bottom), slice(left, right))
            partners, images = _partners(images[inside]), images.clone()
            images[inside] = partners
        else:
            share = self.share(step)
            images = torch.lerp(_partners(images), images, share)
        targets_bC = torch.zeros(len(labels_b), self._num_classes, device=labels_b.device)
        targets_bC.scatter_(1, labels_b[:, None], 1.0)
        return images, torch.lerp(_partners(targets_bC), targets_bC, share)


def _partners(values: Tensor) -> Tensor:
    """Rows 2i and 2i + 1 (of any shape) in each other's place; the memory format stays."""
    return values.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
