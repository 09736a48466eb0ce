"""Encoded image files to pixels.

JPEG, the one format of the large data sets, goes to simplejpeg; PNG, WebP, BMP, TIFF, PGM and its kin, and GIF to
OpenCV, of several pictures in a file the first. Both release the GIL. Whatever is stored becomes 8-bit RGB: grey is
repeated, CMYK converted, 16 bits cut to the upper 8, transparency dropped (the colour below it shows), as Pillow's
``convert("RGB")`` has it.

EXIF orientation is ignored: pixels come as they are stored, as torchvision's image folders give them, and so
as most published ImageNet results saw them. Aligned faces and rendered images have none.
"""

import functools
import io
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import numpy as np
import simplejpeg

from megaclass.data.dataset import DamagedSampleError
from megaclass.errors import first_line

# 300 MB once decoded. A few kilobytes of JPEG or PNG can claim billions of pixels; the header is looked at
# before anything is allocated. The largest photographs of ImageNet have 20 million.
MAX_PIXELS = 100_000_000

JPEG_START = b"\xff\xd8\xff"
# What OpenCV is given, by Pillow's names, and how such files begin.
_STARTS: dict[str, tuple[bytes, ...]] = {
    "PNG": (b"\x89PNG",),
    "WEBP": (b"RIFF",),
    "BMP": (b"BM",),
    "TIFF": (b"II*\0", b"MM\0*"),
    "PPM": tuple(b"P%d" % kind for kind in range(1, 7)),
    "GIF": (b"GIF8",),
}
_OPENCV_FLAGS = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION


class Need(NamedTuple):
    """What a transform looks at of an image: its first ``rows``, at 1/``factor`` (1, 2, 4 or 8) of its size."""

    rows: int
    factor: int = 1


class Decoded(NamedTuple):
    """An image, perhaps smaller and cut off below, and what it is of: height and width as stored."""

    image_HWC: np.ndarray
    height: int
    width: int
    factor: int = 1

    @classmethod
    def whole(cls, image_HWC: np.ndarray) -> "Decoded":
        """All of an image."""
        return cls(image_HWC, *image_HWC.shape[:2])


class Memory:
    """Where one thread decodes one picture at a time, into the same pages again and again.

    It begins at an odd address. libjpeg-turbo writes rows that begin at a multiple of 32 bytes (jdcolext-avx2.asm:
    vmovntdq) past the caches, and whoever looks at them next waits for main memory: 74 us for a face of 112 pixels in
    place of 57 (AMD EPYC, Zen 4).

    ``likely``: height and width that most pictures have.
    """

    def __init__(self, *likely: int) -> None:
        self._bytes_N = np.empty(0, np.uint8)
        self._likely_HWC = self.picture(*likely) if likely else None

    def picture(self, height: int, width: int) -> np.ndarray:
        """uint8 HxWx3, which holds anything; valid until the next call."""
        count = height * width * 3
        if count > len(self._bytes_N):
            self._bytes_N = np.empty(count + 1, np.uint8)[1:]  # NumPy's own addresses are multiples of 16
        return self._bytes_N[:count].reshape(height, width, 3)

    def fitted(self, encoded: bytes) -> Decoded | None:
        """A sound JPEG of the likely shape, or smaller; else None. What is larger is refused before it is decoded."""
        if self._likely_HWC is None or not encoded.startswith(JPEG_START):
            return None
        try:
            return Decoded.whole(simplejpeg.decode_jpeg(encoded, buffer=self._likely_HWC))
        except ValueError:
            return None  # too large, or damaged


def decode(encoded: bytes, where: str) -> np.ndarray:
    """Return the image as uint8 HxWx3, RGB.

    Raises DamagedSampleError, with ``where`` (file and record) in its one line, if the bytes are damaged, end
    early, are no known format, or claim more than ``MAX_PIXELS``.
    """
    return decode_part(encoded, where, Memory(), lambda height, width: Need(height)).image_HWC


def decode_part(encoded: bytes, where: str, memory: Memory, need: Callable[[int, int], Need]) -> Decoded:
    """:func:`decode`, but of a JPEG only what ``need(height, width)`` asks for, at least. The image may lie in
    ``memory``.

    Damage in rows that nobody needs may go unnoticed; an early end does not.
    """
    height, width = check_header(encoded, where)
    try:
        if encoded.startswith(JPEG_START):
            needed = need(height, width)
            return Decoded(_decode_jpeg(encoded, height, width, needed, memory), height, width, needed.factor)
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), _OPENCV_FLAGS)
    except (ValueError, cv2.error, MemoryError) as error:
        raise _damaged(where, first_line(error)) from None
    if image is None:
        raise _damaged(where, "the pixels cannot be read")
    return Decoded(image, height, width)


def _decode_jpeg(encoded: bytes, height: int, width: int, need: Need, memory: Memory) -> np.ndarray:
    """The image, or its upper part, at 1/factor of its size. ValueError: damage."""
    # Two rows more, since chroma is interpolated between rows, and whole blocks.
    rows = -(-(need.rows + 2 * need.factor) // _BLOCK_ROWS) * _BLOCK_ROWS
    if rows < height and (upper := _upper(encoded, rows)):
        image = memory.picture(-(-rows // need.factor), -(-width // need.factor))
        try:
            _decode_scaled(upper, rows, width, need.factor, image)
        except ValueError as error:
            # The first complaint is that something is left over behind the last row: all before it is sound.
            if _LEFT_OVER in str(error):
                return image
    image = memory.picture(-(-height // need.factor), -(-width // need.factor))
    return _decode_scaled(encoded, height, width, need.factor, image)


def _decode_scaled(
    encoded: bytes | bytearray, height: int, width: int, factor: int, image_HWC: np.ndarray
) -> np.ndarray:
    at_least = {"min_height": -(-height // factor), "min_width": -(-width // factor), "min_factor": factor}
    return simplejpeg.decode_jpeg(encoded, buffer=image_HWC, **at_least)


_BLOCK_ROWS = 16
_LEFT_OVER = "extraneous bytes before marker 0xd9"  # libjpeg's words


def _upper(encoded: bytes, rows: int) -> bytearray | None:
    """The same JPEG with so many rows stated in its header: a decoder stops behind them.

    None unless it is sequential: of a progressive one every pass goes over all rows.
    """
    at = 2
    while at + 9 <= len(encoded) and encoded[at] == 0xFF:
        marker = encoded[at + 1]
        if marker in (0xC0, 0xC1):  # frame header: length (2 bytes), precision (1), height (2)
            upper = bytearray(encoded)
            upper[at + 5 : at + 7] = rows.to_bytes(2, "big")
            return upper
        if marker == 0xDA or (0xC2 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            return None
        at += 2 + int.from_bytes(encoded[at + 2 : at + 4], "big")
    return None


def check_header(encoded: bytes, where: str) -> tuple[int, int]:
    """Height and width as the header states them; nothing is decoded.

    Raises DamagedSampleError for a header that cannot be read, another format, or more than ``MAX_PIXELS``.
    """
    try:
        if encoded.startswith(JPEG_START):
            height, width, _, _ = simplejpeg.decode_jpeg_header(encoded)
        else:
            width, height = _size(encoded)
    except LookupError:
        what = f"starts with {encoded[:8]!r}" if encoded else "is empty"
        raise DamagedSampleError(
            f"{where}: {what}: not a JPEG, PNG, WebP, BMP, TIFF, PGM or GIF image; convert or remove it"
        ) from None
    except ValueError as error:
        raise _damaged(where, first_line(error)) from None
    if not 0 < height * width <= MAX_PIXELS:
        raise DamagedSampleError(
            f"{where}: an image of {width} x {height} pixels, the limit is {MAX_PIXELS:,}; resize or remove it"
        )
    return height, width


def format_of(encoded: bytes) -> str:
    """JPEG or one of the formats that OpenCV is given, by the first bytes; else ""."""
    if encoded.startswith(JPEG_START):
        return "JPEG"
    return next((name for name, starts in _STARTS.items() if encoded.startswith(starts)), "")


def _size(encoded: bytes) -> tuple[int, int]:
    """Width and height of what is no JPEG. ValueError if the header is damaged, LookupError for another format."""
    if not format_of(encoded):
        raise LookupError
    Image = _pillow()
    try:
        return Image.open(io.BytesIO(encoded), formats=list(_STARTS)).size
    except Image.UnidentifiedImageError:
        raise ValueError("its header cannot be read") from None
    except Exception as error:  # of some ten types, by the format
        raise ValueError(first_line(error)) from None


@functools.cache
def _pillow() -> Any:
    """Pillow's ``Image``, which comes with matplotlib; sets of JPEG files do without."""
    from PIL import Image

    # Of many pixels and odd tags, across a progress bar: there is a limit of our own, and damage is told.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    return Image


def _damaged(where: str, reason: str) -> DamagedSampleError:
    return DamagedSampleError(f"{where}: damaged image ({reason}); replace or remove it")
