import cv2
import numpy as np
import pytest

from megaclass.config import from_mapping
from megaclass.config.sections import Augment
from megaclass.data.decode import Decoded
from megaclass.data.policy import _OPERATIONS, Erasing, Policy, _ranges
from megaclass.train.batches import train_transform

SIZE = 32
NUMBERS = np.arange(20_000)
FILL = (10, 20, 30)
RAND = {"policy": "randaugment", "policy_ops": 3}
TRIVIAL = {"policy": "trivialaugment"}
TIMM = {"policy": "timm", "policy_magnitude": 7, "policy_std": 0.5}

NOISE = cv2.GaussianBlur(np.random.default_rng(0).normal(size=(SIZE, SIZE, 3)), (0, 0), 2)
PICTURE = cv2.normalize(NOISE, None, 20, 230, cv2.NORM_MINMAX).round().astype(np.uint8)
VALUES = PICTURE.astype(float)
LUMA = VALUES @ [0.299, 0.587, 0.114]
SMOOTH = cv2.filter2D(VALUES, -1, np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13)
SMOOTH[[0, -1]], SMOOTH[:, [0, -1]] = VALUES[[0, -1]], VALUES[:, [0, -1]]
MOVED = np.full_like(VALUES, FILL)
MOVED[:, :-5] = VALUES[:, 5:]
ROWS, COLUMNS = np.indices((SIZE, SIZE))


def apply(name, argument, image=PICTURE):
    out = image.copy()
    _OPERATIONS[name](out, argument, FILL)
    return out


def planned(size=SIZE, **settings):
    plan = Policy(Augment(**settings), size, FILL, seed=3).plan(NUMBERS)
    return plan.reshape(len(NUMBERS), -1, 2), list(_ranges(settings["policy"], size))


@pytest.mark.parametrize("name", sorted(_OPERATIONS.keys() - {"invert", "autocontrast", "equalize"}))
def test_without_magnitude_an_image_stays(name):
    np.testing.assert_array_equal(apply(name, {"posterize": 8, "solarize": 256}.get(name, 0)), PICTURE)


@pytest.mark.parametrize(
    "name, argument, expected",
    [
        ("brightness", -0.5, VALUES / 2),
        ("colour", -0.5, (VALUES + LUMA[..., None]) / 2),
        ("contrast", -0.5, (VALUES + LUMA.mean()) / 2),
        ("sharpness", -1, SMOOTH),
        ("posterize", 2.5, VALUES // 32 * 32),
        ("solarize", 100, np.where(VALUES < 100, VALUES, 255 - VALUES)),
        ("solarize_add", 50.5, np.where(VALUES < 128, VALUES + 50, VALUES)),
        ("autocontrast", 0, (VALUES - VALUES.min((0, 1))) * 255 / np.ptp(VALUES, (0, 1))),
        ("invert", 0, 255 - VALUES),
        ("rotate", 90, np.rot90(VALUES)),
        ("translate_x", 5, MOVED),
    ],
)
def test_an_operation_does_what_it_says(name, argument, expected):
    np.testing.assert_allclose(apply(name, argument), expected, atol=1)


def test_shears_are_about_the_corner_and_what_moves_rows_mirrors_what_moves_columns():
    slope = np.repeat((4 * COLUMNS)[..., None], 3, 2).astype(np.uint8)
    sheared, inside = 4 * (COLUMNS + 0.5 * (ROWS + 0.5)), COLUMNS + 0.5 * ROWS < SIZE - 2
    np.testing.assert_allclose(apply("shear_x", 0.5, slope)[inside, 0], sheared[inside], atol=1)
    for name in ("shear", "translate"):
        by_y = apply(f"{name}_y", 0.3, np.ascontiguousarray(np.swapaxes(PICTURE, 0, 1)))
        np.testing.assert_allclose(np.swapaxes(by_y, 0, 1).astype(int), apply(f"{name}_x", 0.3), atol=1)


def test_equalised_values_are_about_equally_often():
    values = np.sort(apply("equalize", 0).reshape(-1, 3), axis=0)
    np.testing.assert_allclose(values, np.linspace(0, 255, len(values))[:, None].repeat(3, 1), atol=12)
    np.testing.assert_array_equal(apply("equalize", 0, np.full_like(PICTURE, 77)), 77)


@pytest.mark.parametrize("settings, layers, share", [(RAND, 3, 1 / 14), (TRIVIAL, 1, 1 / 14), (TIMM, 2, 0.5 / 15)])
def test_operations_come_equally_often_each_way(settings, layers, share):
    plan, names = planned(**settings)
    assert plan.shape == (20_000, layers, 2)
    for layer in range(layers):
        found = np.bincount(plan[:, layer, 0].astype(int), minlength=len(names)) / len(plan)
        np.testing.assert_allclose(found, [1 - share * (len(names) - 1)] + [share] * (len(names) - 1), atol=0.01)
    assert np.mean(plan[plan[..., 0] == names.index("rotate")][:, 1] > 0) == pytest.approx(0.5, abs=0.05)


def test_magnitudes_are_those_of_the_recipes():
    def arguments(name, **settings):
        plan, names = planned(224, **settings)
        return plan[plan[..., 0] == names.index(name)][:, 1]

    assert set(np.abs(arguments("rotate", **RAND)).round(9)) == {9}
    assert set(np.abs(arguments("translate_x", **RAND))) == {30}  # int(9 / 30 * 150 / 331 * 224)
    np.testing.assert_allclose(np.unique(np.abs(arguments("rotate", **TRIVIAL))), np.arange(31) * 4.5)
    timm = np.abs(arguments("translate_y", **TIMM)) / (0.045 * 224)
    assert (timm.mean(), timm.std()) == (pytest.approx(7, abs=0.05), pytest.approx(0.5, abs=0.05))
    assert arguments("solarize", **TIMM | {"policy_std": 10}).min() == 0  # no further than 10 of 10


def test_what_is_drawn_never_changes():
    plan = Policy(Augment(**TIMM), 224, FILL, seed=1).plan([0, 10**12])
    np.testing.assert_allclose(plan, [[0, 0.2071874183, 3, 0.5825716042], [2, 0, 0, 0]], rtol=1e-6)
    assert Erasing(0.9, 224, FILL, seed=1).plan([0, 10**12]).tolist() == [
        [62, 140, 26, 201],
        [35, 82, 13, 153],
    ]


def test_boxes_are_erased_as_torchvision_does():
    boxes = Erasing(0.25, 100, FILL, seed=0).plan(NUMBERS)
    erased = boxes[boxes[:, 1] > boxes[:, 0]]
    height, width = erased[:, 1] - erased[:, 0], erased[:, 3] - erased[:, 2]
    area, aspect = height * width / 100**2, height / width
    assert len(erased) / len(boxes) == pytest.approx(0.25, abs=0.01)
    assert area.mean() == pytest.approx(0.172, abs=0.005)  # fewer of the largest: a long one of them does not fit
    assert area.min() > 0.018 and area.max() < 0.34 and aspect.min() > 0.27 and aspect.max() < 3.7


def test_a_run_has_policy_and_erasing_behind_the_geometry():
    data = {"source": "records", "path": "x", "image_size": SIZE, "normalise": "imagenet"}
    augment = TIMM | {"erase_probability": 1.0, "grey_probability": 1.0, "flip": True}
    transform = train_transform(from_mapping({"data": data, "augment": augment, "evaluate": {"task": "none"}}))
    plan_K, out = transform.plan(np.array([5]))[0], np.empty((SIZE, SIZE, 3), np.uint8)
    transform(Decoded.whole(PICTURE), plan_K, out)
    top, bottom, left, right = plan_K[4 + 15 : 4 + 15 + 4].astype(int)
    assert (out[top:bottom, left:right] == (124, 116, 104)).all() and bottom > top
    out[top:bottom, left:right] = 0
    assert np.ptp(out, axis=2).max() == 0  # grey elsewhere
