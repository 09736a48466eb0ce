import os
import subprocess
import sys

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from megaclass.data.augment import EvalTransform, TrainTransform, resized, uniforms
from megaclass.data.dataset import DamagedSampleError
from megaclass.data.decode import Decoded, Memory, Need, decode, decode_part

NUMBERS = np.arange(200)


def gradient(height: int, width: int) -> np.ndarray:
    """Red tells the place in x, green in y: 200 times the share of the side, at pixel centres."""
    x = 200 * (np.arange(width) + 0.5) / width
    y = 200 * (np.arange(height) + 0.5) / height
    return np.stack(np.broadcast_arrays(x, y[:, None], 0.0), -1).round().astype(np.uint8)


def apply(transform, image, number=0):
    out = np.full((*transform.shape, 3), 77, np.uint8)
    transform(Decoded.whole(image), transform.plan(np.array([number]))[0], out)
    return out


# --- random numbers ---------------------------------------------------------------------------------


def test_uniforms_depend_on_seed_and_sample_number_alone():
    whole = uniforms(3, NUMBERS, 5)
    np.testing.assert_array_equal(uniforms(3, NUMBERS[50:60], 5), whole[50:60])
    np.testing.assert_array_equal(uniforms(3, NUMBERS[::-1], 2), whole[::-1, :2])
    assert not np.isin(uniforms(4, NUMBERS, 5), whole).any()


def test_uniforms_never_change():
    # A resumed run must draw what the run before it drew, whatever version wrote the checkpoint.
    expected = [
        [0.33805245419550545, 0.2691302712263999],
        [0.13870941014555427, 0.9711020828012883],
        [0.2837728284287371, 0.2070879094167074],
    ]
    np.testing.assert_array_equal(uniforms(0, np.array([0, 1, 2**40]), 2), expected)


# --- training ---------------------------------------------------------------------------------------


def test_flip_mirrors_about_half_of_the_images_exactly():
    image = gradient(48, 48)
    transform = TrainTransform(48, flip=True)
    flipped = 0
    for number in NUMBERS:
        out = apply(transform, image, number)
        mirrored = bool((out == image[:, ::-1]).all())
        assert mirrored or (out == image).all()
        flipped += mirrored
    assert 70 < flipped < 130


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("shape", [(48, 48), (40, 60), (300, 400)])
def test_affine_change_matches_its_definition(flip, shape):
    """Shear, then scale, then turn, then shift, around the centre; the mirror comes before all of them."""
    size, limits = 48, {"rotate_degrees": 30, "scale": 0.2, "translate": 0.1, "shear_degrees": 15}
    transform = TrainTransform(size, flip=flip, **limits, seed=5)
    centres = (np.arange(size) + 0.5) / size - 0.5
    target = np.stack(np.broadcast_arrays(centres, centres[:, None]), -1)
    for number in range(12):
        mirror, *draws = uniforms(5, np.array([number]), 6)[0]
        turn, scale, right, down, shear = (2 * np.array(draws) - 1) * [np.pi / 6, 0.2, 0.1, 0.1, np.pi / 12]
        forward = (
            np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
            @ np.diag([1 + scale, 1 + scale])
            @ np.array([[1, np.tan(shear)], [0, 1]])
            @ np.diag([-1 if flip and mirror < 0.5 else 1, 1])
        )
        source = (target - [right, down]) @ np.linalg.inv(forward).T
        inside = (np.abs(source) < 0.46).all(-1)
        out = apply(transform, gradient(*shape), number)
        difference = np.abs(out[..., :2] - 200 * (source + 0.5))[inside]
        assert difference.max() < 4.0 and difference.mean() < 1.0


def test_what_lies_outside_is_the_border():
    image = np.full((32, 32, 3), 200, np.uint8)
    assert (apply(TrainTransform(32, translate=1.0, seed=1), image) == 200).all()


def test_an_image_may_be_transformed_in_place():
    for options in ({}, {"flip": True}, {"rotate_degrees": 20.0}, {"crop_scale_min": 0.5}):
        transform = TrainTransform(48, **options)
        for number in range(4):
            image = gradient(48, 48)
            expected = apply(transform, image, number)
            transform(Decoded.whole(image), transform.plan(np.array([number]))[0], image)
            np.testing.assert_array_equal(image, expected)


def test_crop_takes_boxes_of_the_asked_for_area_and_aspect():
    image = gradient(150, 200)
    transform = TrainTransform(64, crop_scale_min=0.2)
    areas, lefts = [], []
    for number in NUMBERS:
        out = apply(transform, image, number).astype(float)
        # The gradient tells where the box lies.
        (left, right), (top, bottom) = out[32, [0, -1], 0], out[[0, -1], 32, 1]
        width, height = (right - left) * 64 / 63 / 200, (bottom - top) * 64 / 63 / 200
        areas.append(width * height)
        lefts.append(left / 200)
        assert 0.72 < width * 200 / (height * 150) < 1.39
    assert 0.17 < min(areas) < 0.3 and 0.85 < max(areas) < 1.05
    assert np.mean(areas) == pytest.approx(0.55, abs=0.07) and np.std(lefts) > 0.05


def test_a_crop_of_a_long_image_falls_back_to_its_centre():
    out = apply(TrainTransform(32, crop_scale_min=0.9), gradient(30, 600))
    # 40 of 600 columns, all 30 rows.
    assert out[16, 16, 0] == pytest.approx(100, abs=2)
    assert out[16, -1, 0] - float(out[16, 0, 0]) == pytest.approx(200 * 40 / 600, abs=2)
    assert out[-1, 16, 1] - float(out[0, 16, 1]) > 185


def test_strong_reduction_averages_instead_of_skipping_pixels():
    stripes = np.zeros((400, 400, 3), np.uint8)
    stripes[:, ::2] = 255
    for transform in (
        TrainTransform(50),
        TrainTransform(50, rotate_degrees=5),
        TrainTransform(50, crop_scale_min=0.9),
        EvalTransform(50),
    ):
        assert np.abs(apply(transform, stripes).astype(int) - 127).mean() < 12


# --- evaluation -------------------------------------------------------------------------------------


def test_evaluation_stretches_to_the_square_only_where_needed():
    image = gradient(48, 48)
    np.testing.assert_array_equal(apply(EvalTransform(48), image), image)
    assert np.abs(apply(EvalTransform(48), gradient(60, 30)).astype(int) - image).max() <= 3
    not_square = gradient(48, 40)
    assert np.abs(apply(EvalTransform((48, 40)), gradient(60, 30)).astype(int) - not_square).max() <= 3


@pytest.mark.parametrize("shape", [(100, 150), (150, 100), (64, 64), (32, 32)])
@pytest.mark.parametrize("size", [56, (56, 48), (40, 64)])
def test_evaluation_cuts_the_centre_after_resizing_the_shorter_side(shape, size):
    out = apply(EvalTransform(size, resize=64), gradient(*shape)).astype(float)
    high, wide = out.shape[:2]
    share_x, share_y = wide * min(shape) / 64 / shape[1], high * min(shape) / 64 / shape[0]
    for channel, share, line in ((0, share_x, out[high // 2]), (1, share_y, out[:, wide // 2])):
        assert line[:, channel].mean() == pytest.approx(100, abs=2)
        seen = share * (1 - 1 / len(line))  # from the centre of the first pixel to that of the last
        assert line[-1, channel] - line[0, channel] == pytest.approx(200 * seen, abs=4)


@pytest.mark.parametrize("shape", [(1, 65000), (65000, 1), (1, 1)])
def test_evaluation_of_a_thread_like_image_stays_small(shape):
    """Scaled as a whole, it would take 12.8 GB: only its middle is."""
    image = np.full((*shape, 3), 7, np.uint8)
    image[:9, :9] = 9
    assert (apply(EvalTransform(224, resize=256), image) == (7 if max(shape) > 1 else 9)).all()


@pytest.mark.parametrize(
    ("height", "width", "new_height", "new_width"),
    [
        (375, 500, 224, 224),
        (1, 5000, 224, 224),
        (90, 60, 112, 112),
    ],
)
def test_resizing_is_pillows_bilinear(height, width, new_height, new_width):
    image = np.random.default_rng(0).integers(0, 256, (height + 2, width + 3, 3), np.uint8)[2:, 3:]
    wanted = np.asarray(Image.fromarray(image.copy()).resize((new_width, new_height), Image.Resampling.BILINEAR))
    out = np.empty((new_height, new_width, 3), np.uint8)
    assert resized(image, new_width, new_height, out) is out
    assert np.abs(out.astype(int) - wanted).max() <= 1


def photograph(height: int, width: int) -> np.ndarray:
    """Noise whose amplitude falls with frequency, as that of photographs does."""
    rng = np.random.default_rng(1)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]) + 1 / width
    spectrum = np.fft.rfft2(rng.normal(size=(3, height, width))) / frequency**1.2
    image = np.fft.irfft2(spectrum, s=(height, width)).transpose(1, 2, 0)
    return np.ascontiguousarray(np.clip(127 + 50 * image / image.std(), 0, 255).astype(np.uint8))


def made_from(encoded: bytes, transform, plan_K: np.ndarray, **change) -> np.ndarray:
    """The square, from what the transform needs, or from all of the image at another factor."""
    out = np.empty((*transform.shape, 3), np.uint8)

    def need(height, width):
        return Need(height, **change) if change else transform.need(height, width, plan_K)

    memory = Memory(*transform.shape)
    transform(memory.fitted(encoded) or decode_part(encoded, "here", memory, need), plan_K, out)
    return out


@pytest.mark.parametrize("options", [{"scale": 0.3, "shear_degrees": 20}, {"crop_scale_min": 0.3}])
@pytest.mark.parametrize("shape", [(600, 800), (375, 501), (997, 641)])
def test_a_jpeg_is_decoded_smaller_where_nobody_sees_it(shape, options):
    encoded = simplejpeg.encode_jpeg(photograph(*shape), 95, colorspace="RGB")
    transform = TrainTransform(64, flip=True, **options)
    factors, errors = [], []
    for plan_K in transform.plan(np.arange(16)):
        factors.append(transform.need(*shape, plan_K).factor)
        difference = made_from(encoded, transform, plan_K).astype(float) - made_from(
            encoded, transform, plan_K, factor=1
        )
        errors.append(np.sqrt(np.mean(difference**2)))
    assert max(factors) > 1 and set(factors) <= {1, 2, 4}
    # Noise alone leaves 1, another grid on the way or a shift by half a pixel 5; another part of the picture 50.
    assert np.median(errors) < 5 and max(errors) < 9


@pytest.mark.parametrize("subsampling", ["444", "422", "420", "440", "411", "Gray"])
@pytest.mark.parametrize("seed", range(3))
def test_rows_below_the_crop_are_not_missed(subsampling, seed):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(100, 300, 2)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    if subsampling == "Gray":
        image = np.ascontiguousarray(image[:, :, :1])
    colours = "GRAY" if subsampling == "Gray" else "RGB"
    encoded = simplejpeg.encode_jpeg(image, 90, colorspace=colours, colorsubsampling=subsampling)
    whole = decode(encoded, "here")
    for rows in (1, 15, 16, 17, 64, 90, int(height) - 1, int(height)):
        part = decode_part(encoded, "here", Memory(), lambda height, width, rows=rows: Need(rows))
        assert (part.height, part.width) == (height, width)
        assert len(part.image_HWC) >= rows
        np.testing.assert_array_equal(part.image_HWC[:rows], whole[:rows])
    assert len(part.image_HWC) == height and rows == height


def test_a_crop_needs_no_more_than_its_rows():
    transform = TrainTransform(32, crop_scale_min=0.08)
    encoded = simplejpeg.encode_jpeg(photograph(300, 300), 90, colorspace="RGB")
    seen = set()
    for plan_K in transform.plan(np.arange(30)):
        _, top, _, height = transform.box(300, 300, plan_K)
        part = decode_part(encoded, "here", Memory(), lambda *size, plan_K=plan_K: transform.need(*size, plan_K))
        seen.add(part.image_HWC.shape[0] * part.factor < 290)
        assert part.image_HWC.shape[0] * part.factor >= top + height
    assert seen == {True, False}


def test_an_early_end_is_noticed_though_its_rows_are_not_needed():
    encoded = simplejpeg.encode_jpeg(photograph(300, 300), 90, colorspace="RGB")
    decode_part(encoded, "here", Memory(), lambda *_: Need(40))
    for cut in (len(encoded) - 3, len(encoded) // 2):
        with pytest.raises(DamagedSampleError, match="here: damaged image"):
            decode_part(encoded[:cut], "here", Memory(), lambda *_: Need(40))


@pytest.mark.process
def test_threads_that_load_start_no_teams_of_their_own():
    """PyTorch's copy of a cut-out picture would, one for each thread."""
    code = """
import threading, numpy as np, psutil, torch
from megaclass.data.augment import resized

torch.set_num_threads(8)
torch.ones(1000, 1000).sum()  # the team of this thread
image = np.zeros((600, 800, 3), np.uint8)
before, within = psutil.Process().num_threads(), []

def load():
    resized(image[50:500, 70:700], 224, 224)
    within.append(psutil.Process().num_threads())

thread = threading.Thread(target=load)
thread.start(), thread.join()
assert within == [before + 1], (before, within)
"""
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": "src"}, check=True)
