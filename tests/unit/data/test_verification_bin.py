"""Verification sets as they are found, by whatever they were written, and as they are written here."""

import pickle
import struct
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg

from megaclass.data.verification_bin import VerificationBin, write_bin
from megaclass.errors import UserError

RGB = np.random.default_rng(0).integers(0, 256, (3, 12, 10, 3), dtype=np.uint8)
PNG = cv2.imencode(".png", np.full((8, 8), 90, np.uint8))[1].tobytes()
# Below and above the 255 bytes at which Python 2 changes the operation.
IMAGES = [PNG, *(simplejpeg.encode_jpeg(pixels) for pixels in RGB)]
SAME = [True, False]
ROWS = [np.frombuffer(image, np.uint8) for image in IMAGES]
assert len(PNG) < 256 < min(map(len, IMAGES[1:]))


# Python 2 is not at hand: as its cPickle and pickle write a set (``python3 -m pickletools FILE`` shows it).


def quoted(payload: bytes) -> bytes:
    """STRING, as Python 2's repr writes it."""
    escapes = {9: rb"\t", 10: rb"\n", 13: rb"\r", 39: rb"\'", 92: rb"\\"}
    text = b"".join(escapes.get(byte) or (bytes([byte]) if 32 <= byte < 127 else b"\\x%02x" % byte) for byte in payload)
    return b"S'" + text + b"'\n"


def counted(payload: bytes) -> bytes:
    """SHORT_BINSTRING or BINSTRING."""
    if len(payload) < 256:
        return b"U" + bytes([len(payload)]) + payload
    return b"T" + struct.pack("<i", len(payload)) + payload


def python2_protocol0() -> bytes:
    stored = b"".join(quoted(image) + b"p%d\na" % number for number, image in enumerate(IMAGES, 2))
    return b"((lp1\n" + stored + b"(lp20\n" + b"I01\naI00\na" + b"tp21\n."


def python2_protocol2() -> bytes:
    # As a set of more than 255 objects has it: the memo's index takes four bytes.
    stored = b"".join(counted(image) + b"r" + struct.pack("<I", 300 + n) for n, image in enumerate(IMAGES))
    return b"\x80\x02]q\x01(" + stored + b"e]q\x02(\x88\x89e\x86q\x03."


def python2_numpy() -> bytes:
    """Arrays (N, 1), as OpenCV's imencode gave them, and numpy.bool_, in protocol 2."""

    def dtype(name: bytes, key: bytes) -> bytes:
        made = b"cnumpy\ndtype\n" + counted(name) + b"K\x00K\x01\x87R"
        return made + b"(K\x03" + counted(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tbq" + key

    begun = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + counted(b"b") + b"\x87R(K\x01"
    arrays = b""
    for number, image in enumerate(IMAGES):
        kind = b"h\x05" if number else dtype(b"u1", b"\x05")
        arrays += begun + b"M" + struct.pack("<H", len(image)) + b"K\x01\x86" + kind + b"\x89" + counted(image) + b"tb"
    first = b"cnumpy.core.multiarray\nscalar\n" + dtype(b"b1", b"\x06") + counted(b"\x01") + b"\x86R"
    second = b"cnumpy.core.multiarray\nscalar\nh\x06" + counted(b"\x00") + b"\x86R"
    return b"\x80\x02](" + arrays + b"e](" + first + second + b"e\x86."


WAYS = {
    "python 2, protocol 0": python2_protocol0(),
    "python 2, protocol 2": python2_protocol2(),
    "python 2, arrays": python2_numpy(),
    # Its modules had another name in NumPy 1.
    "numpy 1": pickle.dumps((ROWS, np.array(SAME)), 2).replace(b"numpy._core.", b"numpy.core."),
    **{f"protocol {number}": pickle.dumps((IMAGES, SAME), number) for number in range(6)},
    **{f"arrays, protocol {number}": pickle.dumps((ROWS, [*map(np.bool_, SAME)]), number) for number in range(6)},
    "rows, columns and bytes": pickle.dumps(([ROWS[0], ROWS[1][:, None], ROWS[2][None], IMAGES[3]], SAME)),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_pickling_gives_the_same_images_and_pairs(tmp_path, way):
    (tmp_path / "lfw.bin").write_bytes(WAYS[way])
    found = VerificationBin(tmp_path / "lfw.bin")
    assert [found.read(index).encoded for index in range(len(found))] == IMAGES
    assert found.first.tolist() == [0, 2] and found.second.tolist() == [1, 3]
    assert found.same.tolist() == SAME and found.same.dtype == np.bool_
    assert found.labels().tolist() == [0] * 4 and found.num_classes == 1 and found.name == "lfw"


def dumped(folder, *content):
    path = folder / "set.bin"
    path.write_bytes(pickle.dumps(content))
    return path


def test_an_image_of_many_pairs_is_kept_once_in_order_of_its_first(tmp_path):
    a, b, c, _ = IMAGES
    path = dumped(tmp_path, [b, a, a, bytes(bytearray(b)), c, a], [True, False, False])
    found = VerificationBin(path)
    assert [found.read(index).encoded for index in range(len(found))] == [b, a, c]
    assert found.first.tolist() == [0, 1, 2] and found.second.tolist() == [1, 0, 1]
    assert found.describe(2) == f"{path} image 4 (of pair 2)"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ((IMAGES,), r"not hold the pair \(images, same\)"),
        ((None, [True]), "not hold a list of two images for each of 1 pairs"),
        ((IMAGES, [True]), "not hold a list of two images for each of 1 pairs"),
        (([], []), "not hold a list of two images"),
        ((IMAGES, None), "its answers are no list of true and false"),
        ((IMAGES, [True, 2]), "its answers are no list"),
        ((IMAGES, [[True], False]), "its answers are no list"),
        ((IMAGES, np.array([1, 256], np.uint16)), "its answers are no list"),
        ((IMAGES, [np.int64(1), np.int64(256)]), "its answers are no list"),
        (([*IMAGES[:3], "text"], SAME), "image 3 is no encoded image"),
        (([*IMAGES[:3], IMAGES[3][:31]], SAME), "image 3 is no encoded"),  # fewer bytes than any image
        (([*IMAGES[:3], ROWS[3] > 3], SAME), "image 3 is no encoded"),
        (([*IMAGES[:3], RGB[0]], SAME), r"and the shape \(12, 10, 3\); images are encoded"),
        ((IMAGES, np.array([1.0, 0.0])), "an array of f8; images are uint8, answers bool or whole numbers"),
        (([*IMAGES[:3], Path("x")], SAME), r"asks for pathlib\.\w+; nothing of it was run"),
    ],
)
def test_what_is_no_verification_set_is_refused_in_a_line(tmp_path, content, message):
    path = dumped(tmp_path, *content)
    with pytest.raises(UserError, match=message) as refused:
        VerificationBin(path)
    assert str(refused.value).startswith(f"{path}: ") and str(refused.value).isprintable()


def test_what_is_written_is_read_here_and_by_plain_pickle(tmp_path):
    path = tmp_path / "set.bin"
    a, b, c, _ = IMAGES
    write_bin(path, iter([b, a, c, b]), [True, np.False_])
    found = VerificationBin(path)
    assert [found.read(index).encoded for index in range(len(found))] == [b, a, c]
    # As InsightFace's load_bin does it, in a process that has nothing of ours.
    code = (
        "import pickle, sys; bins, issame_list = pickle.load(open(sys.argv[1], 'rb')); "
        "assert all(type(b) is bytes for b in bins) and issame_list == [True, False]; "
        "assert bins[0] == bins[3] and len(bins) == 2 * len(issame_list)"
    )
    subprocess.run([sys.executable, "-I", "-c", code, str(path)], check=True)
    assert len(path.read_bytes()) < len(b) * 2 + len(a) + len(c)  # the repeated image is there once
