"""Verification sets in a ``.bin`` file, as InsightFace's ``load_bin`` takes them: read and written.

Shapes: P = pairs, N = different images, H, W = height and width of a stored image.
"""

import contextlib
import hashlib
import os
import pickle
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from megaclass.data import plain_pickle
from megaclass.data.dataset import Sample
from megaclass.data.plain_pickle import Array, RefusedError
from megaclass.errors import UserError, make_room

# The first protocol that holds bytes as they are: InsightFace's load_bin reads it in any Python 3.
PROTOCOL = 4
# A face of 4 x 3 pixels has more, and so has any image file: what a file can cost to open is bounded by its size.
_LEAST_BYTES = 32


class VerificationBin:
    """A pickle of ``(images, same)``: images 2i and 2i + 1 are pair i, and ``same[i]`` says of one identity.

    An image is an encoded file (bytes, or a uint8 array of them as OpenCV's ``imencode`` gives it) or pixels:
    uint8 (H, W, 3), RGB, or (H, W), which are read as an image file without loss. Answers are booleans, or whole
    numbers 0 and 1, Python's or NumPy's. A pickle may be of Python 2 or 3 and any protocol; it is never trusted,
    see :mod:`megaclass.data.plain_pickle`.

    The public sets repeat an image in each pair that shows it. Here it counts once: the dataset is the
    different images in order of their first pair, N of them, so that none is decoded and embedded twice.
    ``first`` and ``second``, int64 (P,), say which make pair i, and ``same``, bool (P,), what they show. There
    are no classes: every label is 0. ``name`` is the file's name without suffix.

    The different images are held in memory, encoded. Raises UserError for a file that holds anything else.
    """

    num_classes = 1

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.name = self.path.stem
        if not self.path.is_file():
            raise UserError(f"{self.path}: no such file; give a .bin verification set")
        try:
            content = self.path.read_bytes()
        except OSError as error:
            raise UserError(
                f"{self.path} cannot be read: {error.strerror}; mend that and try again"
            ) from None
        try:
            images, self.same = _images_and_answers(plain_pickle.load(content))
        except RefusedError as refused:
            raise UserError(f"{self.path}: not read as a verification set: {refused}") from None
        self._images, self._positions, numbers = _different(images)
        self.first, self.second = numbers[0::2], numbers[1::2]

    def __len__(self) -> int:
        return len(self._images)

    def read(self, index: int) -> Sample:
        """Return image ``index``, encoded: pixels as BMP."""
        image = self._images[index]
        if not isinstance(image, Array) or not _is_pixels(image):
            return Sample(bytes(_bytes_of(image)), 0)
        pixels = image.numpy()
        ordered = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR) if pixels.shape[2:] == (3,) else pixels
        return Sample(cv2.imencode(".bmp", ordered)[1].tobytes(), 0)

    def labels(self) -> np.ndarray:
        """Zeros, int64 of shape (N,)."""
        return np.zeros(len(self), dtype=np.int64)

    def describe(self, index: int) -> str:
        position = self._positions[index]
        return f"{self.path} image {position} (of pair {position // 2})"


_Image = bytes | bytearray | Array


def _images_and_answers(content: Any) -> tuple[list[_Image], np.ndarray]:
    if type(content) not in (tuple, list) or len(content) != 2:
        raise RefusedError("it does not hold the pair (images, same)")
    images, same = content[0], _answers(content[1])
    if type(images) not in (tuple, list) or len(same) == 0 or len(images) != 2 * len(same):
        count = len(images) if type(images) in (tuple, list) else "no list of"
        raise RefusedError(f"it has {count} images for {len(same):,} pairs, which take two each")
    for position, image in enumerate(images):
        if isinstance(image, Array):
            sound = _is_pixels(image) or _is_encoded(image)
        else:
            sound = type(image) in (bytes, bytearray)
        if not sound or len(_bytes_of(image)) < _LEAST_BYTES:
            raise RefusedError(
                f"image {position} is neither encoded bytes, nor pixels as uint8 (H, W, 3) or (H, W)"
            )
    return list(images), same


def _answers(answers: Any) -> np.ndarray:
    if isinstance(answers, Array) and len(answers.shape) == 1:
        answers = answers.numpy().tolist()
    if type(answers) not in (tuple, list):
        raise RefusedError("its answers are no list")
    for position, answer in enumerate(answers):
        if type(answer) not in (bool, int) or answer not in (0, 1):
            raise RefusedError(f"answer {position} is other than true, false, 0 or 1")
    return np.array(answers, dtype=np.bool_)


def _is_encoded(image: Array) -> bool:
    """A row or a column of bytes: OpenCV gives the one or the other, by its version."""
    return _is_uint8(image) and sum(size > 1 for size in image.shape) == 1 and len(image.shape) <= 2


def _is_pixels(image: Array) -> bool:
    shape = image.shape
    flat, channels = len(shape) == 2 and min(shape) > 1, len(shape) == 3 and shape[2] in (1, 3)
    return _is_uint8(image) and (flat or channels)


def _is_uint8(image: Array) -> bool:
    return image.dtype is not None and image.dtype.name == "u1"


def _bytes_of(image: _Image) -> bytes | bytearray:
    return image.data if isinstance(image, Array) else image


def _different(images: list[_Image]) -> tuple[list[_Image], list[int], np.ndarray]:
    """The different images in order of appearance, the position of each, and of every image its number among them."""
    digests: dict[int, bytes] = {}  # by identity: what is mentioned again and again is hashed once
    known: dict[tuple[Any, ...], int] = {}
    positions: list[int] = []
    numbers = np.empty(len(images), dtype=np.int64)
    for position, image in enumerate(images):
        stored = _bytes_of(image)
        if (digest := digests.get(id(stored))) is None:
            digest = digests[id(stored)] = hashlib.blake2b(stored, digest_size=16).digest()
        # An array's shape tells one image from another of the same bytes.
        key = (digest, image.shape, image.fortran) if isinstance(image, Array) else (digest,)
        numbers[position] = known.setdefault(key, len(positions))
        if numbers[position] == len(positions):
            positions.append(position)
    return [images[position] for position in positions], positions, numbers


def write_bin(path: str | Path, images: Iterable[bytes], same: Sequence[bool]) -> None:
    """Write pairs of encoded images, 2i and 2i + 1 being pair i, with ``same[i]`` true for one identity.

    An object that occurs several times among the ``images`` is stored once; readers do not see a difference.
    All images are held in memory. The file appears whole or not at all, and none is overwritten: UserError.
    """
    path = Path(path)
    stored, answers = list(images), [bool(answer) for answer in same]
    if len(stored) != 2 * len(answers) or not answers:
        raise ValueError(f"{len(stored)} images for {len(answers)} pairs")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        if path.exists():
            raise FileExistsError
        with part.open("xb") as file:
            pickle.dump((stored, answers), file, protocol=PROTOCOL)
        if path.exists():  # another process wrote it meanwhile
            raise FileExistsError
        part.replace(path)
    except FileExistsError:
        raise UserError(f"{path} exists and is not overwritten; remove it or name another file") from None
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {error.strerror}; {make_room(error)}name another file"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
