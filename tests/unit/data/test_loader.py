import gc
import logging
import subprocess
import sys
import threading

import cv2
import numpy as np
import pytest
import torch

import tiny
from in_memory import InMemory, collected, in_order, shuffled
from megaclass.data.augment import EvalTransform, TrainTransform
from megaclass.data.dataset import DamagedSampleError
from megaclass.data.decode import decode
from megaclass.data.loader import SYMMETRIC, Buffers, Loader, eval_batches, to_model_input
from megaclass.data.records.reader import RecordDataset
from megaclass.data.views import OrientedClasses
from megaclass.errors import UserError

SIZE = 24


def made(damaged=(), unreadable=(), count=50):
    dataset = InMemory(count)
    for index in damaged:
        dataset.files[index] = dataset.files[index][:200]
    for index in unreadable:
        dataset.files[index] = None
    return dataset


def assert_same(a, b):
    assert len(a) == len(b)
    for (images_a, labels_a), (images_b, labels_b) in zip(a, b, strict=True):
        np.testing.assert_array_equal(images_a, images_b)
        np.testing.assert_array_equal(labels_a, labels_b)


def loader_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("loader")]


def test_a_batch_holds_the_decoded_images_of_its_indices():
    dataset = made()
    (batch,) = Loader(dataset, EvalTransform(SIZE), in_order(20)).steps(1, 2)
    assert batch.images.shape == (20, SIZE, SIZE, 3) and batch.images.dtype == torch.uint8
    assert batch.labels.dtype == torch.int64 and batch.wait_ms > 0
    assert batch.labels.tolist() == dataset.labels()[20:40].tolist()
    for position in range(20):
        image = decode(dataset.read(20 + position).encoded, "")
        np.testing.assert_array_equal(batch.images[position].numpy(), image)


@pytest.mark.parametrize("options", [{"flip": True}, {"rotate_degrees": 20.0}, {"crop_scale_min": 0.5}])
def test_workers_and_prefetch_do_not_change_a_byte(options):
    dataset, transform = made(damaged=[3, 4, 31]), TrainTransform(SIZE, seed=1, **options)
    one = collected(Loader(dataset, transform, shuffled(dataset, 20), on_error="skip"))
    for workers, prefetch in ((2, 1), (4, 3)):
        loader = Loader(dataset, transform, shuffled(dataset, 20), workers=workers, prefetch=prefetch, on_error="skip")
        assert_same(collected(loader), one)


def test_ranks_and_restarts_see_the_same_samples():
    dataset, transform = made(), TrainTransform(SIZE, flip=True, translate=0.1)
    whole = shuffled(dataset, 20)
    steps = collected(Loader(dataset, transform, whole))
    assert_same(collected(Loader(dataset, transform, whole), 2, 4), steps[2:])
    half = Loader(dataset, transform, lambda step: tuple(part[10:] for part in whole(step)))
    assert_same(collected(half), [(images[10:], labels[10:]) for images, labels in steps])


@pytest.mark.parametrize("workers", [1, 3])
def test_a_damaged_image_ends_the_run_by_its_name(workers):
    loader = Loader(made(damaged=[33]), EvalTransform(SIZE), in_order(10), workers=workers)
    steps = loader.steps(0, 5)
    for _ in range(3):
        next(steps)
    with pytest.raises(UserError, match="memory record 33: damaged image"):
        next(steps)
    assert not loader_threads()


def test_a_damaged_sample_is_replaced_counted_and_logged_once(caplog):
    dataset = made(damaged=[8, 9], unreadable=[2])
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
    dataset, transform = made(damaged=[3, 4, 49]), TrainTransform(SIZE, rotate_degrees=20.0)
    (whole,) = collected(Loader(dataset, transform, in_order(50), on_error="skip"), 0, 1)
    alone = collected(Loader(dataset, transform, in_order(1), on_error="skip"), 0, 50)
    assert_same([tuple(np.concatenate(parts) for parts in zip(*alone, strict=True))], [whole])
    assert whole[1][[3, 4, 49]].tolist() == [5, 5, 0]  # the set is a ring


@pytest.mark.parametrize(("count", "limit"), [(10, 10), (150, 100)])
def test_the_search_for_a_stand_in_ends(count, limit):
    loader = Loader(made(unreadable=range(count), count=count), EvalTransform(SIZE), in_order(10), on_error="skip")
    with pytest.raises(UserError, match=f"{limit} damaged samples in a row.*first: memory record 0"):
        next(loader.steps(0, 1))


def test_a_transform_that_gives_up_names_the_record():
    class GivesUp(EvalTransform):
        def __call__(self, image_HWC, plan_K, out_SSC):
            raise cv2.error("Insufficient memory\nin the allocator")

    with pytest.raises(UserError, match=r"memory record 0: an image of 24 x 24 pixels .*to 8 x 8") as caught:
        next(Loader(made(), GivesUp(8), in_order(1)).steps(0, 1))
    assert "\n" not in str(caught.value)


def test_leaving_early_ends_the_threads():
    loader = Loader(made(), EvalTransform(SIZE), in_order(10), workers=3)
    for _ in loader.steps(0, 5):
        break
    steps = loader.steps(0, 5)
    next(steps)
    assert loader_threads()
    steps.close()
    assert not loader_threads()


def test_evaluation_passes_a_range_in_order_with_a_smaller_last_batch():
    dataset = made()
    batches = list(eval_batches(dataset, EvalTransform(SIZE), 10, 5, 38, workers=2))
    assert [len(batch.labels) for batch in batches] == [10, 10, 10, 3]
    assert torch.cat([batch.labels for batch in batches]).tolist() == dataset.labels()[5:38].tolist()
    assert list(eval_batches(dataset, EvalTransform(SIZE), 10, 7, 7)) == []
    assert sum(len(batch.labels) for batch in eval_batches(dataset, EvalTransform(SIZE), 16)) == 50


# --- memory is used again, and never while somebody can see it -------------------------------------


def test_what_nobody_holds_is_given_again():
    buffers = Buffers()
    place = buffers.take((4, 8, 8, 3)).data_ptr()
    assert all(buffers.take((4, 8, 8, 3)).data_ptr() == place for _ in range(5))


def test_what_anybody_holds_is_not():
    buffers = Buffers()
    held = [buffers.take((4, 8, 8, 3)) for _ in range(3)]
    views = [held[0][1], held[1].numpy(), held[2].permute(3, 0, 1, 2).chunk(2)[1], iter(held[0])]
    seen = {tensor.data_ptr() for tensor in held}
    del held
    gc.collect()
    fresh = buffers.take((4, 8, 8, 3))
    place = fresh.data_ptr()
    assert len(seen) == 3 and place not in seen
    del views, fresh
    assert {tensor.data_ptr() for tensor in [buffers.take((4, 8, 8, 3)) for _ in range(4)]} == seen | {place}


# --- oriented copies --------------------------------------------------------------------------------


@pytest.mark.parametrize("orientations", [1, 2, 4, 8])
def test_oriented_copies_are_classes_of_their_own(orientations):
    base = made(count=12)
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
@pytest.mark.parametrize(("mean", "std"), [(SYMMETRIC, SYMMETRIC), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])
def test_model_input_is_normalised_nchw(channels_last, mean, std):
    images = torch.arange(2 * 4 * 5 * 3, dtype=torch.uint8).reshape(2, 4, 5, 3)
    kept = images.clone()
    model_input = to_model_input(images, "cpu", channels_last, mean, std)
    shift, scale = (torch.tensor(values, dtype=torch.float64) for values in (mean, std))
    expected = ((images.double() / 255 - shift) / scale).permute(0, 3, 1, 2)
    assert model_input.shape == (2, 3, 4, 5) and model_input.dtype == torch.float32
    torch.testing.assert_close(model_input, expected.float(), rtol=0, atol=2e-6)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    assert model_input.is_contiguous(memory_format=memory_format)
    assert torch.equal(images, kept)


@pytest.mark.process
def test_an_iterator_left_open_does_not_hold_up_the_exit():
    code = (
        "import numpy as np, test_loader as t\n"
        "steps = t.Loader(t.made(), t.EvalTransform(24), t.in_order(10), workers=2).steps(0, 5)\n"
        "next(steps)\n"
        "print('left')\n"
    )
    path = [__file__.rpartition("/")[0], *sys.path]
    code = f"import sys; sys.path[:0] = {path!r}\n" + code
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "left\n", "")


@pytest.mark.parametrize("on_error", ["fail", "skip"])
def test_a_record_file_that_is_cut(tmp_path, on_error):
    """Mapped into memory, it would end the process without a word."""
    rec = tiny.write_records(tmp_path / "records") / "train.rec"
    dataset = RecordDataset(rec.parent)
    steps = Loader(dataset, EvalTransform(tiny.SIZE), in_order(4), prefetch=1, on_error=on_error).steps(0, 6)
    next(steps)
    size = rec.stat().st_size
    with rec.open("r+b") as file:
        file.truncate(size // 2)
    if on_error == "fail":
        with pytest.raises(DamagedSampleError, match=r"train\.rec record \d+ .* is damaged"):
            list(steps)
    else:
        assert all(len(batch.labels) == 4 for batch in steps)  # those from the half that is left stand in
