"""Images that cost a JPEG decoder what photographs cost it.

Noise, or one colour, decodes several times slower or faster than a photograph of the same size. So these have
what a decoder notices of photographs: opaque things of all sizes before one another, their radii by the law that
makes a picture look the same at any scale ("dead leaves": Lee, Mumford, Huang, Int. J. Comput. Vision 41, 2001),
with texture of a 1/f spectrum, through a lens that blurs a little.

Shapes: H, W = size of an image, C = 3 channels (RGB).
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
import simplejpeg

from megaclass.parallel.seeding import derive_key

_BLUR_PX = 0.8
_SMALLEST, _LARGEST = 1 / 60, 1 / 2  # radius of a leaf, in shares of the longer side
_TEXTURE_SPREAD = 0.35  # standard deviation of its logarithm from image to image: files differ in size


@dataclass(frozen=True, kw_only=True)
class Look:
    """leaves: how many things are in the picture. texture: its standard deviation in grey values."""

    height: int
    width: int
    leaves: int
    texture: float
    quality: int
    subsampling: str


def encoded_photograph(look: Look, seed: int, number: int) -> bytes:
    """The JPEG of image ``number``: the same bytes on any machine with the same libraries."""
    generator = np.random.default_rng(derive_key("photograph", seed, number))
    image_HWC = _leaves(look, generator) + _texture(look, generator)
    image_HWC = cv2.GaussianBlur(image_HWC, (0, 0), _BLUR_PX)
    pixels_HWC = np.clip(image_HWC, 0, 255).astype(np.uint8)
    encoded: bytes = simplejpeg.encode_jpeg(
        pixels_HWC, look.quality, colorspace="RGB", colorsubsampling=look.subsampling
    )
    return encoded


def _leaves(look: Look, generator: np.random.Generator) -> np.ndarray:
    """Ellipses before one another, float32 HxWxC."""
    count, longer = look.leaves, max(look.height, look.width)
    image_HWC = np.empty((look.height, look.width, 3), np.float32)
    image_HWC[:] = generator.uniform(40, 200, 3)
    # As many radii between r and r + dr as r^-3 dr: their inverse squares are uniform.
    radii = longer / np.sqrt(generator.uniform(_LARGEST**-2, _SMALLEST**-2, count))
    colours = generator.normal(115, 55, (count, 1)) + generator.normal(0, 18, (count, 3))
    centres = generator.uniform((0, 0), (look.width, look.height), (count, 2))
    roundness, degrees = generator.uniform(0.4, 1, count), generator.uniform(0, 180, count)
    for radius, colour, centre, ratio, angle in zip(
        radii.tolist(),
        colours.tolist(),
        centres.tolist(),
        roundness.tolist(),
        degrees.tolist(),
        strict=True,
    ):
        cv2.ellipse(image_HWC, (centre, (2 * radius, 2 * radius * ratio), angle), colour, -1)
    return image_HWC


def _texture(look: Look, generator: np.random.Generator) -> np.ndarray:
    """Noise with an amplitude of 1/f, most of it grey, float32 HxWxC."""
    amplitude = look.texture * math.exp(_TEXTURE_SPREAD * generator.normal())
    grey_HW = _one_over_f(look, generator)
    colour_HWC = np.stack([_one_over_f(look, generator) for _ in range(3)], axis=2)
    texture_HWC: np.ndarray = amplitude * (grey_HW[:, :, None] + 0.3 * colour_HWC)
    return texture_HWC.astype(np.float32)


def _one_over_f(look: Look, generator: np.random.Generator) -> np.ndarray:
    """HxW of standard deviation 1."""
    frequency = np.hypot(np.fft.fftfreq(look.height)[:, None], np.fft.rfftfreq(look.width)[None, :])
    frequency = np.maximum(frequency, 1 / max(look.height, look.width))
    real, imaginary = generator.normal(size=(2, *frequency.shape))
    noise_HW = np.fft.irfft2((real + 1j * imaginary) / frequency, s=(look.height, look.width))
    normed: np.ndarray = noise_HW / noise_HW.std()
    return normed
