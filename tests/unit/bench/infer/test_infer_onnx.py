"""The exported model in ONNX Runtime computes what PyTorch does."""

import pytest
import torch

from megaclass.bench.old_infer import onnx_engine
from megaclass.bench.old_infer.cases import InferCase, config_of, resolved
from megaclass.bench.old_infer.engines import build_engine
from megaclass.bench.old_infer.model import build_scorer
from megaclass.train.model import input_function

CPU = torch.device("cpu")
needs_onnx = pytest.mark.skipif(bool(onnx_engine.missing("cpu")), reason=onnx_engine.missing("cpu") or "here")


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "backbone", "image_size"),
    [
        ("glyphs", "convnet", 48),
        ("faces_r50", "iresnet18", 112),
        ("faces_r50", "mobilefacenet", 112),
        ("resnet50_imagenet", "resnet50", 64),
    ],
)
def test_outputs_agree_with_eager_in_fp32(recipe, backbone, image_size):
    case = resolved(
        InferCase(recipe=recipe, backbone=backbone, image_size=image_size, batch_size=2, engine="onnx")
    )
    config = config_of(case)
    scorer, arithmetic = build_scorer(config, CPU)
    images = torch.randint(256, (2, image_size, image_size, 3), dtype=torch.uint8)
    with torch.inference_mode():
        inputs = input_function(config, arithmetic)(images)
        assert inputs.is_contiguous()
        expected = scorer(inputs)
        forward = build_engine(scorer, torch.zeros_like(inputs), case)
        found = forward(inputs)
    assert found.shape == expected.shape and found.dtype == torch.float32
    assert (found - expected).norm() <= 1e-4 * expected.norm()
    assert not torch.equal(found[0], found[1])


def test_tf32_is_used_where_the_case_allows_it():
    def use_tf32(**case):
        return onnx_engine.provider(InferCase(engine="onnx", device="cuda", **case))[1]["use_tf32"]

    assert use_tf32(precision="fp32") == "0" and use_tf32(precision="tf32") == "1"
    assert use_tf32(precision="fp16") == "0" and use_tf32(precision="fp16", tf32=True) == "1"


def test_a_want_of_memory_is_told_as_python_tells_it():
    class Session:
        def run(self, *args):
            raise RuntimeError(
                "[ONNXRuntimeError] : 6 : Failed to allocate memory for requested buffer of size 9\nx"
            )

    with pytest.raises(MemoryError, match=r"of size 9$"):
        onnx_engine._on_cpu(Session())(torch.zeros(1))
