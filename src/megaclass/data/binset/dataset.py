"""The images and pairs of a ``.bin`` file, as InsightFace's ``load_bin`` takes them.

Shapes: P = pairs, N = different images, H, W = height and width of a stored image.
"""

import hashlib
import mmap
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from megaclass.data.binset.standins import Buffer, ByteArray, RefusedError, kind_of
from megaclass.data.binset.unpickle import unpickle
from megaclass.data.dataset import Sample
from megaclass.errors import UserError


class VerificationBin:
    """A pickle of ``(images, same)``: images 2i and 2i + 1 are pair i, and ``same[i]`` says of one identity.

    An image is an encoded file (bytes, or a uint8 array of them as OpenCV's ``imencode`` gives it) or pixels:
    uint8 (H, W, 3), RGB, or (H, W), which are read as an image file without loss. A pickle may be of Python 2
    or 3 and any protocol; it is never trusted, see :mod:`megaclass.data.binset.unpickle`.

    The public sets repeat an image in each pair that shows it. Here it counts once: the dataset is the
    different images in order of their first pair, N of them, so that none is decoded and embedded twice.
    ``first`` and ``second``, int64 (P,), say which make pair i, and ``same``, bool (P,), what they show. There
    are no classes: every label is 0. ``name`` is the file's name without suffix.

    The file is mapped, not loaded. Reading is safe from several threads. Raises UserError for a file that
    holds anything else.
    """

    num_classes = 1

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.name = self.path.stem
        try:
            content = unpickle(_mapped(self.path))
            images, self.same = _images_and_answers(content)
            self._images, numbers = _different(images)
        except RefusedError as refused:
            raise UserError(f"{self.path}: not read as a verification set: {refused}") from None
        self.first, self.second = numbers[0::2], numbers[1::2]
        self._positions = np.unique(numbers, return_index=True)[1]

    def __reduce__(self) -> tuple[type["VerificationBin"], tuple[Path]]:
        return VerificationBin, (self.path,)  # another process maps the file anew

    def __len__(self) -> int:
        return len(self._images)

    def read(self, index: int) -> Sample:
        """Return image ``index``, encoded: pixels as BMP."""
        image = self._images[index]
        if not isinstance(image, ByteArray):
            return Sample(bytes(image), 0)
        if not _is_pixels(image):
            return Sample(image.array().tobytes(), 0)
        pixels = image.array()
        ordered = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR) if pixels.ndim == 3 else pixels
        return Sample(cv2.imencode(".bmp", ordered)[1].tobytes(), 0)

    def labels(self) -> np.ndarray:
        """Zeros, int64 of shape (N,)."""
        return np.zeros(len(self), dtype=np.int64)

    def describe(self, index: int) -> str:
        position = int(self._positions[index])
        return f"{self.path} image {position} (of pair {position // 2})"


def _mapped(path: Path) -> mmap.mmap:
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a .bin verification set")
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; mend that and try again") from None
    except ValueError:
        raise UserError(f"{path} is an empty file; copy it again") from None


def _images_and_answers(content: Any) -> tuple[list[Buffer | ByteArray], np.ndarray]:
    if type(content) not in (tuple, list) or len(content) != 2:
        raise RefusedError(f"it holds {kind_of(content)}, not the pair (images, same)")
    images, answers = content
    if isinstance(images, ByteArray) and len(images.shape) == 4:
        images = [_row(images, index) for index in range(images.shape[0])]
    if type(images) not in (tuple, list):
        raise RefusedError(f"its images are {kind_of(images)}, not a list")
    for position, image in enumerate(images):
        if isinstance(image, Buffer) and len(image):
            continue
        if not (isinstance(image, ByteArray) and (_is_pixels(image) or _is_encoded(image))):
            raise RefusedError(
                f"image {position} is {kind_of(image)}; it takes encoded bytes, or pixels as uint8 (H, W, 3) or (H, W)"
            )
    same = _answers(answers)
    if len(same) == 0 or len(images) != 2 * len(same):
        raise RefusedError(f"it has {len(images):,} images for {len(same):,} pairs, which take two each")
    return list(images), same


def _answers(answers: Any) -> np.ndarray:
    if isinstance(answers, ByteArray) and len(answers.shape) == 1:
        answers = answers.array().tolist()
    if type(answers) not in (tuple, list):
        raise RefusedError(f"its answers are {kind_of(answers)}, not a list")
    for position, answer in enumerate(answers):
        if type(answer) not in (bool, int) or answer not in (0, 1):
            raise RefusedError(f"answer {position} is {kind_of(answer)} other than true, false, 0 or 1")
    return np.array(answers, dtype=np.bool_)


def _is_encoded(image: ByteArray) -> bool:
    """A row or a column of bytes: OpenCV gives the one or the other, by its version."""
    return _is_uint8(image) and sum(size > 1 for size in image.shape) == 1 and len(image.shape) <= 2


def _is_pixels(image: ByteArray) -> bool:
    shape = image.shape
    return _is_uint8(image) and (
        (len(shape) == 2 and min(shape) > 1) or (len(shape) == 3 and shape[2] in (1, 3))
    )


def _is_uint8(image: ByteArray) -> bool:
    return image.dtype is not None and image.dtype.name == "u1"


def _row(images: ByteArray, index: int) -> ByteArray:
    """One image of an array of them."""
    pixels = images.array()[index]
    return ByteArray(pixels.tobytes(), images.dtype, pixels.shape)


def _different(images: list[Buffer | ByteArray]) -> tuple[list[Buffer | ByteArray], np.ndarray]:
    """The different images in order of appearance, and for each image its number among them."""
    known: dict[tuple[bytes, tuple[int, ...]], int] = {}
    kept: list[Buffer | ByteArray] = []
    numbers = np.empty(len(images), dtype=np.int64)
    for position, image in enumerate(images):
        stored = image.data if isinstance(image, ByteArray) else image
        assert stored is not None
        # An array's shape tells one image from another of the same bytes.
        shape = (*image.shape, image.fortran) if isinstance(image, ByteArray) else ()
        key = (hashlib.blake2b(stored, digest_size=16).digest(), shape)
        numbers[position] = known.setdefault(key, len(kept))
        if numbers[position] == len(kept):
            kept.append(image)
    return kept, numbers
