import json

import numpy as np
import pytest
import simplejpeg

from megaclass.data import glyphs
from megaclass.data.records.reader import RecordDataset
from megaclass.errors import UserError

SMALL = {"image_size": 32, "held_out": 20, "max_characters": 80}


@pytest.fixture(scope="module")
def small_set(tmp_path_factory):
    return glyphs.ensure(tmp_path_factory.mktemp("glyphs") / "set", **SMALL)


def test_train_and_test_are_record_sets_of_grey_jpegs(small_set):
    stamp = json.loads((small_set / glyphs.STAMP).read_text())
    assert stamp["test_identities"] == 20
    for name in ("train", "test"):
        dataset = RecordDataset(small_set / name)
        assert (len(dataset), dataset.num_classes) == (stamp[f"{name}_images"], stamp[f"{name}_identities"])
        assert np.bincount(dataset.labels()).min() >= glyphs.MIN_DRAWINGS * glyphs.VARIANTS
        height, width, colours, _ = simplejpeg.decode_jpeg_header(dataset.read(7).encoded)
        assert (height, width, colours) == (32, 32, "Gray")


def test_images_hold_dark_ink_on_white_within_the_border(small_set):
    dataset = RecordDataset(small_set / "test")
    images = np.stack([simplejpeg.decode_jpeg(dataset.read(i).encoded, "GRAY")[..., 0] for i in range(500)])
    assert (images.min((1, 2)) < 80).all()
    border = np.concatenate([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], 1)
    assert border.mean() > 250


def test_no_character_is_in_both_sets(small_set):
    names = {n: (small_set / n / "classes.txt").read_text(encoding="utf-8") for n in ("train", "test")}
    characters = {n: {field for field in text.split() if field.startswith("U+")} for n, text in names.items()}
    assert characters["test"] and characters["test"].isdisjoint(characters["train"])
    assert len(names["test"].splitlines()) == 20


def test_the_same_seed_gives_the_same_bytes(small_set, tmp_path):
    again = glyphs.ensure(tmp_path / "set", **SMALL)
    for name in ("train/train.rec", "test/train.rec", "train/classes.txt"):
        assert (again / name).read_bytes() == (small_set / name).read_bytes()


def test_anything_else_in_its_place_is_refused_and_kept(small_set, tmp_path):
    with pytest.raises(UserError, match="held_out 20 instead of 21"):
        glyphs.ensure(small_set, **SMALL | {"held_out": 21})
    (tmp_path / "thesis.tex").write_text("two years of work")
    with pytest.raises(UserError, match="is not this glyphs data set"):
        glyphs.ensure(tmp_path, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_failed_build_leaves_nothing(tmp_path, monkeypatch):
    def fail(directory, *args):
        (directory / "train").mkdir()
        raise OSError("disk full")

    monkeypatch.setattr(glyphs, "_build", fail)
    with pytest.raises(OSError, match="disk full"):
        glyphs.ensure(tmp_path / "set", **SMALL)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def groups():
    wanted = "AΑАaBВ0OoОοо²2₂5S\u00b5μèéêẽΙI|-‐–—_.`GKκ\u0001\u00a0"
    faces = glyphs.typefaces()
    for face in faces:
        face.codepoints = face.codepoints & frozenset(map(ord, wanted))
    return [{chr(drawing.codepoint) for drawing in group} for group in glyphs.identities(faces)]


@pytest.mark.parametrize("alike", ["AАΑ", "BВ", "OoОοоΟ", "2²₂", "µμ"])
def test_characters_drawn_alike_are_one_identity(groups, alike):
    # Equal drawings are stored once, so a group names those of its characters that add a drawing.
    home = [group for group in groups if alike[0] in group]
    assert len(home) == 1
    assert not [group for group in groups if group & set(alike) and group is not home[0]]


def test_different_characters_stay_apart(groups):
    for a, b in ("Aa", "0O", "èé", "éê", "êẽ", "5S", "2S", "Kκ"):
        assert not [group for group in groups if {a, b} <= group], (a, b)


def test_shapeless_and_blank_characters_are_left_out(groups):
    assert not set("|-‐–—_.`\u0001\u00a0") & set().union(*groups)
