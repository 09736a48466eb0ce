"""Verification sets as they are found, by whatever they were written, and as they are written here."""

import hashlib
import json
import pickle
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg

from megaclass.data.verification_bin import VerificationBin, write_bin
from megaclass.errors import UserError

FIXTURES = Path(__file__).parents[2] / "fixtures" / "binset"
EXPECTED = json.loads((FIXTURES / "expected.json").read_text())
WAYS = sorted(path.stem for path in FIXTURES.glob("*.bin"))
RGB = np.random.default_rng(0).integers(0, 256, (4, 12, 10, 3), dtype=np.uint8)
JPEGS = [simplejpeg.encode_jpeg(pixels) for pixels in RGB]


def dumped(folder, *content, protocol=4):
    path = folder / "set.bin"
    path.write_bytes(pickle.dumps(content, protocol))
    return path


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_pickling_gives_the_same_images_and_pairs(way):
    found = VerificationBin(FIXTURES / f"{way}.bin")
    digests = [hashlib.sha256(found.read(index).encoded).hexdigest() for index in range(len(found))]
    assert digests == EXPECTED["images"]
    assert found.first.tolist() == [0, 2] and found.second.tolist() == [1, 3]
    assert found.same.tolist() == EXPECTED["same"] and found.same.dtype == np.bool_
    assert found.labels().tolist() == [0] * 4 and found.num_classes == 1 and found.name == way


def test_an_image_of_many_pairs_is_kept_once_in_order_of_its_first(tmp_path):
    a, b, c, _ = JPEGS
    path = dumped(tmp_path, [b, a, a, bytes(bytearray(b)), c, a], [True, False, False])
    found = VerificationBin(path)
    assert [found.read(index).encoded for index in range(len(found))] == [b, a, c]
    assert found.first.tolist() == [0, 1, 2] and found.second.tolist() == [1, 0, 1]
    assert [found.describe(index) for index in range(3)] == [
        f"{path} image 0 (of pair 0)",
        f"{path} image 1 (of pair 0)",
        f"{path} image 4 (of pair 2)",
    ]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("kind", ["<i8", ">i8", "<i4", ">u2", "u1", "i1", "?"])
def test_answers_are_numpys_numbers_of_any_kind(tmp_path, protocol, kind):
    wanted = [True, False]
    for given in (np.array([1, 0], kind), [np.array(number, kind)[()] for number in (1, 0)]):
        found = VerificationBin(dumped(tmp_path, JPEGS, given, protocol=protocol))
        assert found.same.tolist() == wanted and found.same.dtype == np.bool_


def test_images_as_opencv_encodes_them(tmp_path):
    """(N, 1) in older versions, (N,) in newer ones."""
    row = cv2.imencode(".png", RGB[0])[1].reshape(-1)
    path = dumped(tmp_path, [row, row[:, None], row[None], row.tobytes()], [True, True], protocol=2)
    found = VerificationBin(path)
    assert {found.read(index).encoded for index in range(len(found))} == {row.tobytes()}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ((JPEGS,), r"not hold the pair \(images, same\)"),
        ((None, [True]), "not hold a list of two images for each of 1 pairs"),
        ((JPEGS, [True]), "not hold a list of two images for each of 1 pairs"),
        (([], []), "not hold a list of two images"),
        ((JPEGS, None), "its answers are no list of true and false"),
        ((JPEGS, [True, 2]), "its answers are no list"),
        ((JPEGS, [[True], False]), "its answers are no list"),
        ((JPEGS, np.array([1, 256], np.uint16)), "its answers are no list"),
        ((JPEGS, [np.int64(1), np.int64(256)]), "its answers are no list"),
        (([*JPEGS[:3], "text"], [True, False]), "image 3 is no encoded image"),
        (([*JPEGS[:3], JPEGS[3][:31]], [True, False]), "image 3 is no encoded"),  # fewer bytes than any image
        (([*JPEGS[:3], RGB[0, 0, 0] > 3], [True, False]), "image 3 is no encoded"),
        (([*JPEGS[:3], RGB[0]], [True, False]), r"and the shape \(12, 10, 3\); images are encoded"),
        ((JPEGS, np.array([1.0, 0.0])), "an array of f8; images are uint8, answers bool or whole numbers"),
        (([*JPEGS[:3], Path("x")], [True, False]), r"asks for pathlib\.\w+; nothing of it was run"),
    ],
)
def test_what_is_no_verification_set_is_refused_in_a_line(tmp_path, content, message):
    path = dumped(tmp_path, *content)
    with pytest.raises(UserError, match=message) as refused:
        VerificationBin(path)
    assert str(refused.value).startswith(f"{path}: ") and str(refused.value).isprintable()


@pytest.mark.parametrize("content", [None, b"", b"hello, pairs\n", b"\xff\xd8\xff\xe0 image", b"\n"])
def test_what_is_no_pickle_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "set.bin").write_bytes(content)
    with pytest.raises(UserError, match=r"set\.bin: no(t read as a verification set| such file)") as refused:
        VerificationBin(tmp_path / "set.bin")
    assert "\n" not in str(refused.value)


def test_what_is_written_is_read_here_and_by_plain_pickle(tmp_path):
    path = tmp_path / "set.bin"
    a, b, c, _ = JPEGS
    write_bin(path, iter([a, b, c, a]), [True, np.False_])
    found = VerificationBin(path)
    assert [found.read(index).encoded for index in range(len(found))] == [a, b, c]
    # As InsightFace's load_bin does it, in a process that has nothing of ours.
    code = (
        "import pickle, sys; bins, issame_list = pickle.load(open(sys.argv[1], 'rb')); "
        "assert all(type(b) is bytes for b in bins) and issame_list == [True, False]; "
        "assert bins[0] == bins[3] and len(bins) == 2 * len(issame_list)"
    )
    subprocess.run([sys.executable, "-I", "-c", code, str(path)], check=True)
    assert len(path.read_bytes()) < len(a) * 2 + len(b) + len(c)  # the repeated image is there once


def test_nothing_is_overwritten_and_nothing_left_half_done(tmp_path):
    path = tmp_path / "set.bin"
    path.write_bytes(b"mine")
    with pytest.raises(UserError, match="exists and is not overwritten"):
        write_bin(path, JPEGS, [True, False])
    assert path.read_bytes() == b"mine"
    with pytest.raises(UserError, match=r"cannot be written: No such file or directory"):
        write_bin(tmp_path / "absent" / "set.bin", JPEGS, [True, False])
    assert [entry.name for entry in tmp_path.iterdir()] == ["set.bin"]
