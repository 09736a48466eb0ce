"""Random changes of photographs as recipes for ImageNet name them: RandAugment, TrivialAugment and random erasing.

The operations are Pillow's, as torchvision and timm call them, to a step of 255; here each is one pass of OpenCV over
bytes. What differs: timm interpolates half of what it turns and moves bicubically, here all is bilinear. As for the
geometry in :mod:`megaclass.data.augment`, randomness is a function of (seed, global sample number) alone, planned for a
whole batch at once.

Shapes: N = samples, K = numbers a sample, L = operations a sample, S = image size, C = 3.
"""

import math
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch

from megaclass.config.sections import Augment
from megaclass.data.augment import uniforms, within

_LUMA_3 = np.array([0.299, 0.587, 0.114])
_BILINEAR = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
_BYTES_256 = np.arange(256.0)


class Policy:
    """``policy_ops`` operations of a list, each drawn evenly, one after the other, in place. With ``policy`` as

    - ``randaugment``: torchvision's RandAugment (Cubuk et al., 2019), all at magnitude ``policy_magnitude`` of 30;
    - ``trivialaugment``: torchvision's TrivialAugmentWide (Müller and Hutter, ICCV 2021): one operation, whose
      magnitude is drawn as well;
    - ``timm``: timm's ``rand-mM-mstdS-inc1``, of the A1, A2 and A3 of "ResNet strikes back" (Wightman et al., 2021):
      the magnitude is normal about ``policy_magnitude`` of 10 with the deviation ``policy_std``, and each operation is
      left out in half of the cases.

    What is turned or moved in from outside is black, with ``timm`` of the colour ``middle`` (R, G, B).
    """

    def __init__(self, settings: Augment, image_size: int, middle: Sequence[int], seed: int) -> None:
        self._kind, self._magnitude, self._std = (
            settings.policy,
            settings.policy_magnitude,
            settings.policy_std,
        )
        self._is_timm = self._kind == "timm"
        self._count = 1 if self._kind == "trivialaugment" else settings.policy_ops
        self._fill = tuple(middle) if self._is_timm else (0, 0, 0)
        ranges = _ranges(self._kind, image_size)
        self._operations = [_OPERATIONS[name] for name in ranges]
        self._low_O, self._high_O = np.array(list(ranges.values())).T
        self._whole_O = np.array([name.startswith("translate") and not self._is_timm for name in ranges])
        self._both_ways_O = np.array([name not in _ONE_WAY for name in ranges])
        self._seed = seed
        self.columns = 2 * self._count

    def plan(self, sample_numbers_N: np.ndarray) -> np.ndarray:
        """Columns, for each operation: its number, and its argument. Number 0 changes nothing."""
        draws_NL4 = uniforms(self._seed, sample_numbers_N, 4 * self._count).reshape(-1, self._count, 4)
        which_NL, level_NL, way_NL, use_NL = np.moveaxis(draws_NL4, 2, 0)
        first = int(self._is_timm)  # timm leaves operations out, and has none that changes nothing
        which_NL = first + (which_NL * (len(self._operations) - first)).astype(np.int64)
        if self._kind == "trivialaugment":
            level_NL = np.floor(level_NL * 31) / 30
        else:
            normal_NL = torch.special.ndtri(torch.from_numpy(level_NL).clamp_min(1e-300)).numpy()
            level_NL = (self._magnitude + self._std * normal_NL) / (10 if self._is_timm else 30)
        low_NL, high_NL = self._low_O[which_NL], self._high_O[which_NL]
        argument_NL = low_NL + (high_NL - low_NL) * np.clip(level_NL, 0, 1)
        argument_NL *= np.where(self._both_ways_O[which_NL] & (way_NL < 0.5), -1, 1)
        argument_NL = np.where(self._whole_O[which_NL], np.trunc(argument_NL), argument_NL)
        which_NL = np.where(self._is_timm & (use_NL >= 0.5), 0, which_NL)
        return np.stack([which_NL, argument_NL], axis=2).reshape(-1, self.columns)

    def __call__(self, image_SSC: np.ndarray, plan_K: np.ndarray) -> None:
        """Change the uint8 image as planned, in place. Releases the GIL; any thread may call."""
        for which, argument in plan_K.reshape(-1, 2).tolist():
            self._operations[int(which)](image_SSC, argument, self._fill)


class Erasing:
    """Paints a box over a share of the images, of the colour ``middle`` (R, G, B), which normalisation makes 0: random
    erasing (Zhong et al., AAAI 2020, section 3.2) with torchvision's areas, 0.02 to 0.33, and aspects, 0.3 to 3.3."""

    columns = 4

    def __init__(self, probability: float, image_size: int, middle: Sequence[int], seed: int) -> None:
        self._probability, self._size, self._middle, self._seed = probability, image_size, middle, seed

    def plan(self, sample_numbers_N: np.ndarray) -> np.ndarray:
        """Columns: top, bottom, left and right of the box, which may be empty."""
        draws_NK = uniforms(self._seed, sample_numbers_N, 3 + 2 * 10)  # ten tries (T), as torchvision
        area_NT = self._size**2 * within((0.02, 0.33), draws_NK[:, 3::2])
        aspect_NT = np.exp(within((math.log(0.3), math.log(3.3)), draws_NK[:, 4::2]))
        side_NT2 = np.sqrt(np.stack([area_NT * aspect_NT, area_NT / aspect_NT], axis=2)).round()
        fits_NT = (side_NT2 < self._size).all(axis=2) & (draws_NK[:, :1] < self._probability)
        side_N2 = side_NT2[np.arange(len(draws_NK)), fits_NT.argmax(axis=1)] * fits_NT.any(axis=1)[:, None]
        begin_N2 = np.floor(draws_NK[:, 1:3] * (self._size - side_N2 + 1))
        return np.stack([begin_N2, begin_N2 + side_N2], axis=2).reshape(-1, 4)

    def __call__(self, image_SSC: np.ndarray, plan_K: np.ndarray) -> None:
        top, bottom, left, right = plan_K.astype(int).tolist()
        image_SSC[top:bottom, left:right] = self._middle


# -- operations -------------------------------------------------------------------------------------------
# Each changes a uint8 image in place: (image_SSC, argument, what is outside the image).

_Fill = tuple[int, ...]
_Operation = Callable[[np.ndarray, float, _Fill], object]


def _moved(rows: Callable[[float, float], Sequence[Sequence[float]]]) -> _Operation:
    """Of the 2 x 3 map from a place in the new image to that in the old one; pixel i covers [i, i + 1)."""

    def operation(image_SSC: np.ndarray, argument: float, fill: _Fill) -> None:
        size = image_SSC.shape[0]
        matrix_23 = np.array(rows(argument, size / 2), float)
        matrix_23[:, 2] += (matrix_23[:, :2].sum(1) - 1) / 2  # OpenCV has the middle of pixel i at i
        border = cv2.BORDER_CONSTANT
        cv2.warpAffine(image_SSC.copy(), matrix_23, (size, size), image_SSC, _BILINEAR, border, fill)

    return operation


def _turned(degrees: float, half: float) -> Sequence[Sequence[float]]:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return [[cos, -sin, half * (1 - cos + sin)], [sin, cos, half * (1 - sin - cos)]]


def _looked_up(table: Callable[[np.ndarray, float], np.ndarray]) -> _Operation:
    """Of the new value of each old one, (256,) or (256, C); fractions are cut off."""

    def operation(image_SSC: np.ndarray, argument: float, fill: _Fill) -> None:
        bytes_ = np.clip(table(image_SSC, argument), 0, 255).astype(np.uint8)
        cv2.LUT(image_SSC, bytes_.reshape(1, 256, -1), dst=image_SSC)

    return operation


def _contrasted(image_SSC: np.ndarray, change: float) -> np.ndarray:
    grey = math.floor(np.dot(cv2.mean(image_SSC)[:3], _LUMA_3) + 0.5)
    return grey + (1 + change) * (_BYTES_256 - grey)


def _counts(image_SSC: np.ndarray) -> np.ndarray:
    """How often each value occurs in each channel, (256, C)."""
    counts = [cv2.calcHist([image_SSC], [channel], None, [256], [0, 256]).ravel() for channel in range(3)]
    return np.stack(counts, axis=1)


def _stretched(image_SSC: np.ndarray, _: float) -> np.ndarray:
    """Each channel from 0 to 255."""
    present_256C = _counts(image_SSC) > 0
    low_C, high_C = present_256C.argmax(0), 255 - present_256C[::-1].argmax(0)
    stretched_256C = (_BYTES_256[:, None] - low_C) * 255 / np.maximum(high_C - low_C, 1)
    return np.where(high_C > low_C, stretched_256C, _BYTES_256[:, None])


def _equalised(image_SSC: np.ndarray, _: float) -> np.ndarray:
    """Values of each channel about equally often, by the rule of Pillow's ImageOps.equalize."""
    counts_256C = _counts(image_SSC).astype(np.int64)
    last_C = 255 - (counts_256C > 0)[::-1].argmax(0)
    step_C = (counts_256C.sum(0) - counts_256C[last_C, range(3)]) // 255
    before_256C = counts_256C.cumsum(0) - counts_256C
    even_256C = (before_256C + step_C // 2) // np.maximum(step_C, 1)
    return np.where(step_C > 0, even_256C, _BYTES_256[:, None])


def _sharpened(image_SSC: np.ndarray, change: float, fill: _Fill) -> None:
    """Away from the mean of 3 x 3 pixels, the middle one five times, by 1 + change; pixels at the border stay."""
    kernel = np.full((3, 3), -change / 13)
    kernel[1, 1] = 1 + change * 8 / 13
    image_SSC[1:-1, 1:-1] = cv2.filter2D(image_SSC, -1, kernel)[1:-1, 1:-1]


_OPERATIONS: dict[str, _Operation] = {
    "identity": lambda *_: None,
    "shear_x": _moved(lambda by, half: [[1, by, 0], [0, 1, 0]]),
    "shear_y": _moved(lambda by, half: [[1, 0, 0], [by, 1, 0]]),
    "translate_x": _moved(lambda by, half: [[1, 0, by], [0, 1, 0]]),
    "translate_y": _moved(lambda by, half: [[1, 0, 0], [0, 1, by]]),
    "rotate": _moved(_turned),
    "brightness": _looked_up(lambda _, change: (1 + change) * _BYTES_256),
    "colour": lambda image_SSC, change, _: cv2.transform(
        image_SSC, (1 + change) * np.eye(3) - change * _LUMA_3, image_SSC
    ),
    "contrast": _looked_up(_contrasted),
    "sharpness": _sharpened,
    "posterize": _looked_up(lambda _, bits: _BYTES_256 - _BYTES_256 % 2 ** (8 - math.ceil(bits))),
    "solarize": _looked_up(lambda _, least: np.where(least > _BYTES_256, _BYTES_256, 255 - _BYTES_256)),
    "solarize_add": _looked_up(lambda _, add: _BYTES_256 + (_BYTES_256 < 128) * math.floor(add)),
    "autocontrast": _looked_up(_stretched),
    "equalize": _looked_up(_equalised),
    "invert": _looked_up(lambda _, argument: 255 - _BYTES_256),
}
# Of all others the argument is negative in half of the cases.
_ONE_WAY = {"posterize", "solarize", "solarize_add"}


def _ranges(kind: str, size: int) -> dict[str, tuple[float, float]]:
    """The operations of a policy, with their arguments at no magnitude and at the largest: pixels, degrees, changes of
    a factor from 1, bits (rounded up), least values. They are torchvision's (transforms/autoaugment.py) and timm's
    (data/auto_augment.py)."""
    wide, is_timm = kind == "trivialaugment", kind == "timm"
    shift = 32.0 if wide else size * (0.45 if is_timm else 150 / 331)
    ranges = dict.fromkeys(("identity", "autocontrast", "equalize"), (0.0, 0.0))
    ranges |= dict.fromkeys(("brightness", "colour", "contrast", "sharpness"), (0.0, 0.99 if wide else 0.9))
    ranges |= dict.fromkeys(("shear_x", "shear_y"), (0.0, 0.99 if wide else 0.3))
    ranges |= dict.fromkeys(("translate_x", "translate_y"), (0.0, shift))
    ranges |= {"rotate": (0.0, 135.0 if wide else 30.0)}
    if is_timm:
        ranges |= {"invert": (0.0, 0.0), "solarize_add": (0.0, 110.0)}
        return ranges | {"posterize": (4.0, 0.0), "solarize": (256.0, 0.0)}
    return ranges | {"posterize": (7.5, 1.5 if wide else 3.5), "solarize": (255.0, 0.0)}
