"""Where a pass over batches ends: on the device, ready for the model, as in training; on a CPU in host memory."""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from megaclass.bench.old_loader.clock import Time
from megaclass.data.feed import DeviceFeed
from megaclass.data.loader import Batch, to_model_input

Clock = Callable[[Callable[[], object]], Time]


class Delivery:
    """Takes the batches of a pass.

    On CUDA a pass ends when the device has finished all that it was given: the clock is a synchronised one.
    """

    def __init__(self, device: torch.device) -> None:
        # One for all passes, as a run has one: memory that was copied to is used again on the same stream only.
        self._device, self._feed = device, DeviceFeed(device)
        self.on_cuda = device.type == "cuda"

    def whole(self, batches: Iterator[Batch], clock: Clock) -> Time:
        """The pass that counts."""
        return clock(partial(self.to_model if self.on_cuda else self.to_host, batches))

    def to_host(self, batches: Iterator[Batch]) -> None:
        """The batches as the loader gives them."""
        for _ in batches:
            pass

    def to_model(self, batches: Iterator[Batch]) -> None:
        """Copied to the device one batch ahead, and normalised there."""
        for batch in self._feed(batches):
            to_model_input(batch.images, self._device)
        if self.on_cuda:
            torch.cuda.synchronize(self._device)
            self._feed.take_wait_ms()  # nobody asks for it here, and it would pile up
