"""What becomes of images on the way into records: kept, resized, converted, or left out, by any number of threads."""

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from megaclass.data.decode import decode
from megaclass.data.pack import pack
from megaclass.data.pack.encode import Encoding, to_jpeg
from megaclass.data.records.reader import RecordDataset
from megaclass.errors import UserError

RNG = np.random.default_rng(0)
SMOOTH = cv2.resize(RNG.integers(0, 255, (4, 5, 3), np.uint8), (50, 40), interpolation=cv2.INTER_CUBIC)
GREY = np.ascontiguousarray(SMOOTH[:, :, 0])


def saved(image: Image.Image, fmt: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, fmt, **options)
    return file.getvalue()


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees to view"
    return saved(Image.fromarray(SMOOTH), "JPEG", quality=95, exif=exif)


KINDS = {
    "jpeg": simplejpeg.encode_jpeg(SMOOTH, 95),
    "grey jpeg": simplejpeg.encode_jpeg(GREY[:, :, None], 95, "GRAY", "Gray"),
    "cmyk jpeg": saved(Image.fromarray(SMOOTH).convert("CMYK"), "JPEG", quality=95),
    "turned jpeg": turned(),
    "png": saved(Image.fromarray(SMOOTH), "PNG"),
    "grey png": saved(Image.fromarray(GREY), "PNG"),
    "transparent png": saved(Image.fromarray(np.dstack([SMOOTH, GREY])), "PNG"),
    "16 bit png": cv2.imencode(".png", GREY.astype(np.uint16) * 256 + 77)[1].tobytes(),
    "webp": saved(Image.fromarray(SMOOTH), "WEBP", lossless=True),
    "bmp": saved(Image.fromarray(SMOOTH), "BMP"),
    "gif": saved(Image.fromarray(GREY), "GIF"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_only_a_jpeg_of_its_size_keeps_its_bytes_and_others_show_what_they_showed(kind):
    encoded = KINDS[kind]
    shown = decode(encoded, kind)
    for encoding in (Encoding(quality=98), Encoding(shorter_side=40), Encoding(shorter_side=99)):
        packed, size = to_jpeg(encoded, kind, encoding)
        assert size == (40, 50) == simplejpeg.decode_jpeg_header(packed)[:2]
        assert (packed == encoded) == kind.endswith("jpeg")
        assert np.abs(decode(packed, kind).astype(int) - shown).mean() < 3
    packed, size = to_jpeg(encoded, kind, Encoding(shorter_side=20, quality=98))
    assert size == (20, 25)
    by_area = shown.reshape(20, 2, 25, 2, 3).mean((1, 3))
    assert np.abs(decode(packed, kind) - by_area).mean() < 3
    one_channel = simplejpeg.decode_jpeg_header(packed)[2] == "Gray"
    assert one_channel == (kind.startswith(("grey", "16 bit")) or kind == "gif")


@pytest.mark.parametrize(
    ("size", "shorter_side", "wanted"),
    [
        ((375, 500), 256, (256, 341)),  # 341.3: cut, as torchvision's Resize has it
        ((500, 333), 256, (384, 256)),
        ((256, 900), 256, (256, 900)),
        ((100, 90), 256, (100, 90)),
        ((1, 1000), 1, (1, 1000)),
        ((2, 1001), 1, (1, 500)),
    ],
)
def test_the_shorter_side_shrinks_and_never_grows(size, shorter_side, wanted):
    assert Encoding(shorter_side=shorter_side).size_of(*size) == wanted
    image = np.zeros((*size, 3), np.uint8)
    packed, packed_size = to_jpeg(image, "here", Encoding(shorter_side=shorter_side))
    assert packed_size == wanted == simplejpeg.decode_jpeg_header(packed)[:2]


@pytest.fixture
def folder(tmp_path):
    """Three classes of 10 images, all different, of several kinds and sizes."""
    kinds = list(KINDS.values())
    for number in range(30):
        path = tmp_path / f"in/{'abc'[number % 3]}/{number:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(kinds[number % len(kinds)])
    return tmp_path / "in"


def packed(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in output.iterdir()}


def test_any_number_of_threads_writes_the_same_bytes(tmp_path, folder):
    (folder / "b/13.jpg").write_bytes(b"damaged")
    for workers in (1, 2, 7, 0):
        pack(folder, tmp_path / str(workers), shorter_side=20, on_error="skip", workers=workers)
        assert packed(tmp_path / str(workers)) == packed(tmp_path / "1")


DAMAGED = {
    "a/00.jpg": (KINDS["jpeg"][: len(KINDS["jpeg"]) // 2], "damaged image"),
    "b/01.jpg": (b"", "is an empty file"),
    "c/02.jpg": (b"no image", "not a JPEG, PNG"),
}


def test_damaged_images_end_the_work_by_name_or_are_left_out_and_listed(tmp_path, folder):
    pack(folder, tmp_path / "whole", image_size=16)
    for name, (content, message) in DAMAGED.items():
        before = (folder / name).read_bytes()
        (folder / name).write_bytes(content)
        with pytest.raises(
            UserError, match=rf"{name}.*{message}.*; .*, or leave such images out \(--on-error skip\)$"
        ) as caught:
            pack(folder, tmp_path / "out", image_size=16)
        assert "\n" not in str(caught.value) and list((tmp_path / "out").iterdir()) == []
        (folder / name).write_bytes(before)
    for name, (content, _) in DAMAGED.items():
        (folder / name).write_bytes(content)
    summary = pack(folder, tmp_path / "out", image_size=16, on_error="skip")
    assert (summary.images, summary.classes, len(summary.skipped)) == (27, 3, 3)
    lines = (tmp_path / "out/skipped.txt").read_text().splitlines()
    assert lines == list(summary.skipped)
    for line, (name, (_, message)) in zip(lines, DAMAGED.items(), strict=True):
        assert name in line and message in line
    dataset, whole = RecordDataset(tmp_path / "out"), RecordDataset(tmp_path / "whole")
    kept = [i for i in range(30) if i not in (0, 10, 20)]  # the first of each class
    assert [dataset.read(i) for i in range(27)] == [whole.read(i) for i in kept]


def test_a_class_whose_images_are_all_left_out_keeps_its_number(tmp_path, folder):
    for path in (folder / "c").iterdir():
        path.write_bytes(b"damaged")
    summary = pack(folder, tmp_path / "out", on_error="skip")
    assert summary.images == 20 and RecordDataset(tmp_path / "out").classes == ["a", "b", "c"]
    for path in folder.glob("*/*"):
        path.write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"none of the 30 images can be packed; .*a/00\.jpg"):
        pack(folder, tmp_path / "none", on_error="skip")
    assert list((tmp_path / "none").iterdir()) == []


def test_a_list_of_skipped_images_is_not_overwritten(tmp_path, folder):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/skipped.txt").write_text("precious")
    with pytest.raises(UserError, match=r"skipped\.txt exists and is not overwritten"):
        pack(folder, tmp_path / "out")
    assert packed(tmp_path / "out") == {"skipped.txt": b"precious"}
