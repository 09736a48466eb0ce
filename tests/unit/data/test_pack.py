"""Packing: what comes out of folders and .npz files, and what is said about those that cannot be packed."""

import struct
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg

from megaclass.data.pack import pack
from megaclass.data.records.reader import RecordDataset
from megaclass.errors import UserError


def grey(value: int, height: int = 12, width: int = 10) -> np.ndarray:
    return np.full((height, width), value, np.uint8)


def decode(encoded: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_ANYCOLOR)


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
        kind=np.array(list("abcabc")),
        classes=np.array([f"class {i}" for i in range(8)]),
    )
    return path


def rows(output: Path) -> list[tuple[int, int]]:
    """(row, label) of each record of a packed ``archive``."""
    dataset = RecordDataset(output)
    return [(round(decode(s.encoded).mean() / 20), s.label) for s in map(dataset.read, range(len(dataset)))]


def test_arrays_come_grouped_and_renumbered(tmp_path, archive):
    steps = []
    summary = pack(archive, tmp_path / "out", progress=lambda done, total: steps.append((done, total)))
    assert rows(tmp_path / "out") == [(1, 0), (4, 0), (3, 1), (0, 2), (2, 2), (5, 2)]
    assert (tmp_path / "out/classes.txt").read_text().splitlines() == ["class 2", "class 4", "class 7"]
    assert (tmp_path / "out/property").read_text() == "3,12,10\n"
    assert steps == [(i, 6) for i in range(1, 7)]
    rec = tmp_path / "out/train.rec"
    assert (summary.path, summary.images, summary.classes, summary.rec_bytes) == (
        rec,
        6,
        3,
        rec.stat().st_size,
    )
    assert len((tmp_path / "out/train.idx").read_text().splitlines()) == 1 + 6 + 3


@pytest.mark.parametrize(
    ("where", "kept"),
    [
        ("train=true", [(1, 0), (4, 0), (0, 1), (2, 1), (5, 1)]),
        ("train=False", [(3, 0)]),
        ("drawer=1", [(1, 0), (4, 0)]),
        ("kind=c", [(2, 1), (5, 1)]),
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
            assert ((decode(dataset.read(i).encoded) > 127) == (bits[i] != invert)).all()
            header = simplejpeg.decode_jpeg_header(dataset.read(i).encoded)
            assert header[:3] == (11, 9, "Gray")


def test_images_are_resized_by_area(tmp_path):
    checkers = np.kron(np.indices((8, 8)).sum(0) % 2, np.ones((4, 4))).astype(np.uint8) * 200
    colours = np.stack([checkers, np.zeros_like(checkers), 255 - checkers], axis=-1)
    np.savez(tmp_path / "c.npz", images=colours[None], labels=[0])
    for size in (8, 4, 64):
        pack(tmp_path / "c.npz", tmp_path / str(size), image_size=size, quality=100)
        image = decode(RecordDataset(tmp_path / str(size)).read(0).encoded)[:, :, ::-1]  # BGR
        assert image.shape == (size, size, 3)
        wanted = colours.reshape(size, 32 // size, size, 32 // size, 3).mean((1, 3)) if size < 64 else colours
        assert np.abs(image.mean((0, 1)) - wanted.mean((0, 1))).max() < 2
        if size < 64:
            assert np.abs(image - wanted).max() < 12
        assert (tmp_path / str(size) / "property").read_text() == f"1,{size},{size}\n"


def write_image(path: Path, image: np.ndarray) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)
    return path.read_bytes()


def test_folders_keep_the_bytes_of_jpegs(tmp_path):
    first = write_image(tmp_path / "in/a/1.jpg", grey(10))
    write_image(tmp_path / "in/b/2.png", np.dstack([grey(255), grey(0), grey(0)]))
    third = write_image(tmp_path / "in/c/3.jpg", grey(30))
    (tmp_path / "in/c/3.jpg").rename(tmp_path / "in/c/3.png")  # the content counts, not the name
    (tmp_path / "in/bare").mkdir()
    summary = pack(tmp_path / "in", tmp_path / "out")
    dataset = RecordDataset(tmp_path / "out")
    assert (dataset.read(0).encoded, dataset.read(2).encoded) == (first, third)
    blue = decode(dataset.read(1).encoded)
    assert blue.shape == (12, 10, 3) and np.abs(blue.mean((0, 1)) - (255, 0, 0)).max() < 3
    assert summary.classes == 3 and dataset.labels().tolist() == [0, 1, 2]
    assert (tmp_path / "out/classes.txt").read_text() == "a\nb\nc\n"


GOOD = {"images": np.zeros((4, 6, 6), np.uint8), "label": np.arange(4)}


@pytest.mark.parametrize(
    ("arrays", "options", "message"),
    [
        ({"images": GOOD["images"]}, {}, r"needs arrays images .* and label, but holds images"),
        ({"label": GOOD["label"]}, {}, "and label, but holds label"),
        ({"label": GOOD["label"], "bits": np.zeros((4, 5), np.uint8)}, {}, "bits, with unpack_bits"),
        ({**GOOD, "label": np.arange(3)}, {}, r"as many as labels \(3\)"),
        ({**GOOD, "label": np.arange(4.0)}, {}, "labels must be integers"),
        ({**GOOD, "images": np.zeros((4, 6, 6))}, {}, "images must be uint8"),
        ({"images": np.zeros((0, 6, 6), np.uint8), "label": np.arange(0)}, {}, "images must be uint8"),
        ({**GOOD, "classes": np.array(["a", "b"])}, {}, "labels go from 0 to 3, but classes names 2"),
        ({**GOOD, "images": np.array([None] * 4)}, {}, "cannot be read as .npz"),
        (GOOD, {"where": "lable=1"}, "did you mean 'label'"),
        (GOOD, {"where": "label"}, "no row of .* has label"),
        (GOOD, {"where": "label=one"}, "no row of .* has label=one"),
        (GOOD, {"unpack_bits": (6, 6)}, r"images must be uint8 \(N, 5\), which is 6 x 6 bits"),
        (GOOD, {"unpack_bits": (0, 6)}, "which is 0 x 6 bits"),
        (GOOD, {"quality": 101}, "quality: 101"),
    ],
)
def test_archives_that_cannot_be_packed_say_why(tmp_path, arrays, options, message):
    np.savez(tmp_path / "in.npz", **arrays)
    with pytest.raises(UserError, match=message) as caught:
        pack(tmp_path / "in.npz", tmp_path / "out", **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def npy(shape, dtype="|u1", data=b"") -> bytes:
    header = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape!r}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


IMAGES, LABELS = npy((4, 6, 6), "|u1", bytes(144)), npy((4,), "<i8", struct.pack("<4q", *range(4)))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"images.npy": npy((4, 1 << 28, 1 << 30)), "labels.npy": LABELS}, "cannot be read as .npz"),
        ({"images.npy": npy((4, 6, 6)), "labels.npy": LABELS}, "cannot be read as .npz"),
        ({"images.npy": npy((4, 6, 6), "|O"), "labels.npy": LABELS}, "Object arrays"),
        ({"images.npy": IMAGES, "labels.npy": b"no array"}, "labels must be integers"),
        ({"images.npy": IMAGES, "labels": b"no array"}, "labels must be integers"),
        ({"images.npy": IMAGES, "labels.npy": LABELS, "classes.npy": b"none"}, "classes names 1"),
    ],
)
def test_hostile_archives_say_so(tmp_path, members, message):
    with zipfile.ZipFile(tmp_path / "in.npz", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(UserError, match=rf"in\.npz.*{message}") as caught:
        pack(tmp_path / "in.npz", tmp_path / "out")
    assert "\n" not in str(caught.value)
