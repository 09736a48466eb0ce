"""Batches on their way to the device: the same ones, copied beside the step's work."""

import pytest
import torch

from in_memory import InMemory, shuffled
from megaclass.data.augment import TrainTransform
from megaclass.data.feed import DeviceFeed
from megaclass.data.loader import Loader, to_model_input
from megaclass.data.synthetic import SyntheticLoader

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

SIZE, BATCH = 112, 64


def batches(steps: int, pin: bool = True):
    dataset, order = InMemory(16, SIZE, SIZE), shuffled(range(16), BATCH)
    return Loader(dataset, TrainTransform(SIZE, flip=True), order, workers=4, pin_memory=pin).steps(0, steps)


@pytest.mark.parametrize("pin", [True, False])
def test_every_batch_arrives_whole_and_in_order(pin: bool) -> None:
    device = torch.device("cuda")
    feed = DeviceFeed(device)
    kept = []
    for batch in feed(batches(20, pin)):
        assert batch.images.is_cuda and batch.labels.is_cuda
        kept.append((batch.images.sum(dtype=torch.int64), batch.labels))
        torch.randn(2000, 2000, device=device) @ torch.randn(2000, 2000, device=device)  # the step's work
    for (total, labels), wanted in zip(kept, batches(20), strict=True):
        assert int(total) == int(wanted.images.sum(dtype=torch.int64))
        assert labels.tolist() == wanted.labels.tolist()


def test_copies_overlap_with_the_step() -> None:
    device = torch.device("cuda")
    feed = DeviceFeed(device)
    a = torch.randn(8192, 8192, device=device)
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for i, batch in enumerate(feed(batches(30))):
        if i == 5:  # the first ones allocate pinned memory
            torch.cuda.synchronize()
            feed.take_wait_ms()
            began.record()
        to_model_input(batch.images, device)
        for _ in range(10):  # tens of milliseconds
            a @ a
    ended.record()
    torch.cuda.synchronize()
    assert feed.take_wait_ms() < 0.02 * began.elapsed_time(ended)


def test_what_is_on_the_device_is_handed_on() -> None:
    loader = SyntheticLoader(10, 16, 8, device="cuda")
    wanted = [batch.labels.tolist() for batch in loader.steps(0, 3)]
    assert [b.labels.tolist() for b in DeviceFeed(torch.device("cuda"))(loader.steps(0, 3))] == wanted
