"""A model that is loaded says the same of an image in every form that programs hold images in."""

import json
from dataclasses import asdict, replace

import cv2
import numpy as np
import pytest
import torch

import megaclass
import tiny
from megaclass import UserError
from megaclass.cli import main
from megaclass.data.faces import Face, template, warped
from megaclass.data.preprocessing import Preprocessing
from megaclass.data.records.reader import RecordDataset
from megaclass.inference.about import About, read_about
from megaclass.inference.load import open_model


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of a margin head that verifies, ``margin``, and one of a linear head, ``linear``."""
    root = tmp_path_factory.mktemp("load")
    for kind in ("margin", "linear"):
        sections = {
            "run": {"output": str(root / kind), "checkpoint_every": 5},
            "head": {"kind": kind} if kind == "linear" else {"scale": 16.0},
        }
        task = {"task": "verification", "folds": 2} if kind == "margin" else {"task": "classification"}
        sections["evaluate"] = {"path": str(root / "records"), "flip": True, **task}
        assert main(["train", tiny.recipe(root, **sections)]) == 0
    return root


@pytest.fixture(scope="module")
def images(runs):
    """RGB uint8 (N, S, S, 3)."""
    records = RecordDataset(runs / "records")
    found = (np.frombuffer(records.read(i).encoded, np.uint8) for i in (0, 4, 8))
    return np.stack([cv2.imdecode(jpeg, cv2.IMREAD_COLOR_RGB) for jpeg in found])


def test_a_classifier_sees_mirror_images_too_where_its_run_was_scored_so(runs, images):
    model = megaclass.load(runs / "linear")
    for of_one, of_mirrored in zip(*map(model.classify, (images, images[:, :, ::-1])), strict=True):
        assert [guess.score for guess in of_one] == pytest.approx([guess.score for guess in of_mirrored])
    again = megaclass.evaluate(model, runs / "records", "classification")
    assert again.metrics == model.about.evaluation


def test_every_form_of_an_image_is_the_same_image(runs, images, tmp_path):
    from PIL import Image

    model = megaclass.load(runs / "margin", device="cpu", threads=1)
    expected = model.embed(images)
    np.testing.assert_allclose((expected**2).sum(1), 1, rtol=1e-6)
    path = tmp_path / "one.png"
    cv2.imwrite(str(path), images[1][..., ::-1])
    chw = torch.from_numpy(images).permute(0, 3, 1, 2)
    forms = [images[1], path, str(path), Image.fromarray(images[1]), chw[1], chw[1] / 255]
    for form in [*forms, forms, chw[1:2]]:
        np.testing.assert_allclose(model.embed(form), expected[[1]].repeat(len(model.embed(form)), 0), atol=1e-6)
    assert model.embed([]).shape == (0, 16)


def test_a_model_of_identities_compares_and_knows_its_centres(runs, images):
    model = megaclass.load(runs / "margin")
    embedded = model.embed(images)
    assert model.compare(images[0], images[2]) == pytest.approx(float(embedded[0] @ embedded[2]), abs=1e-6)
    np.testing.assert_allclose(model.compare(images[0], images), embedded @ embedded[0], atol=1e-6)
    assert model.centres.shape == (6, 16) and model.num_classes == 6 and model.classes is None
    cosines = embedded @ model.centres.numpy().T
    for guesses, row in zip(model.classify(images, top=3), cosines, strict=True):
        assert [g.label for g in guesses] == np.argsort(-row)[:3].tolist()
        assert [g.score for g in guesses] == pytest.approx(-np.sort(-row)[:3], abs=1e-5)
    assert -1 <= model.threshold <= 1 and model.about.flip
    assert model.about.evaluation["pairs"] > 0


def test_a_step_that_was_not_evaluated_has_no_threshold(runs):
    assert megaclass.load(runs / "margin", checkpoint="step-00000005").threshold is None


def test_a_classifier_gives_probabilities_and_a_checkpoint_is_a_source(runs, images):
    model = megaclass.load(runs / "linear/checkpoints/step-00000010")
    (guesses,) = model.classify(images[0], top=9)
    assert sum(g.score for g in guesses) == pytest.approx(1) and len(guesses) == 6
    assert model.centres is None and model.threshold is None and model.measure == "probability"
    each = open_model(str(runs / "linear"), "latest", {"head": {"loss": "bce"}})
    logits_6 = each.head.logits(each._features(images[0]))[0]
    for guess in each.classify(images[0], top=6)[0]:
        assert guess.score == pytest.approx(logits_6[guess.label].sigmoid().item())


def test_what_is_known_of_a_model_survives_json():
    evaluation = {"threshold": 0.3, "threshold_at_far": {"1e-3": 0.4, "1e-4": None}}
    known = About(
        kind="identity", preprocessing=Preprocessing(112, 96, mean=(0.1, 0.2, 0.3)), embedding_dim=4, num_classes=2,
        classes=["a", "b"], flip=True, evaluation=evaluation,
    )  # fmt: skip
    again = read_about(json.dumps(asdict(known) | {"of_a_later_version": 1}), "x")
    assert again == known and again.thresholds == {"1e-3": 0.4}


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "other"}, {"preprocessing": None}, {"preprocessing": {"height": 3}}, {"embedding_dim": "4"},
        {"classes": ["a"]}, {"evaluation": {"threshold": "x"}}, {"evaluation": {"threshold_at_far": {"1e-3": "x"}}},
        {"preprocessing": asdict(Preprocessing(0, 4))}, {"preprocessing": asdict(Preprocessing(4, 10**9))},
        {"preprocessing": asdict(Preprocessing(4, 4)) | {"std": [0, 1, 1]}},
    ],
)  # fmt: skip
def test_what_describes_no_model_is_refused(change):
    sound = asdict(About(kind="identity", preprocessing=Preprocessing(8, 8), embedding_dim=4, num_classes=2))
    with pytest.raises(UserError, match=r"^here: "):
        About.from_json(sound | change, "here")


@pytest.mark.parametrize(
    ("image", "part"),
    [
        (torch.full((3, 4, 4), 2.0), "0 to 1"),
        (np.zeros((4, 4, 3)), "float64"),
        (np.zeros((4, 4, 2), np.uint8), "shape"),
        (None, "NoneType"),
        ("nowhere.jpg", "nowhere.jpg"),
        (np.zeros((0, 4, 3), np.uint8), "no image"),
    ],
)
def test_what_is_no_image_is_told_by_its_number(runs, image, part):
    with pytest.raises(UserError, match=part):
        megaclass.load(runs / "margin").embed([image] if image is not None else image)


def test_where_no_model_lies(tmp_path):
    with pytest.raises(UserError, match="no model there"):
        megaclass.load(tmp_path)
    with pytest.raises(UserError, match="holds one model, and no checkpoint 'latest'"):
        megaclass.load(tmp_path / "model.onnx", checkpoint="latest")


def test_of_photographs_the_model_sees_the_face(runs, images):
    model = megaclass.load(runs / "margin", device="cpu", threads=1)
    face = Face(template(*images.shape[1:3]) * 1.5 - 3)
    seeing = replace(model, detector=lambda image_HWC: [face] if image_HWC.any() else [])
    expected = model.embed([warped(image_HWC, face, *images.shape[1:3]) for image_HWC in images])
    np.testing.assert_allclose(seeing.embed(images), expected, atol=1e-6)
    with pytest.raises(UserError, match="image 1: no face found"):
        seeing.embed([images[0], np.zeros_like(images[1])])
