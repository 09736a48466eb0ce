import cv2
import numpy as np
import pytest

from megaclass.config import from_mapping
from megaclass.config.sections import Augment
from megaclass.data.augment import Composed, TrainTransform
from megaclass.data.decode import Decoded
from megaclass.data.photometric import Photometric
from megaclass.train.batches import train_transform

SIZE = 32
NUMBERS = np.arange(20_000)
DALI_AUG = {
    "low_resolution_probability": 0.1,
    "blur_probability": 0.2,
    "colour_probability": 0.2,
    "grey_probability": 0.1,
}


def picture(seed=0, low=70, high=180):
    """Soft noise of medium colours: no change here leaves the range of a byte."""
    noise = np.random.default_rng(seed).normal(size=(SIZE, SIZE, 3))
    soft = cv2.GaussianBlur(noise, (0, 0), 2)
    return cv2.normalize(soft, None, low, high, cv2.NORM_MINMAX).round().astype(np.uint8)


def photometric(seed=0, **options):
    return Photometric(Augment(**options), seed)


def apply(image, number=0, **options):
    transform = photometric(**options)
    out = image.copy()
    transform(out, transform.plan(np.array([number]))[0])
    return out


def luma(image):
    return np.repeat(image.astype(float) @ [[0.299], [0.587], [0.114]], 3, axis=-1)


def assert_near(image, expected, tolerance=1.0):
    np.testing.assert_allclose(image.astype(float), expected, atol=tolerance)


# --- what is drawn ------------------------------------------------------------------------------------


def test_changes_come_as_often_as_asked_and_independently():
    plan_NK = photometric(**DALI_AUG).plan(NUMBERS)
    low, blur, values = plan_NK[:, 0] > 0, plan_NK[:, 1] > 0, plan_NK[:, 2] > 0
    assert low.mean() == pytest.approx(0.1, abs=0.01)
    assert blur.mean() == pytest.approx(0.2, abs=0.01)
    assert values.mean() == pytest.approx(1 - 0.8 * 0.9, abs=0.01)
    assert np.abs(np.corrcoef([low, blur, values]) - np.eye(3)).max() < 0.03


def test_the_strengths_are_those_of_arcface_torch_unless_told():
    plan_NK = photometric(low_resolution_probability=1, blur_probability=1).plan(NUMBERS)
    # As in its dataset.py: from half the side to 0.8 of it, and windows of 3 or 5 pixels.
    assert plan_NK[:, 0].min() == pytest.approx(0.5, abs=1e-3)
    assert plan_NK[:, 0].max() == pytest.approx(0.8, abs=1e-3)
    np.testing.assert_allclose(np.bincount(plan_NK[:, 1].astype(int)), [0, 10_000, 10_000], atol=300)


# --- what is done -------------------------------------------------------------------------------------


def test_grey_is_luma_in_all_channels():
    image = picture()
    grey = apply(image, grey_probability=1)
    assert_near(grey, luma(image))
    assert np.ptp(grey, axis=-1).max() == 0
    # Whatever becomes of the colour before: grey comes last.
    coloured = apply(image, grey_probability=1, colour_probability=1, hue_degrees=(90, 90))
    assert_near(coloured, luma(image))


def test_brightness_and_contrast_are_about_mid_grey():
    image = picture()
    changed = apply(image, light_probability=1, brightness=(0.9, 0.9), contrast=(1.3, 1.3))
    assert_near(changed, 0.9 * (128 + 1.3 * (image.astype(float) - 128)))


def test_hue_and_saturation_keep_luma():
    image = picture(low=100, high=150)
    turned = apply(image, colour_probability=1, hue_degrees=(50, 50), saturation=(1.2, 1.2))
    assert np.abs(turned.astype(float) - image).mean() > 3
    assert_near(luma(turned), luma(image))
    back = apply(turned, colour_probability=1, hue_degrees=(-50, -50), saturation=(1 / 1.2, 1 / 1.2))
    assert_near(back, image, tolerance=2)


def test_blur_is_gaussian():
    image = picture(low=0, high=255)
    seen = set()
    for number in range(8):
        blurred = apply(image, number, blur_probability=1)
        for radius, sigma in ((1, 0.8), (2, 1.1)):
            expected = cv2.GaussianBlur(image, (2 * radius + 1,) * 2, sigma)
            if np.array_equal(blurred, expected):
                seen.add(radius)
                break
        else:
            pytest.fail(f"sample {number} is under no blur of radius 1 or 2")
    assert seen == {1, 2}


def test_low_resolution_keeps_what_is_coarse_and_loses_what_is_fine():
    half = {"low_resolution_probability": 1, "low_resolution": (0.5, 0.5)}
    rows, columns = np.indices((SIZE, SIZE))
    slope = np.repeat((4 * columns + 2 * rows)[..., None], 3, 2).astype(np.uint8)
    inside = slice(2, -2)
    assert_near(apply(slope, **half)[inside, inside], slope[inside, inside])
    checks = np.repeat((255 * ((rows + columns) % 2))[..., None], 3, 2).astype(np.uint8)
    assert_near(apply(checks, **half)[inside, inside], 127.5, tolerance=2)
    dot = apply(picture(), low_resolution_probability=1, low_resolution=(0.01, 0.01))
    assert np.ptp(dot.reshape(-1, 3), axis=0).max() == 0  # one pixel is left


# --- with a geometry ------------------------------------------------------------------------------------


def test_composed_is_the_geometry_and_then_the_changes():
    geometry = TrainTransform(SIZE, flip=True, crop_scale_min=0.3, seed=1)
    changes = photometric(light_probability=0.5, seed=2, **DALI_AUG)
    composed = Composed(geometry, [changes])
    assert composed.shape == (SIZE, SIZE)
    numbers = np.arange(30)
    plan_NK = composed.plan(numbers)
    for number in numbers:
        expected, out = np.empty((2, SIZE, SIZE, 3), np.uint8)
        geometry(Decoded.whole(picture(number)), geometry.plan(numbers)[number], expected)
        changes(expected, changes.plan(numbers)[number])
        composed(Decoded.whole(picture(number)), plan_NK[number], out)
        np.testing.assert_array_equal(out, expected)


def test_a_run_changes_pixels_only_where_asked():
    def transform(**augment):
        data = {"source": "records", "path": "x", "image_size": SIZE}
        return train_transform(from_mapping({"data": data, "augment": augment, "evaluate": {"task": "none"}}))

    assert isinstance(transform(flip=True), TrainTransform)
    out = np.empty((SIZE, SIZE, 3), np.uint8)
    composed = transform(grey_probability=1.0)
    composed(Decoded.whole(picture()), composed.plan(np.array([0]))[0], out)
    assert_near(out, luma(picture()))
