import io
import struct
import zlib

import cv2
import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image  # comes with matplotlib

from megaclass.data.decode import MAX_PIXELS, Memory, Need, decode, decode_part
from megaclass.errors import UserError

# Smooth, so that lossy formats come close; 37 x 50, so that height and width cannot be mixed up.
RGB = np.stack(np.broadcast_arrays(np.arange(50) * 4, (np.arange(37) * 5)[:, None], 120), -1).astype(np.uint8)
GREY = RGB[..., 0]


def saved(image: Image.Image, fmt: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, fmt, **options)
    return buffer.getvalue()


JPEG = simplejpeg.encode_jpeg(RGB, quality=95)
PNG = saved(Image.fromarray(RGB), "PNG")
TIFF = saved(Image.fromarray(RGB), "TIFF")
PGM = b"P5\n# grey\n50 37\n255\n" + GREY.tobytes()
RGBA = Image.fromarray(np.dstack([RGB, np.full((37, 50), 9, np.uint8)]))
WEBP = {
    "lossy": saved(Image.fromarray(RGB), "WEBP", quality=95),
    "lossless": saved(Image.fromarray(RGB), "WEBP", lossless=True),
    "extended": saved(RGBA, "WEBP", lossless=True, exif=b"Exif\0\0"),
}


def close(image: np.ndarray, expected: np.ndarray, tolerance: float = 3) -> bool:
    assert image.dtype == np.uint8 and image.shape == expected.shape
    return float(np.abs(image.astype(int) - expected).mean()) <= tolerance


@pytest.mark.parametrize(
    ("encoded", "expected"),
    [
        pytest.param(JPEG, RGB, id="jpeg"),
        pytest.param(simplejpeg.encode_jpeg(GREY[..., None].copy(), 95, "GRAY"), GREY, id="grey jpeg"),
        pytest.param(saved(Image.fromarray(RGB).convert("CMYK"), "JPEG", quality=95), RGB, id="cmyk jpeg"),
        pytest.param(saved(Image.fromarray(RGB), "JPEG", quality=95, progressive=True), RGB, id="progressive"),
        pytest.param(PNG, RGB, id="png"),
        pytest.param(saved(Image.fromarray(GREY), "PNG"), GREY, id="grey png"),
        pytest.param(saved(RGBA, "PNG"), RGB, id="png with alpha"),
        pytest.param(cv2.imencode(".png", GREY.astype(np.uint16) * 256 + 77)[1].tobytes(), GREY, id="16 bit"),
        pytest.param(saved(Image.fromarray(RGB), "BMP"), RGB, id="bmp"),
        pytest.param(saved(Image.fromarray(GREY), "GIF"), GREY, id="gif"),
        pytest.param(TIFF, RGB, id="tiff"),
        pytest.param(PGM, GREY, id="pgm"),
        pytest.param(saved(Image.fromarray(RGB), "PPM"), RGB, id="ppm"),
        *(pytest.param(encoded, RGB, id=f"webp {kind}") for kind, encoded in WEBP.items()),
    ],
)
def test_everything_becomes_8_bit_rgb(encoded, expected):
    if expected.ndim == 2:
        expected = np.repeat(expected[..., None], 3, -1)
    assert close(decode(encoded, "here"), expected)


@pytest.mark.parametrize("fmt", ["JPEG", "PNG"])
def test_exif_orientation_is_ignored(fmt):
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees to view"
    assert close(decode(saved(Image.fromarray(RGB), fmt, exif=exif), "here"), RGB)


@pytest.mark.parametrize("likely", [(), (37, 50), (50, 37), (20, 20), (60, 60)])
def test_a_jpeg_is_the_same_whatever_memory_it_is_decoded_into(likely):
    memory = Memory(*likely)
    image = decode_part(JPEG, "here", memory, lambda height, width: Need(height)).image_HWC
    np.testing.assert_array_equal(image, simplejpeg.decode_jpeg(JPEG))
    # An odd address: no row is written past the caches.
    assert np.shares_memory(image, memory.picture(*RGB.shape[:2])) and image.ctypes.data % 2 == 1


@pytest.mark.parametrize("encoded", [JPEG, PNG, WEBP["lossy"]], ids=["jpeg", "png", "webp"])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.99])
def test_a_file_that_ends_early_is_damaged(encoded, share):
    with pytest.raises(UserError, match=r"^set\.rec record 7: ") as error:
        decode(encoded[: int(share * len(encoded))], "set.rec record 7")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("encoded", [b"", b"<html>not found</html>", b"II+\0" + bytes(100), bytes(64)])
def test_other_formats_are_refused(encoded):
    with pytest.raises(UserError, match=r"^here: .*not a JPEG, PNG, WebP, BMP, TIFF, PGM or GIF"):
        decode(encoded, "here")


def test_a_decompression_bomb_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(cv2, "imdecode", None)
    size = struct.pack(">HH", 65000, 65000)
    at = JPEG.index(b"\xff\xc0") + 5
    png_size = b"IHDR" + struct.pack(">II", 60000, 60000) + PNG[24:29]
    for bomb in (
        JPEG[:at] + size + JPEG[at + 4 :],
        PNG[:12] + png_size + struct.pack(">I", zlib.crc32(png_size)) + PNG[33:],
        b"GIF89a" + bytes([255] * 20),
        b"P5 # large\n60000 60000\n255\n",
        b"MM\0*" + struct.pack(">IHHHIIHHIHH", 8, 2, 256, 4, 1, 60000, 257, 3, 1, 60000, 0),
        b"BM" + bytes(12) + struct.pack("<Iii", 40, 60000, -60000),
    ):
        with pytest.raises(UserError, match=f"here: .*({MAX_PIXELS:,}|damaged)"):
            decode(bomb, "here")


@settings(max_examples=150, deadline=None)
@given(
    encoded=st.sampled_from([JPEG, PNG, *WEBP.values(), TIFF, PGM]),
    changes=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=5),
)
def test_flipped_bytes_give_an_image_or_a_clear_error(encoded, changes):
    damaged = bytearray(encoded)
    for place, value in changes:
        damaged[int(place * len(damaged))] = value
    try:
        image = decode(bytes(damaged), "here")
    except UserError as error:
        assert str(error).startswith("here: ") and "\n" not in str(error)
    else:
        assert image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8
