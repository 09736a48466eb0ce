"""Verification sets in a ``.bin`` file, as InsightFace's ``load_bin`` takes them: read and written.

Shapes: P = pairs, N = different images.
"""

import pickle
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megaclass.data import plain_pickle
from megaclass.data.dataset import Sample, Unlabelled
from megaclass.data.plain_pickle import Array, RefusedError
from megaclass.errors import UserError
from megaclass.files import read_regular

# The first protocol that holds bytes as they are: InsightFace's load_bin reads it in any Python 3.
PROTOCOL = 4
# Any image file has more: what a file can cost to open is bounded by its size.
_LEAST_BYTES = 32
# It is read whole; the largest public sets have a tenth of it.
MAX_BYTES = 1 << 30


class VerificationBin(Unlabelled):
    """A pickle of ``(images, same)``: images 2i and 2i + 1 are pair i, and ``same[i]`` says of one identity.

    An image is an encoded file: bytes, or a uint8 array of them as OpenCV's ``imencode`` gives it. Answers are
    booleans, or whole numbers 0 and 1, Python's or NumPy's. A pickle may be of Python 2 or 3 and any protocol; it is
    never trusted, see :mod:`megaclass.data.plain_pickle`.

    The public sets repeat an image in each pair that shows it. Here it counts once: the dataset is the
    different images in order of their first pair, N of them, so that none is decoded and embedded twice.
    ``first`` and ``second``, int64 (P,), say which make pair i, and ``same``, bool (P,), what they show;
    ``positions``, int64 (N,), where each is first among the file's images. ``name`` is the file's name without suffix.

    The different images are held in memory, encoded. Raises UserError for a file that holds anything else.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.name = self.path.stem
        try:
            images, self.same = _images_and_answers(plain_pickle.load(read_regular(self.path, MAX_BYTES)))
        except OSError as error:
            raise UserError(
                f"{self.path}: no such file, or none that can be read ({error.strerror}); give a .bin verification set"
            ) from None
        except RefusedError as refused:
            raise UserError(f"{self.path}: not read as a verification set: {refused}") from None
        number_of: dict[bytes, int] = {}
        known: dict[int, int] = {}  # by identity: what is mentioned again and again is looked at once
        for image in images:
            if id(image) not in known:
                known[id(image)] = number_of.setdefault(bytes(image), len(number_of))
        self._images = list(number_of)
        numbers = np.array([known[id(image)] for image in images], np.int64)
        self.positions = np.unique(numbers, return_index=True)[1]
        self.first, self.second = numbers[0::2], numbers[1::2]

    def __len__(self) -> int:
        return len(self._images)

    def read(self, index: int) -> Sample:
        """Return image ``index``, encoded."""
        return Sample(self._images[index], 0)

    def describe(self, index: int) -> str:
        position = self.positions[index]
        return f"{self.path} image {position} (of pair {position // 2})"


def _images_and_answers(content: Any) -> tuple[list[bytes | bytearray], np.ndarray]:
    if type(content) not in (tuple, list) or len(content) != 2:
        raise RefusedError("it does not hold the pair (images, same)")
    images, same = content
    if isinstance(same, Array):
        same = same.values_N.tolist()
    if type(same) not in (tuple, list) or not all(type(one) in (bool, int) and one in (0, 1) for one in same):
        raise RefusedError("its answers are no list of true and false, or of 1 and 0")
    if type(images) not in (tuple, list) or not same or len(images) != 2 * len(same):
        raise RefusedError(f"it does not hold a list of two images for each of {len(same):,} pairs")
    stored: list[Any] = [
        image.data if isinstance(image, Array) and image.values_N.dtype == np.uint8 else image for image in images
    ]
    for position, image in enumerate(stored):
        if type(image) not in (bytes, bytearray) or len(image) < _LEAST_BYTES:
            raise RefusedError(f"image {position} is no encoded image: bytes, or a uint8 array of them")
    return stored, np.array(same, dtype=np.bool_)


def write_bin(path: str | Path, images: Iterable[bytes], same: Sequence[bool]) -> None:
    """Write pairs of encoded images, 2i and 2i + 1 being pair i, with ``same[i]`` true for one identity.

    An object that occurs several times among the ``images`` is stored once; readers do not see a difference.
    All images are held in memory.
    """
    with Path(path).open("xb") as file:
        pickle.dump((list(images), [bool(answer) for answer in same]), file, protocol=PROTOCOL)
