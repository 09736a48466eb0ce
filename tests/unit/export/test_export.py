"""An exported network is the model, says what it is, and appears whole or not at all."""

import json
import sys

import numpy as np
import pytest
import torch

import megaclass
import tiny
from megaclass.cli import main
from megaclass.data.records.reader import RecordDataset
from megaclass.export import parity
from megaclass.inference.embedding import metadata
from megaclass.inference.load import open_model


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("export")
    for kind in ("margin", "linear"):
        head = {"kind": kind} if kind == "linear" else {"scale": 16.0}
        sections = {"run": {"output": str(root / kind)}, "head": head}
        assert main(["train", tiny.recipe(root, **sections)]) == 0
    return root


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "form", "suffix", "words"),
    [
        ("margin", "onnx", ".onnx", []),
        ("linear", "onnx", ".onnx", ["--preprocess"]),
        ("margin", "openvino", ".xml", ["--preprocess"]),
        ("linear", "openvino", ".xml", ["--result", "embeddings"]),
    ],
)
def test_a_network_that_is_loaded_again_says_the_same(runs, tmp_path, kind, form, suffix, words):
    pytest.importorskip("onnxscript" if form == "onnx" else form)
    output = tmp_path / f"model{suffix}"
    images = ["--images", str(runs / "records")]
    assert main(["export", form, str(runs / kind), str(output), "--licence", "MIT", *images, *words]) == 0
    report = json.loads((tmp_path / f"model{suffix}.json").read_text())
    assert report["parity"]["images"] > 1 and report["parity"]["of"] == "records"
    ours, theirs = (megaclass.load(source, device="cpu", threads=1) for source in (runs / kind, output))
    assert theirs.about.licence == "MIT"
    if report["result"] != "logits":  # one gallery takes both
        assert metadata(theirs)["fingerprint"] == metadata(ours)["fingerprint"]
    if form == "onnx":
        first = pytest.importorskip("onnx").load(str(output)).graph.input[0].type.tensor_type.shape.dim[0]
        assert first.dim_param == "batch"
    assert str(tmp_path.parent) not in (tmp_path / f"model{suffix}.json").read_text()
    assert sys.modules["openvino_telemetry"] is None  # nobody is told of it
    if "--preprocess" not in words:
        assert theirs.preprocessing == ours.preprocessing
    records = RecordDataset(runs / "records")
    paths = [tmp_path / f"{index}.jpg" for index in range(3)]  # any number of images
    for index, path in enumerate(paths):
        path.write_bytes(records.read(index).encoded)
    for images in (paths[:1], paths):
        if kind == "linear" and "--result" not in words:
            assert theirs.classes == ours.classes
            found, expected = ([g.score for g in model.classify(images)[0]] for model in (theirs, ours))
        else:
            found, expected = theirs.embed(images), ours.embed(images)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_pt2_of_a_bundle_is_a_program_of_pytorch_alone(runs, tmp_path):
    output = tmp_path / "model.pt2"
    assert main(["bundle", str(runs / "margin"), str(tmp_path / "bundle")]) == 0
    assert main(["export", "pt2", str(tmp_path / "bundle"), str(output)]) == 0
    stored = {"megaclass": ""}
    program = torch.export.load(output, extra_files=stored).module()
    model = open_model(runs / "margin", "best", {})
    p = json.loads(stored["megaclass"])["preprocessing"]
    images = torch.randn(3, 3, p["height"], p["width"])
    with torch.inference_mode():
        torch.testing.assert_close(program(images), model.backbone.eval()(images), atol=1e-5, rtol=1e-5)


@pytest.mark.long
def test_int8_comes_with_its_accuracy_before_and_after(runs, tmp_path):
    pytest.importorskip("nncf")
    output, records = tmp_path / "model.xml", str(runs / "records")
    words = ["--int8", "--calibrate", records, "--calibration-images", "4", "--evaluate", records]
    assert main(["export", "openvino", str(runs / "linear"), str(output), *words]) == 0
    report = json.loads((tmp_path / "model.xml.json").read_text())
    assert report["calibration"]["images"] == 4 and report["accuracy"]["measure"] == "top-1"
    assert 0 <= report["accuracy"]["int8"] <= 1 and report["parity_int8"]["cosine_mean"] > 0.97
    assert report["parity_int8"] != report["parity"]
    assert "FakeQuantize" in output.read_text()


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["onx", "margin", "m.onnx"], "did you mean 'onnx'"),
        (["pt2", "margin", "m.onnx"], "does not end with .pt2"),
        (["pt2", "margin", "there.pt2"], "there.pt2 exists"),
        (["pt2", "nowhere", "m.pt2"], "no model there"),
        (["pt2", "margin", "m.pt2", "--result", "logits"], "no linear head"),
        (["pt2", "margin", "m.pt2", "--int8", "--calibrate", "records"], "--int8 goes with"),
        (
            ["backbone", "margin", "m.pt", "--ranks", "2"],
            "--ranks goes with arcface_torch, not with backbone",
        ),
        (["openvino", "margin", "m.xml", "--int8"], "--calibrate"),
    ],
)
def test_what_cannot_be_exported_is_one_line_and_leaves_nothing(refused, runs, tmp_path, monkeypatch, words, part):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.pt2").touch()
    assert not refused(["export", words[0], runs / words[1], *words[2:]], part)


def test_an_export_that_differs_is_not_left(refused, runs, tmp_path, monkeypatch):
    monkeypatch.setitem(parity.LIMITS, "fp32", ("cosine_min", 1.1))
    assert not refused(["export", "pt2", runs / "margin", tmp_path / "model.pt2"], "the export is not the model")
