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
from megaclass.data.augment import uniforms

_LEVELS = {"randaugment": 30, "trivialaugment": 30, "timm": 10}  # the largest magnitude
_LUMA_3 = np.array([0.299, 0.587, 0.114])
_BYTES_256 = np.arange(256.0)
_ERASE_TRIES = 10  # as torchvision's RandomErasing
_ERASED_AREA = (0.02, 0.33)
_ERASED_LOG_ASPECT = (math.log(0.3), math.log(3.3))


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
        self._settings = settings
        self._kind = settings.policy
        self._is_timm = self._kind == "timm"
        self._count = 1 if self._kind == "trivialaugment" else settings.policy_ops
        self._fill = tuple(middle) if self._is_timm else (0, 0, 0)
        ranges = _ranges(self._kind, image_size)
        self._operations = [_OPERATIONS[name] for name in ranges]
        self._low_O, self._high_O = np.array(list(ranges.values())).T
        self._whole_O = np.array([name.startswith("translate") and not self._is_timm for name in ranges])
        self._signed_O = np.array([name in _SIGNED for name in ranges])
        self._seed = seed
        self.columns = 2 * self._count

    def plan(self, sample_numbers_N: np.ndarray) -> np.ndarray:
        """Columns, for each operation: its number, and its argument. Number 0 changes nothing."""
        draws_NL4 = uniforms(self._seed, sample_numbers_N, 4 * self._count).reshape(-1, self._count, 4)
        which_NL, magnitude_NL, sign_NL, use_NL = np.moveaxis(draws_NL4, 2, 0)
        first = int(self._is_timm)  # timm leaves operations out, and has none that changes nothing
        which_NL = first + (which_NL * (len(self._operations) - first)).astype(np.int64)
        most = _LEVELS[self._kind]
        if self._kind == "trivialaugment":
            magnitude_NL = np.floor(magnitude_NL * (most + 1))
        else:
            deviation = self._settings.policy_std
            normal_NL = torch.special.ndtri(torch.from_numpy(magnitude_NL)).numpy() if deviation else 0.0
            magnitude_NL = np.full(which_NL.shape, self._settings.policy_magnitude) + deviation * normal_NL
        low_NL, high_NL = self._low_O[which_NL], self._high_O[which_NL]
        argument_NL = low_NL + (high_NL - low_NL) * np.clip(magnitude_NL / most, 0, 1)
        argument_NL *= np.where(self._signed_O[which_NL] & (sign_NL < 0.5), -1, 1)
        argument_NL = np.where(self._whole_O[which_NL], np.trunc(argument_NL), argument_NL)
        if self._is_timm:
            which_NL = np.where(use_NL < 0.5, which_NL, 0)
        return np.stack([which_NL, argument_NL], axis=2).reshape(len(draws_NL4), -1)

    def __call__(self, image_SSC: np.ndarray, plan_K: np.ndarray) -> None:
        """Change the uint8 image as planned, in place. Releases the GIL; any thread may call."""
        for which, argument in plan_K.reshape(-1, 2).tolist():
            self._operations[int(which)](image_SSC, argument, self._fill)


class Erasing:
    """Paints a box over a share of the images, of the colour ``middle`` (R, G, B), which normalisation makes 0: random
    erasing (Zhong et al., AAAI 2020, section 3.2) with torchvision's areas, 0.02 to 0.33, and aspects, 0.3 to 3.3."""

    columns = 4

    def __init__(self, probability: float, image_size: int, middle: Sequence[int], seed: int) -> None:
        self._probability = probability
        self._size = image_size
        self._middle = tuple(middle)
        self._seed = seed

    def plan(self, sample_numbers_N: np.ndarray) -> np.ndarray:
        """Columns: top, bottom, left and right of the box, which may be empty."""
        draws_NK = uniforms(self._seed, sample_numbers_N, 3 + 2 * _ERASE_TRIES)
        area_NT = self._size**2 * _between(_ERASED_AREA, draws_NK[:, 3::2])
        aspect_NT = np.exp(_between(_ERASED_LOG_ASPECT, draws_NK[:, 4::2]))
        side_NT2 = np.sqrt(np.stack([area_NT * aspect_NT, area_NT / aspect_NT], axis=2)).round()
        fits_NT = (side_NT2 < self._size).all(axis=2)
        side_N2 = side_NT2[np.arange(len(draws_NK)), fits_NT.argmax(axis=1)]
        erased_N = (draws_NK[:, 0] < self._probability) & fits_NT.any(axis=1)
        side_N2 *= erased_N[:, None]
        begin_N2 = np.floor(draws_NK[:, 1:3] * (self._size - side_N2 + 1))
        return np.stack([begin_N2, begin_N2 + side_N2], axis=2).reshape(-1, 4)

    def __call__(self, image_SSC: np.ndarray, plan_K: np.ndarray) -> None:
        top, bottom, left, right = plan_K.astype(int).tolist()
        image_SSC[top:bottom, left:right] = self._middle


def _between(bounds: tuple[float, float], draws: np.ndarray) -> np.ndarray:
    return bounds[0] + (bounds[1] - bounds[0]) * draws


# -- operations -------------------------------------------------------------------------------------------
# Each changes a uint8 image in place: (image_SSC, argument, what is outside the image).

_Fill = tuple[int, ...]
_Operation = Callable[[np.ndarray, float, _Fill], None]


def _moved(rows: Callable[[float, float], Sequence[Sequence[float]]]) -> _Operation:
    """Of the map from a place in the new image to that in the old one: 2 x 3, in pixels from the middle."""

    def operation(image_SSC: np.ndarray, argument: float, fill: _Fill) -> None:
        size = image_SSC.shape[0]
        matrix_23 = np.array(rows(argument, size / 2), float)
        # Pixel i is at i + 0.5, and OpenCV has it at i.
        middle = (size - 1) / 2
        matrix_23[:, 2] += middle - matrix_23[:, :2].sum(1) * middle
        cv2.warpAffine(
            image_SSC.copy(),
            matrix_23,
            (size, size),
            dst=image_SSC,
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=fill,
        )

    return operation


def _turned(degrees: float, half: float) -> Sequence[Sequence[float]]:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return [[cos, -sin, 0], [sin, cos, 0]]


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
    range_C = high_C - low_C
    scale_C = np.where(range_C > 0, 255 / np.maximum(range_C, 1), 1.0)
    return _BYTES_256[:, None] * scale_C - np.where(range_C > 0, low_C * scale_C, 0.0)


def _equalised(image_SSC: np.ndarray, _: float) -> np.ndarray:
    """Values of each channel about equally often, by the rule of Pillow's ImageOps.equalize."""
    counts_256C = _counts(image_SSC).astype(np.int64)
    last_C = 255 - (counts_256C > 0)[::-1].argmax(0)
    step_C = (counts_256C.sum(0) - counts_256C[last_C, range(3)]) // 255
    before_256C = counts_256C.cumsum(0) - counts_256C
    even_256C = (before_256C + step_C // 2) // np.maximum(step_C, 1)
    return np.where(step_C > 0, even_256C, _BYTES_256[:, None])


def _coloured(image_SSC: np.ndarray, change: float, fill: _Fill) -> None:
    cv2.transform(image_SSC, (1 + change) * np.eye(3) - change * _LUMA_3, dst=image_SSC)


def _sharpened(image_SSC: np.ndarray, change: float, fill: _Fill) -> None:
    """Away from the mean of 3 x 3 pixels, the middle one five times, by 1 + change; pixels at the border stay."""
    kernel = np.full((3, 3), -change / 13)
    kernel[1, 1] = 1 + change * 8 / 13
    inner = cv2.filter2D(image_SSC, -1, kernel)[1:-1, 1:-1]
    image_SSC[1:-1, 1:-1] = inner


_OPERATIONS: dict[str, _Operation] = {
    "identity": lambda image_SSC, argument, fill: None,
    "shear_x": _moved(lambda by, half: [[1, by, by * half], [0, 1, 0]]),  # about the upper left corner
    "shear_y": _moved(lambda by, half: [[1, 0, 0], [by, 1, by * half]]),
    "translate_x": _moved(lambda by, half: [[1, 0, by], [0, 1, 0]]),
    "translate_y": _moved(lambda by, half: [[1, 0, 0], [0, 1, by]]),
    "rotate": _moved(_turned),
    "brightness": _looked_up(lambda image_SSC, change: (1 + change) * _BYTES_256),
    "colour": _coloured,
    "contrast": _looked_up(_contrasted),
    "sharpness": _sharpened,
    "posterize": _looked_up(
        lambda image_SSC, bits: _BYTES_256 // 2 ** (8 - math.ceil(bits)) * 2 ** (8 - math.ceil(bits))
    ),
    "solarize": _looked_up(
        lambda image_SSC, least: np.where(least > _BYTES_256, _BYTES_256, 255 - _BYTES_256)
    ),
    "solarize_add": _looked_up(lambda image_SSC, add: _BYTES_256 + (_BYTES_256 < 128) * math.floor(add)),
    "autocontrast": _looked_up(_stretched),
    "equalize": _looked_up(_equalised),
    "invert": _looked_up(lambda image_SSC, _: 255 - _BYTES_256),
}
# Either way, each in half of the cases.
_SIGNED = {
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
    "brightness",
    "colour",
    "contrast",
    "sharpness",
}


def _ranges(kind: str, size: int) -> dict[str, tuple[float, float]]:
    """The operations of a policy, with their arguments at no magnitude and at the largest: pixels, degrees, changes of
    a factor from 1, bits, least values. They are torchvision's (transforms/autoaugment.py) and timm's
    (data/auto_augment.py)."""
    wide = kind == "trivialaugment"
    shear, turn, factor = (0.99, 135.0, 0.99) if wide else (0.3, 30.0, 0.9)
    shift = {"randaugment": 150 / 331 * size, "trivialaugment": 32.0, "timm": 0.45 * size}[kind]
    ranges = {"identity": 0.0, "shear_x": shear, "shear_y": shear, "translate_x": shift, "translate_y": shift}
    ranges |= {
        "rotate": turn,
        "brightness": factor,
        "colour": factor,
        "contrast": factor,
        "sharpness": factor,
    }
    ranges |= {"autocontrast": 0.0, "equalize": 0.0}
    if kind == "timm":
        more = {
            "solarize_add": (0.0, 110.0),
            "invert": (0.0, 0.0),
            "posterize": (4.0, 0.0),
            "solarize": (256.0, 0.0),
        }
    else:  # bits are rounded up
        more = {"posterize": (7.5, 1.5 if wide else 3.5), "solarize": (255.0, 0.0)}
    return {name: (0.0, high) for name, high in ranges.items()} | more
