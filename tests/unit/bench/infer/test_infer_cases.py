"""From words to cases of inference, and from cases to the configuration of a model."""

from dataclasses import replace

import pytest

from megaclass.bench.old_infer import onnx_engine
from megaclass.bench.old_infer.benchmark import InferBenchmark
from megaclass.bench.old_infer.cases import ENGINES, InferCase, config_of, infer_cases, resolved
from megaclass.bench.old_infer.engines import BUILDERS
from megaclass.bench.old_infer.plan import plan_of
from megaclass.config import load_recipe
from megaclass.errors import UserError


def test_an_empty_case_is_what_its_recipe_says():
    case = resolved(InferCase(recipe="resnet50_imagenet", batch_size=8))
    assert (case.backbone, case.num_classes, case.image_size) == ("resnet50", 1000, 224)
    assert resolved(case) == case
    faces = resolved(InferCase(recipe="faces_r50"))
    assert (faces.backbone, faces.num_classes, faces.image_size) == ("iresnet50", 0, 112)


def test_what_is_said_goes_before_the_recipe():
    case = resolved(
        InferCase(backbone="resnet18", num_classes=10, image_size=64, settings={"model.stem": "small"})
    )
    config = config_of(case)
    assert (config.model.name, config.data.num_classes, config.data.image_size) == ("resnet18", 10, 64)
    assert config.model.stem == "small" and config.data.normalise == "imagenet"


def test_another_backbone_does_not_get_the_options_of_the_recipes_own():
    assert load_recipe("glyphs").model.width == 32
    assert config_of(InferCase(recipe="glyphs")).model.width == 32
    assert config_of(InferCase(recipe="glyphs", backbone="resnet18")).model.width == 64


def test_the_arithmetic_is_the_cases():
    config = config_of(InferCase(precision="fp16", tf32=True))
    assert (config.precision.compute, config.precision.tf32, config.precision.channels_last) == (
        "fp16",
        True,
        True,
    )
    assert not config_of(InferCase(engine="onnx")).precision.channels_last


def test_every_combination_once_and_resolved():
    found = infer_cases(recipe=["glyphs"], engine=["eager", "onnx"], batch_size=[1, 2, 4], epochs=3)
    assert [(case.engine, case.batch_size) for case in found] == [
        ("eager", 1), ("eager", 2), ("eager", 4), ("onnx", 1), ("onnx", 2), ("onnx", 4),
    ]  # fmt: skip
    assert {(case.backbone, case.image_size, case.steps) for case in found} == {("convnet", 48, 3)}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"batch_size": 0}, "--batch-size: 0"),
        ({"image_size": -1}, "--image-size: -1"),
        ({"image_size": 4}, "data.image_size: 4"),
        ({"iterations": 0}, "--iterations: 0"),
        ({"precision": "fp8"}, "fp16"),
        ({"engine": "onyx"}, "did you mean 'onnx'"),
        ({"backbone": "resnet51"}, "resnet50"),
        ({"recipe": "resnet"}, "no recipe 'resnet'"),
        ({"settings": {"model.wdth": 8}}, "model.width"),
    ],
)
def test_what_makes_no_sense(change, named):
    with pytest.raises(UserError, match=named):
        resolved(InferCase(**change))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, ""),
        ({"precision": "fp16"}, ""),
        ({"precision": "tf32"}, "tf32"),
        ({"precision": "bf16", "tf32": True}, "tf32"),
        ({"engine": "cudagraph"}, "CUDA graphs"),
        ({"engine": "cudagraph", "device": "cuda"}, ""),
        ({"engine": "onnx"}, ""),
        ({"engine": "onnx", "precision": "bf16"}, "no bf16"),
        ({"engine": "onnx", "precision": "bf16", "device": "cuda"}, "no bf16"),
        ({"engine": "onnx", "precision": "fp16"}, "in fp32"),
        ({"engine": "onnx", "precision": "fp16", "device": "cuda"}, ""),
    ],
)
def test_what_a_machine_cannot_do_is_skipped(change, reason):
    found = InferCase(**change).why_skipped(gpus=1)
    assert reason in found and bool(found) == bool(reason)


def test_without_onnx_runtime_the_row_says_what_to_install(monkeypatch):
    monkeypatch.setattr(onnx_engine, "PACKAGES", ("torch", "no_such_package"))
    (entry,) = plan_of(resolved(InferCase(recipe="glyphs", engine="onnx"))).entries
    assert "no_such_package" in entry.missing and "megaclass[onnx]" in entry.missing
    (entry,) = plan_of(resolved(InferCase(recipe="glyphs"))).entries
    assert not entry.missing


def test_cases_that_differ_have_rows_of_their_own():
    case = resolved(InferCase(recipe="glyphs"))
    others = [replace(case, batch_size=2), replace(case, engine="compiled"), replace(case, tf32=True), case]
    assert len({key for one in others for key in plan_of(one).keys()}) == 4  # noqa: SIM118


def test_every_engine_can_be_built():
    assert {*BUILDERS} == {*ENGINES}


def test_a_step_is_a_batch_and_engines_that_compile_say_how_long():
    turn = {"samples_ms": [4.0, 6.0], "data_ms": [1.0, 1.0], "whole_ms": 10.0, "engine_s": 2.0}
    case = InferCase(batch_size=5, engine="compiled")
    found = InferBenchmark().measures("megaclass", case, [[turn]], [{}])
    assert found["rates"] == {"total": 1000.0, "compute": 1250.0, "data": 5000.0}
    assert found["step_ms"]["p50"] == 5 and found["work"] == {"compile_s": 2.0}
    assert InferBenchmark().measures("megaclass", replace(case, engine="eager"), [[turn]], [{}])["work"] == {}
