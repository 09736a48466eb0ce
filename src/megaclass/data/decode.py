"""Encoded image files to pixels.

JPEG, the one format of the large data sets, goes to simplejpeg; PNG, WebP, BMP and GIF (its first frame) to
OpenCV. Both release the GIL. Whatever is stored becomes 8-bit RGB: grey is repeated, CMYK converted, 16 bits
cut to the upper 8, transparency dropped (the colour below it shows), as Pillow's ``convert("RGB")`` has it.

EXIF orientation is ignored: pixels come as they are stored, as torchvision's image folders give them, and so
as most published ImageNet results saw them. Aligned faces and rendered images have none.
"""

import struct
from collections.abc import Callable

import cv2
import numpy as np
import simplejpeg

from megaclass.data.dataset import DamagedSampleError, first_line

# 300 MB once decoded. A few kilobytes of JPEG or PNG can claim billions of pixels; the header is looked at
# before anything is allocated. The largest photographs of ImageNet have 20 million.
MAX_PIXELS = 100_000_000

JPEG_START = b"\xff\xd8\xff"
_OPENCV_FLAGS = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION


def decode(
    encoded: bytes,
    where: str,
    out: np.ndarray | None = None,
    reduction: Callable[[int, int], int] | None = None,
) -> np.ndarray:
    """Return the image as uint8 HxWx3, RGB.

    A JPEG of exactly the shape of ``out`` is decoded into it, and ``out`` returned: that saves the large copy
    on the way into a batch. Otherwise ``out`` may hold anything afterwards. ``reduction(height, width)`` says by
    how much, 1, 2, 4 or 8, a JPEG of another size is decoded smaller.

    Raises DamagedSampleError, with ``where`` (file and record) in its one line, if the bytes are damaged, end
    early, are no known format, or claim more than ``MAX_PIXELS``.
    """
    is_jpeg = encoded.startswith(JPEG_START)
    if is_jpeg and out is not None:
        # No look at the header first: what does not fit the buffer is refused before it is decoded.
        try:
            image = simplejpeg.decode_jpeg(encoded, buffer=out)
        except ValueError:
            pass  # below it turns out whether it is too large, or damaged
        else:
            return out if image.shape == out.shape else image.copy()
    height, width = check_header(encoded, where)
    try:
        if is_jpeg:
            factor = reduction(height, width) if reduction else 1
            return simplejpeg.decode_jpeg(
                encoded, min_height=-(-height // factor), min_width=-(-width // factor), min_factor=factor
            )
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), _OPENCV_FLAGS)
    except (ValueError, cv2.error, MemoryError) as error:
        raise _damaged(where, first_line(error)) from None
    if image is None:
        raise _damaged(where, "the pixels cannot be read")
    return image


def check_header(encoded: bytes, where: str) -> tuple[int, int]:
    """Height and width as the header states them; nothing is decoded.

    Raises DamagedSampleError for a header that cannot be read, another format, or more than ``MAX_PIXELS``.
    """
    try:
        height, width = _header_size(encoded)
    except struct.error:
        raise _damaged(where, "its header is cut off") from None
    except ValueError as error:
        raise _damaged(where, first_line(error)) from None
    except LookupError:
        what = f"starts with {encoded[:8]!r}" if encoded else "is empty"
        raise DamagedSampleError(
            f"{where}: {what}: not a JPEG, PNG, WebP, BMP or GIF image; convert or remove it"
        ) from None
    if not 0 < height * width <= MAX_PIXELS:
        raise DamagedSampleError(
            f"{where}: an image of {width} x {height} pixels, the limit is {MAX_PIXELS:,}; resize or remove it"
        )
    return height, width


def _damaged(where: str, reason: str) -> DamagedSampleError:
    return DamagedSampleError(f"{where}: damaged image ({reason}); replace or remove it")


def _header_size(encoded: bytes) -> tuple[int, int]:
    """Height and width. ValueError or struct.error if the header is damaged, LookupError for another format."""
    if encoded.startswith(JPEG_START):
        height, width, _, _ = simplejpeg.decode_jpeg_header(encoded)
        return height, width
    for magic, at, size_of in _FORMATS:
        if encoded.startswith(magic, at):
            return size_of(encoded)
    raise LookupError


def _png_size(encoded: bytes) -> tuple[int, int]:
    width, height = struct.unpack_from(">II", encoded, 16)
    return height, width


def _bmp_size(encoded: bytes) -> tuple[int, int]:
    old_header = struct.unpack_from("<I", encoded, 14)[0] == 12
    width, height = struct.unpack_from("<HH" if old_header else "<ii", encoded, 18)
    return abs(height), abs(width)  # a negative height means rows from the top


def _gif_size(encoded: bytes) -> tuple[int, int]:
    width, height = struct.unpack_from("<HH", encoded, 6)
    return height, width


def _webp_size(encoded: bytes) -> tuple[int, int]:
    chunk = encoded[12:16]
    if chunk == b"VP8X":  # two 24-bit numbers, less one
        low_w, high_w, low_h, high_h = struct.unpack_from("<HBHB", encoded, 24)
        return 1 + low_h + (high_h << 16), 1 + low_w + (high_w << 16)
    if chunk == b"VP8L":  # two 14-bit numbers, less one
        (bits,) = struct.unpack_from("<I", encoded, 21)
        return 1 + (bits >> 14 & 0x3FFF), 1 + (bits & 0x3FFF)
    width, height = struct.unpack_from("<HH", encoded, 26)
    return height & 0x3FFF, width & 0x3FFF


_FORMATS: list[tuple[bytes, int, Callable[[bytes], tuple[int, int]]]] = [
    (b"\x89PNG\r\n\x1a\n", 0, _png_size),
    (b"WEBP", 8, _webp_size),
    (b"BM", 0, _bmp_size),
    (b"GIF8", 0, _gif_size),
]
