"""Images to the JPEG bytes that go into a record: passed through, or decoded, resized and encoded anew."""

from dataclasses import dataclass

import cv2
import numpy as np
import simplejpeg

from megaclass.data.dataset import DamagedSampleError
from megaclass.data.decode import JPEG_START, MAX_PIXELS, check_header, decode
from megaclass.errors import UserError, first_line

_JPEG_END = b"\xff\xd9"
Size = tuple[int, int]  # height, width


@dataclass(frozen=True)
class Encoding:
    """What becomes of an image. A JPEG that is not to change keeps its very bytes.

    - ``image_size``: height and width to resize to.
    - ``shorter_side``: what to shrink the shorter side to; the aspect stays, and nothing is enlarged.
    - ``quality``: of JPEG files that are encoded anew, 1 to 100.
    - ``invert``: black becomes white.

    Raises UserError for values that make no sense.
    """

    image_size: int | None = None
    shorter_side: int | None = None
    quality: int = 95
    invert: bool = False

    def __post_init__(self) -> None:
        for name in ("image_size", "shorter_side"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')}: {value} is not a size; use 1 or more pixels")
        if self.image_size is not None and self.shorter_side is not None:
            raise UserError("--image-size makes squares, --shorter-side keeps the aspect; give one of them")
        if not 1 <= self.quality <= 100:
            raise UserError(f"--quality: {self.quality} is not a JPEG quality; use 1 to 100")

    def size_of(self, height: int, width: int) -> Size:
        """The size to which an image of ``height`` x ``width`` comes."""
        if self.image_size is not None:
            return self.image_size, self.image_size
        shorter = min(height, width)
        if self.shorter_side is None or shorter <= self.shorter_side:
            return height, width
        # The longer side is cut to whole pixels, as torchvision's Resize has it.
        return height * self.shorter_side // shorter, width * self.shorter_side // shorter


def to_jpeg(image: bytes | np.ndarray, where: str, encoding: Encoding) -> tuple[bytes, Size]:
    """JPEG bytes and their size. ``image`` is encoded, or uint8 (H, W) grey or (H, W, 3) RGB.

    The bytes of a JPEG stay as they are where nothing is to change. Raises DamagedSampleError.
    """
    if not isinstance(image, np.ndarray):
        size = check_header(image, where)
        if image.startswith(JPEG_START) and not encoding.invert and encoding.size_of(*size) == size:
            if not image.endswith(_JPEG_END):  # cut short, or something follows: only decoding tells
                decode(image, where)
            return image, size
        image = decode(image, where)
    try:
        encoded = _encode(image, encoding)
    except (ValueError, cv2.error, MemoryError) as error:
        raise DamagedSampleError(f"{where} cannot be packed: {first_line(error)}; replace it") from None
    return encoded, check_header(encoded, where)


def _encode(image: np.ndarray, encoding: Encoding) -> bytes:
    height, width = encoding.size_of(*image.shape[:2])
    if height * width > MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels, the limit is {MAX_PIXELS:,}")
    if image.shape[:2] != (height, width):
        shrinks = height <= image.shape[0] and width <= image.shape[1]
        # The mean over the area is right for shrinking; enlarging, it would repeat pixels.
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    if encoding.invert:
        image = 255 - image
    if _is_grey(image):
        grey = np.ascontiguousarray(image if image.ndim == 2 else image[:, :, 0])[:, :, None]
        return simplejpeg.encode_jpeg(grey, encoding.quality, colorspace="GRAY", colorsubsampling="Gray")
    return simplejpeg.encode_jpeg(np.ascontiguousarray(image), encoding.quality, colorspace="RGB")


def _is_grey(image: np.ndarray) -> bool:
    """Whether one channel tells all: it is stored alone, in fewer bytes, and decodes to the same three."""
    # Nearly every photograph is known by its first row.
    return image.ndim == 2 or all(bool((part == part[..., :1]).all()) for part in (image[:1], image))
