"""Tests that decode by DALI skip where it is not installed; what it is given is tested everywhere."""

import logging
import sys

import cv2
import numpy as np
import pytest
import torch

import tiny
from in_memory import InMemory, collected, in_order, shuffled
from megaclass.data.augment import TrainTransform, resized
from megaclass.data.dali import DaliLoader
from megaclass.data.dataset import DamagedSampleError
from megaclass.data.decode import Decoded, Need
from megaclass.data.loader import Loader
from megaclass.errors import UserError
from megaclass.results.events import StepEvent

SIZE = 32
CPU = torch.device("cpu")
CROP = {"flip": True, "crop_scale_min": 0.2, "seed": 5}


@pytest.fixture
def installed():
    pytest.importorskip("nvidia.dali")


class Whole(TrainTransform):
    """As DALI does, it looks at all pixels of an image."""

    def need(self, height, width, plan_K):
        return Need(height)


def loaders(dataset, order=None, size=SIZE, on_error="fail", **options):
    """Our loader and DALI's, of the same data."""
    transform, order = Whole(size, **options), order or in_order(8)
    ours = Loader(dataset, transform, order, on_error=on_error)
    return ours, DaliLoader(dataset, transform, order, device=CPU, workers=2, on_error=on_error)


def assert_alike(found, expected, mean=0.0, most=0):
    """The same labels, and images within a mean and a largest difference."""
    assert len(found) == len(expected)
    for (images_a, labels_a), (images_b, labels_b) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(labels_a, labels_b)
        difference = np.abs(images_a.astype(int) - images_b)
        assert difference.mean() <= mean and difference.max() <= most


# --- what DALI is given -------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"flip": True}, CROP])
def test_box_and_flip_make_the_image_of_our_transform(options):
    transform, image = TrainTransform(SIZE, **options), np.random.default_rng(0).integers(0, 256, (50, 70, 3))
    image = image.astype(np.uint8)
    plan_NK = transform.plan(np.arange(20))
    for plan_K in plan_NK:
        left, top, width, height = transform.box(50, 70, plan_K)
        square = resized(image[top : top + height, left : left + width], SIZE, SIZE)
        out = np.empty((SIZE, SIZE, 3), np.uint8)
        transform(Decoded.whole(image), plan_K, out)
        np.testing.assert_array_equal(out, square[:, ::-1] if plan_K[0] else square)
    assert 3 < plan_NK[:, 0].sum() < 17


def test_without_dali_one_line_tells(monkeypatch):
    monkeypatch.setitem(sys.modules, "nvidia.dali.pipeline", None)
    told = r"data\.loader: .*nvidia\.dali\.pipeline is not installed; pip install 'megaclass\[dali\]'.*'threads'"
    with pytest.raises(UserError, match=told):
        DaliLoader(InMemory(40, 33, 60), TrainTransform(SIZE), in_order(8), device=CPU)


# --- what comes back ----------------------------------------------------------------------------------


# The smaller the square, the more pixels of the source make one of it.
@pytest.mark.parametrize("size, low, high, most", [(64, 20, 60, 2), (32, 33, 60, 3), (32, 150, 300, 16)])
def test_crops_are_those_of_our_loader_up_to_rounding(installed, size, low, high, most):
    dataset = InMemory(40, low, high)
    ours, theirs = loaders(dataset, shuffled(dataset, 8), size, **CROP)
    assert_alike(collected(theirs), collected(ours), mean=0.4, most=most)


# --- damage -------------------------------------------------------------------------------------------


def cut(index, at):
    dataset = InMemory(40, 33, 60)
    dataset.files[index] = dataset.files[index][:at]
    return dataset


# 17 is in step 2: without a header, and with a header but half of its pixels.
@pytest.mark.parametrize("at", [100, 900])
def test_damage_ends_the_run_at_its_step_and_names_the_record(installed, at):
    ours, theirs = loaders(cut(17, at), **CROP)
    steps, sound = theirs.steps(0, 5), collected(ours, 0, 2)
    found = [(batch.images.numpy(), batch.labels.numpy()) for batch in (next(steps), next(steps))]
    assert_alike(found, sound, mean=0.4, most=3)
    with pytest.raises(DamagedSampleError, match="memory record 17"):
        next(steps)


@pytest.mark.parametrize("at", [100, 900])
def test_a_damaged_image_is_skipped_as_by_our_loader(installed, at, caplog):
    ours, theirs = loaders(cut(17, at), on_error="skip", flip=True, crop_scale_min=0.5)
    expected = collected(ours)
    caplog.clear()
    found = collected(theirs)
    assert_alike(found, expected, mean=0.4, most=3)
    np.testing.assert_array_equal(found[2][0], expected[2][0])  # our loader made this step
    assert len(theirs.damaged) == 1
    assert sum("memory record 17" in record.message for record in caplog.records) == 1


def test_a_format_that_dali_lacks_goes_to_our_loader(installed, caplog):
    dataset = InMemory(40, 33, 60)
    ok, gif = cv2.imencode(".gif", np.zeros((SIZE, SIZE, 3), np.uint8))
    assert ok
    dataset.files[9] = gif.tobytes()
    ours, theirs = loaders(dataset, flip=True)
    with caplog.at_level(logging.WARNING):
        assert_alike(collected(theirs), collected(ours), mean=0.4, most=3)
    assert theirs.gathered(0) is not None and theirs.gathered(1) is None and not caplog.records


def test_failures_of_dali_alone_are_told(installed, monkeypatch, caplog):
    ours, theirs = loaders(InMemory(40, 33, 60))

    def fail(pipeline):
        raise RuntimeError("Critical error in pipeline: ... encountered:\nout of everything")

    monkeypatch.setattr(theirs, "_images", fail)
    assert_alike(collected(theirs, 0, 4), collected(ours, 0, 4))
    assert "step 3 (out of everything)" in caplog.text


# --- a run --------------------------------------------------------------------------------------------


def test_a_run_trains_on_the_same_images_and_resumes(installed, tmp_path):
    def losses(name, loader, steps=8, resume=False):
        directory, _ = tiny.run(
            tmp_path,
            resume,
            run={"output": str(tmp_path / name), "checkpoint_every": 4},
            data={"loader": loader},
            augment={"flip": True},
            schedule={"steps": steps, "kind": "constant"},
        )
        return [event.loss for event in tiny.events(directory.path, StepEvent)]

    whole = losses("threads", "threads")
    losses("dali", "dali", steps=4)
    assert losses("dali", "dali", resume=True) == whole
