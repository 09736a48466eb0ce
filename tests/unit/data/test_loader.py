import logging
import subprocess
import sys
import threading

import cv2
import numpy as np
import pytest
import simplejpeg
import torch

from megaclass.data.augment import EvalTransform, TrainTransform
from megaclass.data.dataset import DamagedSampleError, Sample
from megaclass.data.decode import decode
from megaclass.data.loader import Loader, eval_batches, to_model_input
from megaclass.data.records.reader import RecordDataset
from megaclass.data.records.writer import RecordWriter
from megaclass.data.sampler import EpochSampler
from megaclass.data.views import OrientedClasses
from megaclass.errors import UserError

SIZE = 24


class InMemory:
    """A Dataset of noise images; those in ``damaged`` end early, those in ``unreadable`` fail to be read."""

    def __init__(self, count=50, num_classes=10, damaged=(), unreadable=()):
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)
        self._encoded = [simplejpeg.encode_jpeg(image, quality=90) for image in images]
        for index in damaged:
            self._encoded[index] = self._encoded[index][:200]
        self._unreadable = set(unreadable)
        self._labels = np.arange(count) % num_classes
        self.num_classes = num_classes

    def __len__(self):
        return len(self._encoded)

    def read(self, index):
        if index in self._unreadable:
            raise DamagedSampleError(f"{self.describe(index)}: cannot be read")
        return Sample(self._encoded[index], int(self._labels[index]))

    def labels(self):
        return self._labels

    def describe(self, index):
        return f"memory record {index}"


def shuffled(dataset, batch=20, seed=0):
    sampler = EpochSampler(len(dataset), seed)

    def indices_of_step(step):
        return sampler.indices(step * batch, batch), np.arange(step * batch, (step + 1) * batch)

    return indices_of_step


def in_order(batch):
    return lambda step: (np.arange(step * batch, (step + 1) * batch),) * 2


def collected(loader, start=0, stop=4):
    return [(b.images.numpy().copy(), b.labels.numpy().copy()) for b in loader.steps(start, stop)]


def assert_same(a, b):
    assert len(a) == len(b)
    for (images_a, labels_a), (images_b, labels_b) in zip(a, b, strict=True):
        np.testing.assert_array_equal(images_a, images_b)
        np.testing.assert_array_equal(labels_a, labels_b)


def loader_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("loader")]


def test_a_batch_holds_the_decoded_images_of_its_indices():
    dataset = InMemory()
    (batch,) = Loader(dataset, EvalTransform(SIZE), in_order(20)).steps(1, 2)
    assert batch.images.shape == (20, SIZE, SIZE, 3) and batch.images.dtype == torch.uint8
    assert batch.labels.dtype == torch.int64 and batch.wait_ms > 0
    assert batch.labels.tolist() == dataset.labels()[20:40].tolist()
    for position in range(20):
        image = decode(dataset.read(20 + position).encoded, "")
        np.testing.assert_array_equal(batch.images[position].numpy(), image)


@pytest.mark.parametrize("options", [{"flip": True}, {"rotate_degrees": 20.0}, {"crop_scale_min": 0.5}])
def test_workers_and_prefetch_do_not_change_a_byte(options):
    dataset, transform = InMemory(damaged=[3, 4, 31]), TrainTransform(SIZE, seed=1, **options)
    one = collected(Loader(dataset, transform, shuffled(dataset), on_error="skip"))
    for workers, prefetch in ((2, 1), (4, 3)):
        loader = Loader(
            dataset, transform, shuffled(dataset), workers=workers, prefetch=prefetch, on_error="skip"
        )
        assert_same(collected(loader), one)


def test_ranks_and_restarts_see_the_same_samples():
    dataset, transform = InMemory(), TrainTransform(SIZE, flip=True, translate=0.1)
    whole = shuffled(dataset)
    steps = collected(Loader(dataset, transform, whole))
    assert_same(collected(Loader(dataset, transform, whole), 2, 4), steps[2:])
    half = Loader(dataset, transform, lambda step: tuple(part[10:] for part in whole(step)))
    assert_same(collected(half), [(images[10:], labels[10:]) for images, labels in steps])


@pytest.mark.parametrize("workers", [1, 3])
def test_a_damaged_image_ends_the_run_by_its_name(workers):
    loader = Loader(InMemory(damaged=[33]), EvalTransform(SIZE), in_order(10), workers=workers)
    steps = loader.steps(0, 5)
    for _ in range(3):
        next(steps)
    with pytest.raises(UserError, match="memory record 33: damaged image"):
        next(steps)
    assert not loader_threads()


def test_a_damaged_sample_is_replaced_counted_and_logged_once(caplog):
    dataset = InMemory(damaged=[8, 9], unreadable=[2])
    loader = Loader(dataset, EvalTransform(SIZE), in_order(10), workers=2, on_error="skip")
    with caplog.at_level(logging.WARNING):
        first = next(loader.steps(0, 1))
        next(loader.steps(0, 1))
    assert first.labels.tolist() == [0, 1, 3, 3, 4, 5, 6, 7, 0, 0]  # 10 stands in for 8 and 9, of class 0
    for position, donor in ((2, 3), (8, 10), (9, 10)):
        image = decode(dataset.read(donor).encoded, "")
        np.testing.assert_array_equal(first.images[position].numpy(), image)
    assert loader.damaged == {2, 8, 9}
    assert [message.split(":")[0] for message in caplog.messages] == [f"memory record {i}" for i in (2, 8, 9)]


def test_the_stand_in_does_not_depend_on_the_number_of_ranks():
    """Least of all with one image a rank, where the batch holds no other."""
    dataset, transform = InMemory(damaged=[3, 4, 49]), TrainTransform(SIZE, rotate_degrees=20.0)
    (whole,) = collected(Loader(dataset, transform, in_order(50), on_error="skip"), 0, 1)
    alone = collected(Loader(dataset, transform, in_order(1), on_error="skip"), 0, 50)
    assert_same([tuple(np.concatenate(parts) for parts in zip(*alone, strict=True))], [whole])
    assert whole[1][[3, 4, 49]].tolist() == [5, 5, 0]  # the set is a ring


@pytest.mark.parametrize(("count", "limit"), [(10, 10), (150, 100)])
def test_the_search_for_a_stand_in_ends(count, limit):
    loader = Loader(
        InMemory(count, unreadable=range(count)), EvalTransform(SIZE), in_order(10), on_error="skip"
    )
    with pytest.raises(UserError, match=f"{limit} damaged samples in a row.*first: memory record 0"):
        next(loader.steps(0, 1))


def test_a_damaged_record_is_replaced_but_a_wrong_label_is_not(tmp_path):
    encoded = InMemory(4)._encoded
    with RecordWriter(tmp_path) as writer:
        for label, image in enumerate(encoded):
            writer.write(image, label)
    rec = bytearray((tmp_path / "train.rec").read_bytes())
    at = rec.index(encoded[1])
    damages = ((at + 200, bytes(len(encoded[1]) - 200)), (at - 32, b"none"), (at - 20, b"\0\0\0A"))
    for (start, content), expected in zip(damages, ([0, 2, 2, 3], [0, 2, 2, 3], None), strict=True):
        damaged = bytearray(rec)
        damaged[start : start + len(content)] = content
        (tmp_path / "train.rec").write_bytes(damaged)
        loader = Loader(RecordDataset(tmp_path), EvalTransform(SIZE), in_order(4), on_error="skip")
        if expected:
            assert next(loader.steps(0, 1)).labels.tolist() == expected and len(loader.damaged) == 1
        else:
            with pytest.raises(UserError, match=r"record 2 .*the label 8 is outside the 4 classes"):
                next(loader.steps(0, 1))


@pytest.mark.parametrize("error", [MemoryError(), cv2.error("Insufficient memory\nin the allocator")])
def test_a_transform_that_gives_up_names_the_record(error):
    class GivesUp(EvalTransform):
        def __call__(self, image_HWC, plan_K, out_SSC):
            raise error

    with pytest.raises(UserError, match=r"memory record 0: an image of 24 x 24 pixels .*to 8 x 8") as caught:
        next(Loader(InMemory(), GivesUp(8), in_order(1)).steps(0, 1))
    assert "\n" not in str(caught.value)


def test_leaving_early_ends_the_threads():
    loader = Loader(InMemory(), EvalTransform(SIZE), in_order(10), workers=3)
    for _ in loader.steps(0, 5):
        break
    steps = loader.steps(0, 5)
    next(steps)
    assert loader_threads()
    steps.close()
    assert not loader_threads()


def test_evaluation_passes_a_range_in_order_with_a_smaller_last_batch():
    dataset = InMemory()
    batches = list(eval_batches(dataset, EvalTransform(SIZE), 10, 5, 38, workers=2))
    assert [len(batch.labels) for batch in batches] == [10, 10, 10, 3]
    assert torch.cat([batch.labels for batch in batches]).tolist() == dataset.labels()[5:38].tolist()
    assert list(eval_batches(dataset, EvalTransform(SIZE), 10, 7, 7)) == []
    assert sum(len(batch.labels) for batch in eval_batches(dataset, EvalTransform(SIZE), 16)) == 50


# --- oriented copies --------------------------------------------------------------------------------


@pytest.mark.parametrize("orientations", [1, 2, 4, 8])
def test_oriented_copies_are_classes_of_their_own(orientations):
    base = InMemory(count=12)
    dataset = OrientedClasses(base, orientations)
    assert (len(dataset), dataset.num_classes) == (12 * orientations, 10 * orientations)
    (batch,) = eval_batches(dataset, EvalTransform(SIZE), 100, workers=2)
    assert batch.labels.tolist() == dataset.labels().tolist()
    for index in range(len(dataset)):
        orientation, original = divmod(index, 12)
        assert dataset.read(index).label == base.read(original).label + 10 * orientation
        image = decode(base.read(original).encoded, "")
        image = np.fliplr(image) if orientation >= 4 else image
        np.testing.assert_array_equal(batch.images[index].numpy(), np.rot90(image, orientation % 4))


# --- what the model takes ---------------------------------------------------------------------------


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("mean", "std"), [(None, None), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])
def test_model_input_is_normalised_nchw(channels_last, dtype, mean, std):
    images = torch.arange(2 * 4 * 5 * 3, dtype=torch.uint8).reshape(2, 4, 5, 3)
    kept = images.clone()
    model_input = to_model_input(images, "cpu", dtype, channels_last, mean, std)
    shift, scale = (torch.tensor(values or (0.5,), dtype=torch.float64) for values in (mean, std))
    expected = ((images.double() / 255 - shift) / scale).permute(0, 3, 1, 2)
    assert model_input.shape == (2, 3, 4, 5) and model_input.dtype == dtype
    torch.testing.assert_close(
        model_input, expected.to(dtype), rtol=0, atol=0.02 if dtype != torch.float32 else 2e-6
    )
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    assert model_input.is_contiguous(memory_format=memory_format)
    assert torch.equal(images, kept)


@pytest.mark.process
def test_an_iterator_left_open_does_not_hold_up_the_exit():
    code = (
        "import numpy as np, test_loader as t\n"
        "steps = t.Loader(t.InMemory(), t.EvalTransform(24), t.in_order(10), workers=2).steps(0, 5)\n"
        "next(steps)\n"
        "print('left')\n"
    )
    path = [__file__.rpartition("/")[0], *sys.path]
    code = f"import sys; sys.path[:0] = {path!r}\n" + code
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "left\n", "")
