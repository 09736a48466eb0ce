"""Random and fixed geometry, from a decoded image of any size to the one that the model takes.

Randomness is a function of (seed, global sample number) alone: no state, so any worker on any rank draws the
same numbers for the same sample, and a resumed run draws what the uninterrupted one would have drawn.

A transform works in two steps, so that what can be vectorised is: ``plan_NK = transform.plan(numbers_N)``
for a whole batch, then ``transform(image_HWC, plan_K, out_SSC)`` for each image, in any thread.

Shapes: N = samples, K = numbers a sample, S = a side of what is made (height, width, if no square), H, W = size
of the decoded image, C = 3.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Protocol

import cv2
import numpy as np
import torch

from megaclass.data.decode import Decoded, Need
from megaclass.errors import UserError

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_CROP_TRIES = 10  # as torchvision's RandomResizedCrop
_CROP_LOG_ASPECT = math.log(4 / 3)
# From this reduction on (source pixels a target pixel) bilinear sampling alone would skip pixels.
_SHRINK_FIRST = 1.5
# So many decoded pixels a target pixel must a reduced JPEG leave: at 1 its own filter would be seen (35 dB).
_SHRINK_AFTER = 1.5
# Evaluation looks at the middle of a picture that is more than so many times as long as wide.
_LONGEST = 8


def _mixed(state: np.ndarray) -> np.ndarray:
    """The output function of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014), on uint64 with wrap-around."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def uniforms(seed: int, sample_numbers_N: np.ndarray, k: int) -> np.ndarray:
    """``k`` numbers in [0, 1) a sample, float64 (N, k). Column j does not depend on ``k``."""
    key = _mixed(np.array([seed & 0xFFFFFFFFFFFFFFFF], np.uint64) + _GOLDEN)
    stream_N = _mixed(key + np.asarray(sample_numbers_N).astype(np.uint64) * _GOLDEN)
    column_K = np.arange(1, k + 1, dtype=np.uint64) * _GOLDEN
    return (_mixed(stream_N[:, None] + column_K) >> np.uint64(11)) * 2.0**-53


def within(bounds: Sequence[float], draws: np.ndarray) -> np.ndarray:
    """Numbers in [0, 1) to the range from the lowest to the highest."""
    return bounds[0] + (bounds[1] - bounds[0]) * draws


class Transform(Protocol):
    """What the loader asks of a transform. Both methods are called from several threads."""

    shape: tuple[int, int]  # height and width of what it makes, pixels

    def plan(self, sample_numbers_N: np.ndarray) -> np.ndarray:
        """Everything random about these samples, float64 (N, K)."""
        ...

    def need(self, height: int, width: int, plan_K: np.ndarray) -> Need:
        """What it looks at of an image of this size: the rest need not be decoded.

        At a factor above 1 the square shows the same picture, moved by less than a pixel, with noise 46 dB below
        white on photographs.
        """
        ...

    def __call__(self, decoded: Decoded, plan_K: np.ndarray, out_SSC: np.ndarray) -> None:
        """Write the transformed uint8 image into ``out_SSC``, which may be the image itself."""
        ...


class Change(Protocol):
    """A change of pixel values: what it does to each of these samples, (N, columns), then to an image, in place."""

    columns: int

    def plan(self, sample_numbers_N: np.ndarray) -> np.ndarray: ...

    def __call__(self, image_SSC: np.ndarray, plan_K: np.ndarray) -> None: ...


class Composed:
    """A geometry, then changes of pixel values one after the other: a :class:`Transform`."""

    def __init__(self, geometry: Transform, changes: Sequence[Change]) -> None:
        self.shape = geometry.shape
        self._geometry = geometry
        self._changes = changes
        self._ends = list(itertools.accumulate(change.columns for change in changes))

    def plan(self, sample_numbers_N: np.ndarray) -> np.ndarray:
        """The columns of the changes, then those of the geometry."""
        planned = [change.plan(sample_numbers_N) for change in self._changes]
        return np.hstack([*planned, self._geometry.plan(sample_numbers_N)])

    def need(self, height: int, width: int, plan_K: np.ndarray) -> Need:
        return self._geometry.need(height, width, plan_K[self._ends[-1] :])

    def __call__(self, decoded: Decoded, plan_K: np.ndarray, out_SSC: np.ndarray) -> None:
        self._geometry(decoded, plan_K[self._ends[-1] :], out_SSC)
        for change, end in zip(self._changes, self._ends, strict=True):
            change(out_SSC, plan_K[end - change.columns : end])


class TrainTransform:
    """Random crop, turn, scale, shift, shear and flip, composed into one resampling of the image.

    ``rotate_degrees``, ``scale``, ``translate`` (share of the image) and ``shear_degrees`` are the largest
    changes either way, drawn uniformly; scale 0.15 is a factor from 0.85 to 1.15. ``stretch`` 0.2 is up to a
    fifth wider or higher, at the same area. ``crop_scale_min`` below 1
    crops a random share of the area between it and 1, of aspect 3/4 to 4/3, as torchvision's
    RandomResizedCrop does. ``flip`` mirrors half of the images.

    An image that is not square is stretched to the square unless it is cropped. Where only flips are asked
    for and the size fits, pixels are copied, not resampled. Outside the image its border goes on.
    """

    def __init__(
        self,
        image_size: int,
        *,
        flip: bool = False,
        rotate_degrees: float = 0.0,
        scale: float = 0.0,
        translate: float = 0.0,
        shear_degrees: float = 0.0,
        stretch: float = 0.0,
        crop_scale_min: float = 1.0,
        seed: int = 0,
    ) -> None:
        self.shape = (image_size, image_size)
        self._flip = flip
        self._seed = seed
        self._ranges = (
            math.radians(rotate_degrees),
            scale,
            translate,
            translate,
            math.radians(shear_degrees),
            math.log1p(stretch),
        )
        self._is_affine = any(self._ranges)
        self._most_enlarged = (1 + scale) * (1 + stretch) / math.cos(math.radians(shear_degrees))
        self._crop_scale_min = crop_scale_min
        self._resamples = self._is_affine or crop_scale_min < 1

    def plan(self, sample_numbers_N: np.ndarray) -> np.ndarray:
        """Columns: whether to flip; where images are resampled, also the output to source map (a, b, c, d and shift
        x, y) in shares of the image around its centre; place of the crop (x, y); area and aspect of each try at it."""
        if not self._resamples:
            return (uniforms(self._seed, sample_numbers_N, 1) < 0.5) & self._flip
        crops = self._crop_scale_min < 1
        draws_NK = uniforms(self._seed, sample_numbers_N, 9 + 2 * _CROP_TRIES if crops else 7)
        plan_NK = np.empty((len(draws_NK), 9 + 2 * _CROP_TRIES if crops else 7))
        flip_N = (draws_NK[:, 0] < 0.5) & self._flip
        ranges_6 = np.array(self._ranges)
        turn, scale, right, down, shear, stretch = (2 * draws_NK[:, 1:7] - 1).T * ranges_6[:, None]
        # The picture is sheared, stretched, scaled, turned, then shifted. The warp needs the way back:
        # source = (target - shift) @ turn^-1 @ scale^-1 @ stretch^-1 @ shear^-1, mirrored last.
        cos, sin, tan = np.cos(turn) / (1 + scale), np.sin(turn) / (1 + scale), np.tan(shear)
        sign = np.where(flip_N, -1.0, 1.0)
        wide, high = np.exp(-stretch), np.exp(stretch)  # as much wider as lower: the area stays
        c, d = -sin * high, cos * high
        a, b = sign * (cos * wide - tan * c), sign * (sin * wide - tan * d)
        plan_NK[:, :7] = np.stack([flip_N, a, b, c, d, -(a * right + b * down), -(c * right + d * down)], 1)
        plan_NK[:, 7:] = draws_NK[:, 7:]
        return plan_NK

    def need(self, height: int, width: int, plan_K: np.ndarray) -> Need:
        _, top, box_width, box_height = self.box(height, width, plan_K)
        # What is scaled up and stretched at once shows pixels so many times larger.
        factor = _reduction(box_height, box_width, self.shape[0] * self._most_enlarged)
        return Need(height if self._is_affine else top + box_height, factor)

    def __call__(self, decoded: Decoded, plan_K: np.ndarray, out_SSC: np.ndarray) -> None:
        image_HWC = decoded.image_HWC
        if self._resamples:
            if image_HWC is out_SSC:
                image_HWC = image_HWC.copy()  # resampling reads pixels again that it would have overwritten
            box = self.box(decoded.height, decoded.width, plan_K)
            left, top, width, height = (edge / decoded.factor for edge in box)
            if self._is_affine:
                self._warp(image_HWC, (left, top, width, height), plan_K[1:7], out_SSC)
                return
            columns, rows = slice(round(left), round(left + width)), slice(round(top), round(top + height))
            image_HWC = image_HWC[rows, columns]
        _fit(image_HWC, out_SSC, flip=bool(plan_K[0]))

    def box(self, height: int, width: int, plan_K: np.ndarray) -> tuple[int, int, int, int]:
        """(left, top, width, height) of what is shown of an image of this size, before it is turned."""
        return self._crop(height, width, plan_K[7:]) if self._crop_scale_min < 1 else (0, 0, width, height)

    def _crop(self, height: int, width: int, draws: np.ndarray) -> tuple[int, int, int, int]:
        """(left, top, width, height) of a random box, by torchvision's rule."""
        area = height * width
        for area_draw, aspect_draw in draws[2:].reshape(-1, 2).tolist():
            target = area * (self._crop_scale_min + (1 - self._crop_scale_min) * area_draw)
            aspect = math.exp((2 * aspect_draw - 1) * _CROP_LOG_ASPECT)
            w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
            if 0 < w <= width and 0 < h <= height:
                return int(draws[0] * (width - w + 1)), int(draws[1] * (height - h + 1)), w, h
        # No box fits a very long image: take the largest central one of an allowed aspect.
        w = min(width, max(1, round(height * 4 / 3)))
        h = min(height, max(1, round(width * 4 / 3)))
        return (width - w) // 2, (height - h) // 2, w, h

    def _warp(
        self,
        image_HWC: np.ndarray,
        box: tuple[float, float, float, float],
        map_6: np.ndarray,
        out_SSC: np.ndarray,
    ) -> None:
        size = self.shape[0]
        left, top, width, height = box
        shrink_x, shrink_y = max(1.0, width / size), max(1.0, height / size)
        if max(shrink_x, shrink_y) >= _SHRINK_FIRST:
            full_height, full_width = image_HWC.shape[:2]
            new_width, new_height = math.ceil(full_width / shrink_x), math.ceil(full_height / shrink_y)
            image_HWC = resized(image_HWC, new_width, new_height)
            shrink_x, shrink_y = full_width / new_width, full_height / new_height
            left, top, width, height = left / shrink_x, top / shrink_y, width / shrink_x, height / shrink_y
        a, b, c, d, x, y = map_6.tolist()
        per_x, per_y = width / size, height / size
        matrix_23 = np.array(
            [
                # Pixel i covers [i, i + 1), so its centre is i + 0.5 on both sides.
                [a * per_x, b * per_x, left + width * (0.5 + x) - 0.5 - (a + b) * per_x * (size - 1) / 2],
                [c * per_y, d * per_y, top + height * (0.5 + y) - 0.5 - (c + d) * per_y * (size - 1) / 2],
            ]
        )
        cv2.warpAffine(
            image_HWC,
            matrix_23,
            (size, size),
            dst=out_SSC,
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )


class EvalTransform:
    """The fixed way to ``size`` pixels: a square's side, or (height, width).

    ``resize`` > 0 scales the shorter side to ``resize`` and cuts out the middle, as torchvision's
    evaluation does (ImageNet: 256, then 224). ``resize`` = 0 stretches an image that does not have the size already.
    """

    def __init__(self, size: int | tuple[int, int], resize: int = 0) -> None:
        self.shape = (size, size) if isinstance(size, int) else size
        if 0 < resize < max(self.shape):
            raise UserError(f"resize: {resize} is too small to cut {max(self.shape)} pixels out; it must be 0, or more")
        self._resize = resize

    def plan(self, sample_numbers_N: np.ndarray) -> np.ndarray:
        return np.empty((len(sample_numbers_N), 0))

    def need(self, height: int, width: int, plan_K: np.ndarray) -> Need:
        return Need(height)  # what is reported comes from all pixels

    def __call__(self, decoded: Decoded, plan_K: np.ndarray, out_SSC: np.ndarray) -> None:
        image_HWC = decoded.image_HWC
        if not self._resize:
            _fit(image_HWC, out_SSC)
            return
        image_HWC = _shortened(image_HWC)
        height, width = image_HWC.shape[:2]
        short = min(height, width)
        height, width = self._resize * height // short, self._resize * width // short
        (high, wide), scaled = self.shape, resized(image_HWC, width, height)
        top, left = round((height - high) / 2), round((width - wide) / 2)
        out_SSC[...] = scaled[top : top + high, left : left + wide]


def _shortened(image_HWC: np.ndarray) -> np.ndarray:
    """The middle of a thread-like image: scaled as a whole, its long side would grow without bound."""
    height, width = image_HWC.shape[:2]
    most = _LONGEST * min(height, width)
    top, left = max(0, (height - most) // 2), max(0, (width - most) // 2)
    return image_HWC[top : top + most, left : left + most]


def _reduction(height: int, width: int, size: float) -> int:
    """The largest reduction that leaves enough pixels to resample from."""
    return next((factor for factor in (8, 4, 2) if min(height, width) >= _SHRINK_AFTER * factor * size), 1)


def _fit(image_HWC: np.ndarray, out_SSC: np.ndarray, flip: bool = False) -> None:
    """Copy the image, stretched if it has another size, mirrored if asked for."""
    if image_HWC.shape != out_SSC.shape:
        height, width = out_SSC.shape[:2]
        image_HWC = resized(image_HWC, width, height, out_SSC)
    if flip:
        # Not straight into a batch, which is in no cache: OpenCV writes backwards, which there takes thrice a copy.
        image_HWC = cv2.flip(image_HWC, 1, dst=out_SSC if image_HWC is out_SSC else None)
    if image_HWC is not out_SSC:
        out_SSC[...] = image_HWC


def resized(image_HWC: np.ndarray, width: int, height: int, out: np.ndarray | None = None) -> np.ndarray:
    """Resample to ``height`` x ``width``, into ``out`` if it is given; it must not share memory with the image.

    Bilinear, and over as many pixels as become one where that is a reduction: Pillow's bilinear filter, through which
    published ImageNet results see their images, to one step of 255. PyTorch has it in vector instructions: as fast as
    OpenCV's bilinear filter, which would skip pixels, and four times as fast as its mean over areas.
    """
    if out is None:
        out = np.empty((height, width, 3), np.uint8)
    # PyTorch would copy a cut-out picture with a team of threads of its own for every thread that loads.
    image_HWC = np.ascontiguousarray(image_HWC)
    _bilinear(_as_tensor(image_HWC), (height, width), False, None, None, out=_as_tensor(out))
    return out


_bilinear = torch.ops.aten._upsample_bilinear2d_aa.out  # torch.nn.functional.interpolate, without its `out`


def _as_tensor(image_HWC: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image_HWC).permute(2, 0, 1).unsqueeze(0)
