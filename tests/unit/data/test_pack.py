"""Packing: what comes out of folders and .npz files, what becomes of images, and what cannot be packed."""

import io

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from megaclass.data.decode import decode
from megaclass.data.pack.encode import Encoding, to_jpeg
from megaclass.data.pack.packer import pack
from megaclass.data.records.reader import RecordDataset
from megaclass.errors import UserError
from record_sets import contents, rows


def grey(value: int) -> np.ndarray:
    return np.full((12, 10), value, np.uint8)


@pytest.fixture
def archive(tmp_path):
    """Six flat images whose grey value is 20 times their row; labels neither sorted nor dense."""
    path = tmp_path / "images.npz"
    np.savez(
        path,
        images=np.stack([grey(20 * row) for row in range(6)]),
        label=np.array([7, 2, 7, 4, 2, 7], np.int16),
        train=np.array([True, True, True, False, True, True]),
        drawer=np.arange(6) % 3,
        classes=np.array([f"class {i}" for i in range(8)]),
    )
    return path


def test_arrays_come_grouped_and_renumbered(tmp_path, archive):
    steps = []
    written = pack(archive, tmp_path / "out", progress=lambda done, total: steps.append((done, total)))
    assert rows(tmp_path / "out") == [(1, 0), (4, 0), (3, 1), (0, 2), (2, 2), (5, 2)]
    assert (tmp_path / "out/classes.txt").read_text().splitlines() == ["class 2", "class 4", "class 7"]
    assert (tmp_path / "out/property").read_text() == "3,12,10\n"
    assert steps == [(i, 6) for i in range(1, 7)]
    assert (written.path, written.count, written.num_classes) == (tmp_path / "out/train.rec", 6, 3)
    assert len((tmp_path / "out/train.idx").read_text().splitlines()) == 1 + 6 + 3


@pytest.mark.parametrize(
    ("where", "kept"),
    [
        ("train=true", [(1, 0), (4, 0), (0, 1), (2, 1), (5, 1)]),
        ("drawer=1", [(1, 0), (4, 0)]),
    ],
)
def test_where_selects_rows(tmp_path, archive, where, kept):
    pack(archive, tmp_path / "out", where=where, index_record=False)
    labels = sorted({label for _, label in kept})
    assert rows(tmp_path / "out") == [(row, labels.index(label)) for row, label in kept]


def test_packed_bits_are_unpacked_and_inverted(tmp_path):
    bits = np.random.default_rng(0).integers(0, 2, (3, 11, 9), np.uint8)
    np.savez(tmp_path / "b.npz", bits=np.packbits(bits.reshape(3, -1), axis=1), labels=np.arange(3))
    for invert in (False, True):
        output = tmp_path / str(invert)
        pack(tmp_path / "b.npz", output, unpack_bits=(11, 9), quality=100, invert=invert)
        dataset = RecordDataset(output)
        for i in range(3):
            encoded = dataset.read(i).encoded
            assert ((decode(encoded, "")[:, :, 0] > 127) == (bits[i] != invert)).all()
            assert simplejpeg.decode_jpeg_header(encoded)[:3] == (11, 9, "Gray")


def test_images_are_resized_by_area_to_squares(tmp_path):
    checkers = np.kron(np.indices((8, 8)).sum(0) % 2, np.ones((4, 4))).astype(np.uint8) * 200
    colours = np.stack([checkers, np.zeros_like(checkers), 255 - checkers], axis=-1)
    for size in (8, 64):
        packed, found = to_jpeg(colours, "here", Encoding(image_size=size, quality=100))
        image = decode(packed, "")
        assert image.shape == (size, size, 3) and found == (size, size)
        wanted = colours.reshape(8, 4, 8, 4, 3).mean((1, 3)) if size == 8 else colours
        assert np.abs(image.mean((0, 1)) - wanted.mean((0, 1))).max() < 2
        assert size == 64 or np.abs(image - wanted).max() < 12


RNG = np.random.default_rng(0)
SMOOTH = cv2.resize(RNG.integers(0, 255, (4, 5, 3), np.uint8), (50, 40), interpolation=cv2.INTER_CUBIC)
GREY = np.ascontiguousarray(SMOOTH[:, :, 0])


def saved(image: Image.Image, fmt: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, fmt, **options)
    return file.getvalue()


KINDS = {
    "jpeg": simplejpeg.encode_jpeg(SMOOTH, 95),
    "grey jpeg": simplejpeg.encode_jpeg(GREY[:, :, None], 95, "GRAY", "Gray"),
    "padded jpeg": simplejpeg.encode_jpeg(SMOOTH, 95) + bytes(7),
    "cmyk jpeg": saved(Image.fromarray(SMOOTH).convert("CMYK"), "JPEG", quality=95),
    "png": saved(Image.fromarray(SMOOTH), "PNG"),
    "grey png": saved(Image.fromarray(GREY), "PNG"),
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
    assert one_channel == kind.startswith("grey")


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        ((375, 500), (256, 341)),  # 341.3: cut, as torchvision's Resize has it
        ((500, 333), (384, 256)),
        ((100, 900), (100, 900)),
    ],
)
def test_the_shorter_side_shrinks_and_never_grows(size, wanted):
    packed, packed_size = to_jpeg(np.zeros((*size, 3), np.uint8), "here", Encoding(shorter_side=256))
    assert packed_size == wanted == simplejpeg.decode_jpeg_header(packed)[:2]


@pytest.fixture
def folder(tmp_path):
    """Three classes of 10 images, all different, of several kinds and sizes."""
    kinds = list(KINDS.values())
    for number in range(30):
        path = tmp_path / f"in/{'abc'[number % 3]}/{number:02d}.jpg"  # the content counts, not the name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(kinds[number % len(kinds)])
    return tmp_path / "in"


def test_any_number_of_threads_writes_the_same_bytes(tmp_path, folder):
    (folder / "b/13.jpg").write_bytes(b"damaged")
    for workers in (1, 2, 7, 0):
        pack(folder, tmp_path / str(workers), shorter_side=20, on_error="skip", workers=workers)
        assert contents(tmp_path / str(workers)) == contents(tmp_path / "1")


def test_a_class_whose_images_are_all_left_out_keeps_its_number(tmp_path, folder):
    for path in (folder / "c").iterdir():
        path.write_bytes(b"damaged")
    assert pack(folder, tmp_path / "out", on_error="skip").count == 20
    assert RecordDataset(tmp_path / "out").classes == ["a", "b", "c"]
    for path in folder.glob("*/*"):
        path.write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"none of the 30 images can be packed; .*a/00\.jpg"):
        pack(folder, tmp_path / "none", on_error="skip")
    assert list((tmp_path / "none").iterdir()) == []


# -- archives that cannot be packed --


GOOD = {"images": np.zeros((4, 6, 6), np.uint8), "label": np.arange(4)}


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        ({"images": GOOD["images"]}, {}, r"needs arrays images .* and label, but holds images"),
        ({"label": GOOD["label"], "bits": np.zeros((4, 5), np.uint8)}, {}, "bits, with --unpack-bits"),
        ({**GOOD, "label": np.arange(3)}, {}, r"as many as labels \(3\)"),
        ({**GOOD, "label": np.arange(4.0)}, {}, "labels must be integers"),
        ({**GOOD, "images": np.zeros((4, 6, 6))}, {}, "images must be uint8"),
        ({**GOOD, "classes": np.array(["a", "b"])}, {}, "labels go from 0 to 3, but classes names 2"),
        (GOOD, {"where": "lable=1"}, "did you mean 'label'"),
        (GOOD, {"where": "label=one"}, "no row of .* has label=one"),
        (GOOD, {"unpack_bits": (6, 6)}, r"images must be uint8 \(N, 5\), which is 6 x 6 bits"),
        (GOOD, {"quality": 101}, "quality: 101"),
    ],
)
def test_archives_that_cannot_be_packed_say_why(tmp_path, arrays, options, message):
    np.savez(tmp_path / "in.npz", **arrays)
    with pytest.raises(UserError, match=message) as caught:
        pack(tmp_path / "in.npz", tmp_path / "out", **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
