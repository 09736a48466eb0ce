"""From files to batches on a CUDA device: the pictures that our loader makes on a CPU, copied beside the step."""

import pytest
import torch

from in_memory import InMemory, shuffled
from megaclass.bench.loader import WORKLOADS, LoaderCase, Megaclass
from megaclass.bench.peers import dali
from megaclass.bench.photographs import write_images
from megaclass.data.augment import TrainTransform
from megaclass.data.dali import DaliLoader
from megaclass.data.feed import DeviceFeed
from megaclass.data.loader import Loader, to_model_input
from megaclass.data.open import open_dataset
from megaclass.data.synthetic import SyntheticLoader
from megaclass.parallel.seeding import derive_key

DEVICE = torch.device("cuda", 0)
SIZE = 64 if torch.version.cuda is None else 2048  # of the step's product
# Mean difference of an image from ours, in steps of 255. Two pictures differ by some 60, of a picture whose cut begins
# a pixel further 10; decoders round otherwise, and those of a GPU enlarge 4:2:0 colour with another filter.
NEAR = 4.0


def on_device(batches):
    """Images and labels, after a step that keeps the device busy has been given to it."""
    found = []
    for batch in DeviceFeed(DEVICE)(batches):
        assert batch.images.device == batch.labels.device == DEVICE
        work = torch.randn(SIZE, SIZE, device=DEVICE)
        work @ work
        found.append((batch.images.clone(), batch.labels.clone()))
    return [(images.cpu(), labels.cpu()) for images, labels in found]


def from_memory(steps, pin=True):
    dataset = InMemory(16, 112, 112)
    order = shuffled(dataset, 64)
    return Loader(dataset, TrainTransform(112, flip=True), order, workers=4, pin_memory=pin).steps(0, steps)


@pytest.mark.parametrize("pin", [True, False])
def test_every_batch_arrives_whole_and_in_order(pin):
    for (images, labels), wanted in zip(on_device(from_memory(6, pin)), from_memory(6), strict=True):
        assert torch.equal(images, wanted.images) and torch.equal(labels, wanted.labels)


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_an_error_comes_after_the_batches_before_it(count):
    def failing():
        yield from from_memory(count) if count else ()
        raise OSError("gone")

    seen = []
    with pytest.raises(OSError, match="gone"):
        seen.extend(batch.labels.tolist() for batch in DeviceFeed(DEVICE)(failing()))
    assert seen == [batch.labels.tolist() for batch in (from_memory(count) if count else ())]


def test_what_is_on_the_device_is_handed_on():
    loader = SyntheticLoader(10, 16, 8, device="cuda")
    wanted = [batch.labels.tolist() for batch in loader.steps(0, 3)]
    assert [b.labels.tolist() for b in DeviceFeed(DEVICE)(loader.steps(0, 3))] == wanted


@pytest.mark.gpu
def test_copies_overlap_with_the_step():
    feed = DeviceFeed(DEVICE)
    a = torch.randn(8192, 8192, device=DEVICE)
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for i, batch in enumerate(feed(from_memory(30))):
        if i == 5:  # the first ones allocate pinned memory
            torch.cuda.synchronize()
            feed.take_wait_ms()
            began.record()
        to_model_input(batch.images, DEVICE)
        for _ in range(10):  # tens of milliseconds
            a @ a
    ended.record()
    torch.cuda.synchronize()
    assert feed.take_wait_ms() < 0.02 * began.elapsed_time(ended)


@pytest.mark.gpu
@pytest.mark.skipif(bool(dali.missing()), reason="needs DALI")
@pytest.mark.parametrize("workload", ["faces", "imagenet"])
def test_what_dali_decodes_on_the_gpu_is_near(workload, tmp_path):
    case = LoaderCase(workload=workload, batch_size=16, threads=4, batches=5, device="cuda")
    kind = WORKLOADS[workload]
    write_images(tmp_path, kind.look, 40, threads=4)
    ours = Megaclass(case, torch.device("cpu"), str(tmp_path / "records"))
    seed = derive_key("augment", case.seed)
    transform = TrainTransform(case.work.image_size, flip=True, crop_scale_min=kind.crop, seed=seed)
    dataset = open_dataset(tmp_path / "records")
    loader = DaliLoader(dataset, transform, ours.order, device=DEVICE, workers=4)
    for (images, labels), batch in zip(on_device(loader.steps(0, 5)), ours.loader.steps(0, 5), strict=True):
        assert torch.equal(labels, batch.labels)
        assert images.dtype == torch.uint8 and images.shape == batch.images.shape
        difference_B = (images.float() - batch.images.float()).abs().mean(dim=(1, 2, 3))
        assert difference_B.max() < NEAR, difference_B
