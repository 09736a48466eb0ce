"""The images and pairs of a ``.bin`` file, as InsightFace's ``load_bin`` takes them.

Shapes: P = pairs, N = different images, H, W = height and width of a stored image.
"""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from megaclass.data.dataset import DamagedSampleError, Sample
from megaclass.data.storedfile import StoredFile, unreadable
from megaclass.data.verification_bin.allowed_types import Array, Buffer, RefusedError, kind_of
from megaclass.data.verification_bin.unpickle import unpickle
from megaclass.errors import UserError

# A face of 4 x 3 pixels has more, and so has any image file: what a file can cost to open is bounded by its size.
_LEAST_BYTES = 32
# How a pickle of two lists begins (the mark of its protocol, a tuple or a list), or one that names a function.
_START = re.compile(rb"[\x80(\]]|c[\w.]+\n[\w.]+\n")


class VerificationBin:
    """A pickle of ``(images, same)``: images 2i and 2i + 1 are pair i, and ``same[i]`` says of one identity.

    An image is an encoded file (bytes, or a uint8 array of them as OpenCV's ``imencode`` gives it) or pixels:
    uint8 (H, W, 3), RGB, or (H, W), which are read as an image file without loss. Answers are booleans, or whole
    numbers 0 and 1, Python's or NumPy's. A pickle may be of Python 2 or 3 and any protocol; it is never trusted,
    see :mod:`megaclass.data.verification_bin.unpickle`.

    The public sets repeat an image in each pair that shows it. Here it counts once: the dataset is the
    different images in order of their first pair, N of them, so that none is decoded and embedded twice.
    ``first`` and ``second``, int64 (P,), say which make pair i, and ``same``, bool (P,), what they show. There
    are no classes: every label is 0. ``name`` is the file's name without suffix.

    Images stay in the file, which is kept open. Reading is safe from several threads. Raises UserError for a
    file that holds anything else.
    """

    num_classes = 1

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.name = self.path.stem
        if not self.path.is_file():
            raise UserError(f"{self.path}: no such file; give a .bin verification set")
        self._file = StoredFile(self.path)
        if self._file.size == 0:
            raise UserError(f"{self.path} is an empty file; copy it again")
        try:
            with open(self._file.descriptor, "rb", closefd=False) as file:
                content = unpickle(file)
            images, self.same = _images_and_answers(content, self._fetch)
            self._images, self._positions, numbers = _different(images, self._fetch)
        except OSError as error:
            raise unreadable(self.path, error) from None
        except RefusedError as refused:
            if not _START.match(self._file.read_at(0, 256)):
                raise UserError(
                    f"{self.path} is no pickle, and so no verification set; give a .bin as lfw.bin"
                ) from None
            raise UserError(f"{self.path}: not read as a verification set: {refused}") from None
        self.first, self.second = numbers[0::2], numbers[1::2]

    def __reduce__(self) -> tuple[type["VerificationBin"], tuple[Path]]:
        return VerificationBin, (self.path,)  # another process opens the file anew

    def __len__(self) -> int:
        return len(self._images)

    def read(self, index: int) -> Sample:
        """Return image ``index``, encoded: pixels as BMP. DamagedSampleError if the file was cut meanwhile."""
        image = self._images[index]
        try:
            stored = self._fetch(_bytes_of(image))
        except (OSError, RefusedError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise DamagedSampleError(f"{self.describe(index)}: {why}; copy the file again") from None
        if not isinstance(image, Array) or not _is_pixels(image):
            return Sample(stored, 0)
        pixels = image.numpy(stored)
        ordered = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR) if pixels.shape[2:] == (3,) else pixels
        return Sample(cv2.imencode(".bmp", ordered)[1].tobytes(), 0)

    def labels(self) -> np.ndarray:
        """Zeros, int64 of shape (N,)."""
        return np.zeros(len(self), dtype=np.int64)

    def describe(self, index: int) -> str:
        position = self._positions[index]
        return f"{self.path} image {position} (of pair {position // 2})"

    def _fetch(self, stored: Buffer) -> bytes:
        if isinstance(stored, bytes):
            return stored
        found = self._file.read_at(stored.offset, stored.count)
        if len(found) < stored.count:
            raise RefusedError("the file was cut short while it was in use")
        return found


_Fetch = Callable[[Buffer], bytes]


def _images_and_answers(content: Any, fetch: _Fetch) -> tuple[list[Buffer | Array], np.ndarray]:
    if type(content) not in (tuple, list) or len(content) != 2:
        raise RefusedError(f"it holds {kind_of(content)}, not the pair (images, same)")
    images, answers = content
    all_in_one = isinstance(images, Array) and len(images.shape) == 4
    if type(images) not in (tuple, list) and not all_in_one:
        raise RefusedError(f"its images are {kind_of(images)}, not a list")
    same = _answers(answers, fetch)
    count = images.shape[0] if all_in_one else len(images)
    if len(same) == 0 or count != 2 * len(same):
        raise RefusedError(f"it has {count:,} images for {len(same):,} pairs, which take two each")
    if all_in_one:
        images = _rows(images)
    for position, image in enumerate(images):
        if not isinstance(image, Buffer) and not (
            isinstance(image, Array) and (_is_pixels(image) or _is_encoded(image))
        ):
            raise RefusedError(
                f"image {position} is {kind_of(image)}; it takes encoded bytes, or pixels as uint8 (H, W, 3) or (H, W)"
            )
        if len(_bytes_of(image)) < _LEAST_BYTES:
            raise RefusedError(f"image {position} has {len(_bytes_of(image))} bytes, too few for an image")
    return list(images), same


def _rows(images: Array) -> list[Array]:
    if images.fortran:
        raise RefusedError(
            "its images are one array in Fortran's order; write it with numpy.ascontiguousarray(images)"
        )
    if len(images.data) < _LEAST_BYTES * images.shape[0]:
        raise RefusedError(f"its images are {kind_of(images)}, too few bytes for an image each")
    return images.rows()


def _answers(answers: Any, fetch: _Fetch) -> np.ndarray:
    if isinstance(answers, Array) and len(answers.shape) == 1:
        numbers = answers.numpy(fetch(answers.data))
        wrong = np.flatnonzero((numbers != 0) & (numbers != 1))
        if len(wrong):
            raise RefusedError(f"answer {wrong[0]} is a number other than true, false, 0 or 1")
        return numbers.astype(np.bool_)
    if type(answers) not in (tuple, list):
        raise RefusedError(f"its answers are {kind_of(answers)}, not a list")
    for position, answer in enumerate(answers):
        if type(answer) not in (bool, int) or answer not in (0, 1):
            raise RefusedError(f"answer {position} is {kind_of(answer)} other than true, false, 0 or 1")
    return np.array(answers, dtype=np.bool_)


def _is_encoded(image: Array) -> bool:
    """A row or a column of bytes: OpenCV gives the one or the other, by its version."""
    return _is_uint8(image) and sum(size > 1 for size in image.shape) == 1 and len(image.shape) <= 2


def _is_pixels(image: Array) -> bool:
    shape = image.shape
    return _is_uint8(image) and (
        (len(shape) == 2 and min(shape) > 1) or (len(shape) == 3 and shape[2] in (1, 3))
    )


def _is_uint8(image: Array) -> bool:
    return image.dtype is not None and image.dtype.name == "u1"


def _bytes_of(image: Buffer | Array) -> Buffer:
    return image.data if isinstance(image, Array) else image


def _different(
    images: list[Buffer | Array], fetch: _Fetch
) -> tuple[list[Buffer | Array], list[int], np.ndarray]:
    """The different images in order of appearance, the position of each, and of every image its number among them."""
    digests: dict[int, bytes] = {}  # by identity: what is mentioned again and again is hashed once
    known: dict[tuple[Any, ...], int] = {}
    positions: list[int] = []
    numbers = np.empty(len(images), dtype=np.int64)
    for position, image in enumerate(images):
        stored = _bytes_of(image)
        if (digest := digests.get(id(stored))) is None:
            digest = digests[id(stored)] = hashlib.blake2b(fetch(stored), digest_size=16).digest()
        # An array's shape tells one image from another of the same bytes.
        key = (digest, image.shape, image.fortran) if isinstance(image, Array) else (digest,)
        numbers[position] = known.setdefault(key, len(positions))
        if numbers[position] == len(positions):
            positions.append(position)
    return [images[position] for position in positions], positions, numbers
