"""The feed hands on the batches of a source, on a CPU as they are; on a device ahead of the step (tests/cuda)."""

import pytest
import torch

from megaclass.data.feed import DeviceFeed
from megaclass.data.loader import Batch


def batches(count: int, fail: bool):
    for i in range(count):
        yield Batch(torch.full((2,), i), torch.tensor([i, i]), 0.0)
    if fail:
        raise OSError("gone")


class Ahead(DeviceFeed):
    """A feed to a device whose copies are none."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
        self._stream = "stream"

    def _copy(self, batch, stream):
        return batch, stream

    def _ready(self, batch, done):
        return batch


@pytest.mark.parametrize("feed", [DeviceFeed(torch.device("cpu")), Ahead()], ids=["cpu", "device"])
@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_an_error_comes_after_the_batches_before_it(feed, count):
    assert [int(b.labels[0]) for b in feed(batches(count, fail=False))] == [*range(count)]
    seen = []
    with pytest.raises(OSError, match="gone"):
        for batch in feed(batches(count, fail=True)):
            seen.append(int(batch.labels[0]))
    assert seen == [*range(count)]
