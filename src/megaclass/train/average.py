"""An exponential moving average of the weights (Polyak and Juditsky 1992), and their place in an evaluation."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


class WeightAverage:
    """``average = decay * average + (1 - decay) * weight`` after each step, or every few, of parameters and norm
    statistics. A step that was skipped counts: it takes the same weights in once more.

    At update t the decay is ``min(decay, (1 + t) / (10 + t))``, so that the average forgets the initial weights (the
    ramp of TensorFlow's ExponentialMovingAverage).
    """

    def __init__(self, modules: Mapping[str, nn.Module], decay: float) -> None:
        self._modules, self._decay = dict(modules), decay
        tensors = (t for m in modules.values() for t in (*m.parameters(), *m.buffers()))
        self._live = [t.detach() for t in tensors if t.is_floating_point()]
        self._mean = [t.clone() for t in self._live]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the weights after optimizer step ``step`` in: from 0, counting those after which this is called."""
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._mean, self._live, 1 - decay)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The modules hold the average inside, and their own weights again afterwards."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for live, mean in zip(self._live, self._mean, strict=True):
            kept = live.clone()
            live.copy_(mean)
            mean.copy_(kept)

    def state_dict(self) -> dict[str, Any]:
        """Name of a module -> its state dict with the average in it (copies)."""
        with self.in_place():
            return {
                name: {key: value.clone() for key, value in module.state_dict().items()}
                for name, module in self._modules.items()
            }

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """What :meth:`state_dict` gave. KeyError or RuntimeError for that of other modules."""
        with self.in_place():
            for name, module in self._modules.items():
                module.load_state_dict(state[name])
