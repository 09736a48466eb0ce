"""From batches in host memory to batches on the device, copied while the step before them is computed."""

from collections import deque
from collections.abc import Iterator

import torch

from megaclass.data.loader import Batch


class DeviceFeed:
    """Copies each batch to a CUDA ``device`` on a stream of its own, one batch ahead of the step.

    From pinned memory the copies overlap with the step's work. On a CPU, and for batches that are on the device
    already, nothing is done.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._waits: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()

    def __call__(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches, in the same order; an error comes after the batches before it."""
        if self._stream is None:
            yield from batches
            return
        ahead: tuple[Batch, torch.cuda.Event] | None = None
        try:
            for batch in batches:
                copied = self._copy(batch, self._stream)
                if ahead:
                    yield self._ready(*ahead)
                ahead = copied
        except Exception:
            if ahead:
                yield self._ready(*ahead)
            raise
        if ahead:
            yield self._ready(*ahead)

    def take_wait_ms(self) -> float:
        """How long the device waited for copies since the last call, as far as it has got. No host sync."""
        total = 0.0
        while self._waits and self._waits[0][1].query():
            began, ended = self._waits.popleft()
            total += began.elapsed_time(ended)
        return total

    def _copy(self, batch: Batch, stream: torch.cuda.Stream) -> tuple[Batch, torch.cuda.Event]:
        with torch.cuda.stream(stream):
            images = batch.images.to(self._device, non_blocking=True)
            labels = batch.labels.to(self._device, non_blocking=True)
            done = torch.cuda.Event()
            done.record(stream)
        return batch._replace(images=images, labels=labels), done

    def _ready(self, batch: Batch, done: torch.cuda.Event) -> Batch:
        """Make the step's stream wait for the copy, between two events that tell for how long it did."""
        step_stream = torch.cuda.current_stream(self._device)
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record(step_stream)
        step_stream.wait_event(done)
        ended.record(step_stream)
        self._waits.append((began, ended))
        for tensor in (batch.images, batch.labels):
            tensor.record_stream(step_stream)  # its memory is not given away while the step still reads it
        return batch
