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

from megaclass.errors import UserError

# 300 MB once decoded. A few kilobytes of JPEG or PNG can claim billions of pixels; the header is looked at
# before anything is allocated. The largest photographs of ImageNet have 20 million.
MAX_PIXELS = 100_000_000

_OPENCV_FLAGS = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION


def decode(encoded: bytes, where: str, out: np.ndarray | None = None) -> np.ndarray:
    """Return the image as uint8 HxWx3, RGB.

    A JPEG of exactly the shape of ``out`` is decoded into it, and ``out`` returned: that saves the large copy
    on the way into a batch. On an error ``out`` may be half written.

    Raises UserError, with ``where`` (file and record) in its one line, if the bytes are damaged, end early,
    are no known format, or claim more than ``MAX_PIXELS``.
    """
    try:
        if encoded[:3] == b"\xff\xd8\xff":
            height, width, _, _ = simplejpeg.decode_jpeg_header(encoded)
            _check_size(height, width, where)
            if out is not None and out.shape == (height, width, 3):
                simplejpeg.decode_jpeg(encoded, buffer=out)
                return out
            return simplejpeg.decode_jpeg(encoded)
        height, width = _sniffed_size(encoded, where)
        _check_size(height, width, where)
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), _OPENCV_FLAGS)
        if image is None:
            raise ValueError("the pixels cannot be read")
    except UserError:
        raise
    except (ValueError, struct.error, cv2.error, MemoryError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{where}: damaged image ({reason[0]}); replace or remove it") from None
    return image


def _check_size(height: int, width: int, where: str) -> None:
    if not 0 < height * width <= MAX_PIXELS:
        raise UserError(
            f"{where}: an image of {width} x {height} pixels, the limit is {MAX_PIXELS:,}; resize or remove it"
        )


def _sniffed_size(encoded: bytes, where: str) -> tuple[int, int]:
    """Height and width from the header. struct.error if it is cut off."""
    for magic, at, size_of in _FORMATS:
        if encoded.startswith(magic, at):
            return size_of(encoded)
    what = f"starts with {encoded[:8]!r}" if encoded else "is empty"
    raise UserError(f"{where}: {what}: not a JPEG, PNG, WebP, BMP or GIF image; convert or remove it")


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
