"""`megaclass bench infer`: its cases, that what is measured computes what an evaluation does, and the command."""

import copy
import itertools
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from bench_words import on_cpu, planned
from megaclass.bench.engines import EXPORTER, build_engine, build_scorer, cast_weights
from megaclass.bench.infer import ENGINES, InferCase, host_batches
from megaclass.bench.recipes import config_of
from megaclass.cli import main
from megaclass.data.augment import EvalTransform
from megaclass.data.loader import eval_batches
from megaclass.data.open import open_dataset
from megaclass.errors import UserError
from megaclass.inference import runtimes
from megaclass.results.rows import read_rows
from megaclass.train.model import build_model, input_function

CPU = torch.device("cpu")
lacks_onnx, lacks_openvino = (runtimes.missing(name, also=EXPORTER) for name in ("onnx", "openvino"))
needs_onnx = pytest.mark.skipif(bool(lacks_onnx), reason=lacks_onnx or "here")
needs_openvino = pytest.mark.skipif(bool(lacks_openvino), reason=lacks_openvino or "here")


def case_of(**fields):
    return on_cpu(InferCase(**fields))


def small(backbone, **changes):
    recipe = "resnet50_imagenet" if backbone.startswith("resnet") else "faces_r50"
    return case_of(**{"recipe": recipe, "backbone": backbone, "image_size": 112} | changes)


# -- cases ----------------------------------------------------------------------------------------------


def test_a_case_is_what_it_says_and_else_what_its_recipe_says():
    case = case_of(batch_size=8)
    assert (case.backbone, case.num_classes, case.image_size, case.iterations) == ("resnet50", 1000, 224, 10)
    assert on_cpu(case) == case
    faces = case_of(recipe="faces_r50")
    assert (faces.backbone, faces.num_classes, faces.image_size) == ("iresnet50", 0, 112)
    config = config_of(case_of(backbone="resnet18", num_classes=10, image_size=64))
    assert (config.model.name, config.data.num_classes, config.data.image_size) == ("resnet18", 10, 64)
    # Another backbone does not get the options of the recipe's own.
    assert config_of(case_of(recipe="glyphs")).model.width == 32
    assert config_of(case_of(recipe="glyphs", backbone="resnet18")).model.width == 64
    precision = config_of(InferCase(precision="fp16", tf32=True, device="cuda")).precision
    assert (precision.compute, precision.tf32, precision.channels_last) == ("fp16", True, True)


def test_batches_are_those_of_nvidias_script():
    found = [one.case for one in planned("infer", "--recipe", "glyphs", "-e", 4)]
    assert [case.batch_size for case in found] == [1, 2, 4, 8, 16, 32, 64, 128, 192, 256]
    assert {(case.backbone, case.image_size, case.steps) for case in found} == {("convnet", 48, 3)}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, ""),
        ({"precision": "tf32"}, "tf32"),
        ({"precision": "bf16", "tf32": True}, "tf32"),
        ({"engine": "cudagraph"}, "CUDA graphs"),
        ({"engine": "cudagraph", "device": "cuda"}, ""),
        ({"engine": "onnx", "precision": "bf16", "device": "cuda"}, "no bf16"),
        ({"engine": "onnx", "precision": "fp16"}, "in fp32"),
        ({"engine": "openvino", "precision": "fp16"}, "in fp32"),
        ({"engine": "openvino", "device": "cuda"}, "no CUDA"),
        ({"engine": "eager", "precision": "int8"}, "int8 is there for"),
        ({"engine": "onnx", "precision": "int8", "device": "cuda"}, "int8 is there for"),
        ({"engine": "openvino", "precision": "int8"}, ""),
    ],
)
def test_what_a_machine_cannot_do_is_skipped(change, reason):
    found = InferCase(**{"device": "cpu"} | change).why_skipped(gpus=1)
    assert reason in found and bool(found) == bool(reason)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--recipe", "glyph"], "did you mean 'glyphs'"),
        (["--dtype", "float8"], "float16"),
        (["--engine", "onyx"], "did you mean 'onnx'"),
        (["--image-size", "7"], "data.image_size: 7"),
        (["--data-root", "nowhere"], "--data-root: nowhere"),
        (["--model.wdth", "8"], "model.width"),
    ],
)
def test_what_makes_no_sense(words, part):
    with pytest.raises(UserError) as caught:
        planned("infer", "--recipe", "glyphs", *words)
    assert part in str(caught.value) and "\n" not in str(caught.value)


# -- what is measured -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backbone", "in_fp32"), [("convnet", 0), ("iresnet18", 0), ("mobilefacenet", 2), ("resnet18", 0)]
)
def test_weights_that_are_cast_once_give_the_same_bits(backbone, in_fp32):
    """All but those that a backbone computes in fp32 anyhow."""
    scorer, _ = build_scorer(config_of(small(backbone, precision="bf16")), CPU)
    images = torch.randn(2, 3, 112, 112)
    with torch.inference_mode():
        before = scorer(images)
        cast_weights(scorer, images)
        after = scorer(images)
    weights = [m.weight.dtype for m in scorer.backbone.modules() if isinstance(m, nn.Conv2d)]
    assert weights.count(torch.bfloat16) == len(weights) - in_fp32 > 0
    assert after.dtype == torch.float32 and torch.equal(before, after) and before.std() > 0


def test_results_are_logits_of_a_linear_head_in_fp32_or_embeddings():
    scorer, arithmetic = build_scorer(config_of(small("resnet18", precision="bf16", num_classes=7)), CPU)
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        with arithmetic.autocast():
            features = scorer.backbone(images)
        assert torch.equal(scorer(images), scorer.head.logits(features.float()))
    assert scorer(images).shape == (2, 7) and not scorer.training
    scorer, _ = build_scorer(config_of(case_of(recipe="glyphs")), CPU)
    assert scorer.head is None and scorer(torch.randn(3, 3, 48, 48)).shape == (3, 256)


def test_no_branch_computes_zeros_and_the_weights_of_a_file_stay_as_they_are(tmp_path):
    config = config_of(small("resnet18"))
    plain, _ = build_model(config, CPU)
    assert not plain.layer1[0].bn2.weight.any()
    scorer, _ = build_scorer(config, CPU)
    norms = [m for m in scorer.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and all(norm.weight.any() for norm in norms)
    assert torch.equal(scorer.backbone.conv1.weight, plain.conv1.weight)
    torch.save(plain.state_dict(), tmp_path / "weights.pt")
    weights = {"model.weights": str(tmp_path / "weights.pt")}
    scorer, _ = build_scorer(config_of(small("resnet18", settings=weights)), CPU)
    kept = copy.deepcopy(scorer.backbone.state_dict())
    assert all(torch.equal(kept[name], value) for name, value in plain.state_dict().items())


def test_a_set_is_read_as_an_evaluation_reads_it_and_begins_anew_at_its_end(tmp_path):
    for number in range(5):
        folder = tmp_path / "val" / f"class{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"{number}.png"), np.full((60, 50, 3), 40 * number, np.uint8))
    case = small("resnet18", image_size=32, batch_size=3, data=str(tmp_path), iterations=2)
    resize = config_of(case).evaluate.resize
    found = [images.clone() for images in host_batches(case, resize, CPU)]
    assert [len(batch) for batch in found] == [3] * 4  # two steps, of the warm-up and of the timed epoch
    dataset, transform = open_dataset(tmp_path / "val"), EvalTransform(32, resize)
    (every,) = (batch.images for batch in eval_batches(dataset, transform, 5))
    assert torch.equal(torch.cat(found), torch.cat([every, every, every[:2]])) and every.unique().numel() > 4

    noise = case_of(recipe="glyphs", batch_size=3)
    first, second, third = itertools.islice(host_batches(noise, resize, CPU), 3)
    assert first.shape == (3, 48, 48, 3) and first.dtype == torch.uint8
    assert torch.equal(first, third) and not torch.equal(first, second)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "recipe", "backbone", "image_size"),
    [
        pytest.param("onnx", "glyphs", "convnet", 48, marks=needs_onnx),
        pytest.param("onnx", "resnet50_imagenet", "resnet50", 64, marks=needs_onnx),
        pytest.param("openvino", "faces_r50", "iresnet18", 112, marks=needs_openvino),
    ],
)
def test_runtimes_agree_with_eager_in_fp32(engine, recipe, backbone, image_size):
    case = case_of(recipe=recipe, backbone=backbone, image_size=image_size, batch_size=2, engine=engine)
    config = config_of(case)
    config = replace(config, precision=replace(config.precision, channels_last=False))
    scorer, arithmetic = build_scorer(config, CPU)
    images = torch.randint(256, (2, image_size, image_size, 3), dtype=torch.uint8)
    with torch.inference_mode():
        inputs = input_function(config, arithmetic)(images)
        assert inputs.is_contiguous()
        expected = scorer(inputs)
        found = build_engine(scorer, torch.zeros_like(inputs), case, iter)(inputs)
    assert found.shape == expected.shape and found.dtype == torch.float32
    assert (found - expected).norm() <= 1e-4 * expected.norm()
    assert not torch.equal(found[0], found[1])


def test_tf32_is_used_where_it_is_asked_for():
    def use_tf32(precision):
        return runtimes.providers(torch.device("cuda"), precision)[0][1]["use_tf32"]

    assert use_tf32("tf32") == "1" and use_tf32("fp32") == use_tf32("fp16") == "0"


# -- the command ----------------------------------------------------------------------------------------


def bench(*words):
    words = ["--recipe", "glyphs", "--iterations", "2", "--device", "cpu", "--output", "rows.jsonl", *words]
    assert main(["bench", "infer", *map(str, words)]) == 0
    return read_rows("rows.jsonl")


@pytest.mark.process
def test_a_sweep_goes_on_after_what_cannot_be_measured_and_where_it_stopped(monkeypatch, capsys):
    monkeypatch.setitem(runtimes.PACKAGES, "onnx", ("no_such_package",))
    words = ["-b", "100M,2", "-e", 3, "--engine", "eager,cudagraph,onnx"]
    full, row, graph, _, lacking, _ = bench(*words)
    assert full.status == "oom" and "memory" in full.reason
    assert graph.status == lacking.status == "skipped"
    assert "CUDA" in graph.reason and "no_such_package" in lacking.reason and "megaclass[onnx]" in lacking.reason
    assert (row.status, row.reason) == ("ok", "")
    assert row.case["backbone"] == "convnet" and row.case["image_size"] == 48
    assert (row.case["epochs"], row.case["warmup"], len(row.samples_ms)) == (2, 1, 4)
    step = row.step_ms
    assert 0 < step["p50"] <= step["p90"] <= step["p95"] <= step["p99"] <= step["p100"]
    assert len(row.data_ms) == 4 and all(0 <= d < s for d, s in zip(row.data_ms, row.samples_ms, strict=True))
    assert len(row.epochs) == 2 and row.rates["compute"] >= row.rates["total"] > 0
    # An epoch is its steps and next to nothing besides.
    assert row.rates["total"] == pytest.approx(2 / step["mean"] * 1000, rel=0.1)
    assert row.environment["torch_threads"] == row.case["threads"] == 1
    capsys.readouterr()
    assert len(bench(*words)) == 6 and "6 of 6 cases are in" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["compiled", pytest.param("onnx", marks=needs_onnx)])
def test_an_engine_says_how_long_it_took_to_be_made(engine):
    (row,) = bench("-b", 2, "--engine", engine, "--dtype", "float32")
    assert (row.status, row.reason) == ("ok", "") and len(row.samples_ms) == 2
    assert row.work["compile_s"] > row.step_ms["p50"] / 1000
    assert row.case["channels_last"] == (engine != "onnx") and engine in ENGINES


@pytest.mark.slow
@needs_openvino
def test_engines_in_turns_say_what_their_output_is_worth():
    for number in range(48):
        folder = Path("set") / f"class{number % 12}"
        folder.mkdir(parents=True, exist_ok=True)
        image = np.full((48, 48, 3), 20 * (number % 12), np.uint8)
        cv2.imwrite(str(folder / f"{number}.png"), cv2.circle(image, (24, 24), number // 12 + 9, (255,) * 3, 2))
    words = ["--dtype", "float32,int8", "--engine", "openvino,eager", "--in-turns", "--data-root", "set"]
    exact, int8, eager, left_out = bench("-b", 3, *words, "--accuracy", "set")
    assert [row.status for row in (exact, int8, eager, left_out)] == ["ok"] * 3 + ["skipped"]
    assert exact.group == int8.group == eager.group and exact.case["engine"] == "openvino"
    agreements = [row.result["agreement"] for row in (eager, exact, int8)]
    assert agreements[0] == pytest.approx(1, abs=1e-6) and agreements[1] > 0.99999 > agreements[2] > 0.9
    assert exact.result["pair_accuracy"] == eager.result["pair_accuracy"] >= int8.result["pair_accuracy"] - 0.1
    assert 0.5 < eager.result["pair_accuracy"] <= 1
