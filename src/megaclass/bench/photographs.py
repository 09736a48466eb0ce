"""The images that loaders are measured with: files of a set, or photographs that are made.

Noise, or one colour, decodes several times slower or faster than a photograph of the same size. So those that are made
have what a decoder notices of photographs: opaque things of all sizes before one another, their radii by the law that
makes a picture look the same at any scale ("dead leaves": Lee, Mumford, Huang, Int. J. Comput. Vision 41, 2001),
with texture of a 1/f spectrum, through a lens that blurs a little.

Shapes: H, W = size of an image, C = 3 channels (RGB), K = fields of noise.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import simplejpeg

from megaclass.data.dataset import Sample
from megaclass.data.decode import JPEG_START, check_header
from megaclass.data.open import open_dataset
from megaclass.data.records.writer import RecordWriter
from megaclass.errors import UserError
from megaclass.parallel.seeding import derive_key

_CLASSES = 10  # of made images
_BLUR_PX = 0.8
_SMALLEST, _LARGEST = 1 / 60, 1 / 2  # radius of a leaf, in shares of the longer side
_TEXTURE_SPREAD = 0.35  # standard deviation of its logarithm from image to image: files differ in size


@dataclass(frozen=True, kw_only=True)
class Look:
    height: int
    width: int
    leaves: int  # how many things are in the picture
    texture: float  # its standard deviation in grey values
    quality: int
    subsampling: str
    other_sizes: bool  # whether images of a set may have another size


LOOKS = {
    "face": Look(height=112, width=112, leaves=60, texture=8.0, quality=95, subsampling="420", other_sizes=False),
    # As most of ImageNet: quality 96, no chroma subsampling (counted in all its files, "Compression in the ImageNet
    # Dataset", terryalanunlimited.com, 2021), about 110 KB, 500 x 375 more often than any other size.
    "photograph": Look(
        height=375, width=500, leaves=250, texture=15.0, quality=96, subsampling="444", other_sizes=True
    ),
}


def write_images(
    directory: Path, kind: str, count: int, *, data: str = "", seed: int = 0, threads: int = 1
) -> dict[str, str | float]:
    """Write ``count`` JPEG files as ``directory/folder``, a directory a class, and as records in ``directory/records``,
    the same samples in the same order; returns what a row says of them.

    They are photographs of this kind that are made, or samples of the set ``data`` at even distances. Raises UserError
    for a set that cannot be measured: with an image that is no JPEG, or of a size that the kind does not take.
    """
    look = LOOKS[kind]
    if data:
        dataset = open_dataset(data)
        count = min(count, len(dataset))
        indices = [place * len(dataset) // count for place in range(count)]
        samples = [dataset.read(index) for index in indices]
        pixels = [_checked(one.encoded, dataset.describe(i), look) for i, one in zip(indices, samples, strict=True)]
    else:
        with ThreadPoolExecutor(threads) as pool:
            made = pool.map(partial(encoded_photograph, look, seed), range(count))
            samples = [Sample(jpeg, number % _CLASSES) for number, jpeg in enumerate(made)]
        pixels = [look.height * look.width] * count
    # Grouped by class and numbered, as a folder has them: sample i is the same in both.
    samples.sort(key=lambda sample: sample.label)
    number_of = {label: number for number, label in enumerate(dict.fromkeys(one.label for one in samples))}
    # Keys from 0 and nothing but images, as DALI's reader wants it.
    with RecordWriter(directory / "records", index_record=False) as writer:
        for number, sample in enumerate(samples):
            label = number_of[sample.label]
            folder = directory / "folder" / f"{label:010d}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number:010d}.jpg").write_bytes(sample.encoded)
            writer.write(sample.encoded, label)
    return {
        "data": Path(data).name if data else "made",
        "distinct_images": count,
        "image_bytes": round(sum(len(sample.encoded) for sample in samples) / count),
        "image_pixels": round(sum(pixels) / count),
    }


def _checked(encoded: bytes, where: str, look: Look) -> int:
    """The number of pixels."""
    if not encoded.startswith(JPEG_START):
        raise UserError(f"--data: {where} is no JPEG, the one format that all loaders read; name another set")
    height, width = check_header(encoded, where)
    if not look.other_sizes and (height, width) != (look.height, look.width):
        raise UserError(
            f"--data: {where} has {width} x {height} pixels, and the workload only flips images of {look.width} x "
            f"{look.height}; name another set or --workload imagenet"
        )
    return height * width


def encoded_photograph(look: Look, seed: int, number: int) -> bytes:
    """The JPEG of image ``number``: the same bytes on any machine with the same libraries."""
    generator = np.random.default_rng(derive_key("photograph", seed, number))
    image_HWC = _leaves(look, generator) + _texture(look, generator)
    image_HWC = cv2.GaussianBlur(image_HWC, (0, 0), _BLUR_PX)
    pixels_HWC = np.clip(image_HWC, 0, 255).astype(np.uint8)
    return bytes(simplejpeg.encode_jpeg(pixels_HWC, look.quality, colorsubsampling=look.subsampling))


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
    for leaf in range(count):
        axes = (2 * float(radii[leaf]), 2 * float(radii[leaf] * roundness[leaf]))
        box = (centres[leaf].tolist(), axes, float(degrees[leaf]))
        cv2.ellipse(image_HWC, box, colours[leaf].tolist(), -1)
    return image_HWC


def _texture(look: Look, generator: np.random.Generator) -> np.ndarray:
    """Noise with an amplitude of 1/f, most of it grey, float32 HxWxC."""
    amplitude = look.texture * math.exp(_TEXTURE_SPREAD * generator.normal())
    frequency = np.hypot(np.fft.fftfreq(look.height)[:, None], np.fft.rfftfreq(look.width)[None, :])
    frequency = np.maximum(frequency, 1 / max(look.height, look.width))
    real, imaginary = generator.normal(size=(4, 2, *frequency.shape)).swapaxes(0, 1)
    noise_KHW = np.fft.irfft2((real + 1j * imaginary) / frequency, s=(look.height, look.width))
    noise_KHW /= noise_KHW.std(axis=(1, 2), keepdims=True)
    grey_HW, colour_HWC = noise_KHW[0], np.moveaxis(noise_KHW[1:], 0, 2)
    return (amplitude * (grey_HW[:, :, None] + 0.3 * colour_HWC)).astype(np.float32)
