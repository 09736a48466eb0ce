"""Memory for batches, used again: a fresh page costs as much time as a tenth of the image that is decoded into it."""

import sys

import numpy as np
import torch
from torch import Tensor

_SPARE = 3  # idle arrays that are kept: more were needed once, and may never be again


class Buffers:
    """Gives uint8 tensors of one shape. What the receiver, or a view of it, still holds is never given again.

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
