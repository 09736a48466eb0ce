"""``megaclass data pairs``, and that an evaluation does not depend on what the same faces are stored in."""

import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg

import tiny

PEOPLE, IMAGES = 24, 5


@pytest.fixture
def faces(tmp_path):
    """A folder as LFW's, of people whose images are alike but for noise; numbers have gaps."""
    random = np.random.default_rng(0)
    for person in range(PEOPLE):
        folder = tmp_path / "faces" / f"Person_{person}"
        folder.mkdir(parents=True)
        pattern = cv2.resize(random.integers(0, 200, (4, 4, 3), np.uint8), (tiny.SIZE, tiny.SIZE))
        for image in range(IMAGES):
            pixels = pattern + random.integers(0, 56, pattern.shape, np.uint8)
            (folder / f"{folder.name}_{1 + 2 * image:04d}.jpg").write_bytes(simplejpeg.encode_jpeg(pixels))
    return tmp_path / "faces"


def zipped(folder: Path) -> Path:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for image in sorted(folder.rglob("*.jpg")):
            archive.write(image, image.relative_to(folder).as_posix())
    return path


def test_every_form_is_evaluated_to_the_last_digit_alike(told, tmp_path, faces):
    recipe = tiny.recipe(tmp_path, evaluate={"task": "verification", "path": "x", "batch_size": 7, "flip": True})
    names, packed = tmp_path / "names.txt", tmp_path / "set.bin"
    tiny.write_lfw_pairs(names, faces, 120)
    words = [zipped(faces), "--from", names, "--output", packed]
    assert told("data", "pairs", *words) == f"wrote 120 pairs in 10 folds to {packed}\n"
    forms = ([packed], [faces, "--pairs", names], [zipped(faces), "--pairs", names])
    metrics = [tiny.evaluated(tmp_path, "verification", *form, "--recipe", recipe) for form in forms]
    assert metrics[0]["pairs"] == 120 and 0.5 < metrics[0]["pair_accuracy"] < 1
    assert all(found == metrics[0] for found in metrics)
    # And a .bin drawn from records is that of the folder.
    told("data", "pack", faces, tmp_path / "packed")
    words = ["--pairs", 120, "--output", tmp_path / "of_records.bin"]
    told("data", "pairs", tmp_path / "packed", *words)
    assert (tmp_path / "of_records.bin").read_bytes() == packed.read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--output: no name is given; name a new file"),
        (["--output", "x.npz"], "--output: x.npz ends with none of .bin"),
        (["--output", "faces/Person_0/Person_0_0001.jpg"], "exists; name another file"),
        (["--output", "x.bin", "--pairs", "3"], "3 pairs cannot fill 10 folds"),
        (["--output", "x.bin", "--folds", "1"], "6000 pairs cannot fill 1 folds"),
        (["--output", "x.bin", "--seed", "-1"], "--seed: -1 is below 0"),
        (["--output", "x.bin", "--from", "absent.txt"], "absent.txt cannot be read"),
    ],
)
def test_bad_words_are_told_in_a_line(refused, tmp_path, faces, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    assert not refused(["data", "pairs", "faces", *words], message)


def test_images_that_are_none_do_not_get_into_a_bin(refused, tmp_path, faces):
    for image in faces.rglob("*.jpg"):
        image.write_bytes(b"no image at all")
    words = ["data", "pairs", faces, "--pairs", 80, "--output", tmp_path / "x.bin"]
    assert not refused(words, "not a JPEG, PNG")
