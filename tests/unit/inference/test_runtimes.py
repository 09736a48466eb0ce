"""Other formats behind nn.Module: what ONNX Runtime and OpenVINO compute is what PyTorch does."""

import json
from dataclasses import asdict

import pytest
import torch
from torch import nn

from megaclass.data.preprocessing import Preprocessing
from megaclass.errors import UserError
from megaclass.inference.about import About
from megaclass.inference.runtimes import METADATA, open_runtime

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 7 * 7, 8)).eval()


def write(path, network, shape=("B", 3, 16, 16), dtype=TensorProto.FLOAT, metadata=None, names=("Conv", "Relu")):
    """``network`` as an .onnx file that takes its images in such a form."""
    first, last = network[0], network[3]
    weights = {"w1": first.weight, "b1": first.bias, "w2": last.weight, "b2": last.bias}
    nodes = [
        helper.make_node("Cast", ["input.1"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["cast"], ["x"], perm=[0, 3, 1, 2] if shape[-1] == 3 else [0, 1, 2, 3]),
        helper.make_node("Conv", ["x", "w1", "b1"], ["conv"], name=names[0], strides=[2, 2]),
        helper.make_node("Relu", ["conv"], ["relu"], name=names[1]),
        helper.make_node("Flatten", ["relu"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w2", "b2"], ["683"], transB=1),
    ]
    images = helper.make_tensor_value_info("input.1", dtype, shape)
    result = helper.make_tensor_value_info("683", TensorProto.FLOAT, (shape[0], 8))
    stored = [numpy_helper.from_array(value.detach().numpy(), name) for name, value in weights.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "network", [images], [result], stored),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    if metadata:
        helper.set_model_props(model, {METADATA: json.dumps(metadata)})
    onnx.save(model, str(path))
    return path


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
@pytest.mark.parametrize(
    ("form", "std"),
    [
        ({}, 0.5),
        ({"shape": ("B", 3, "H", "W")}, 0.5),
        ({"shape": (1, 3, 16, 16)}, 0.5),
        ({"shape": (2, 16, 16, 3), "dtype": TensorProto.FLOAT16}, 0.5),
        ({"shape": ("B", 16, 16, 3), "dtype": TensorProto.UINT8}, 1 / 255),
    ],
)
def test_files_of_any_form_give_what_pytorch_gives(tmp_path, network, engine, form, std):
    pytest.importorskip(engine if engine == "openvino" else "onnxruntime")
    found = open_runtime(write(tmp_path / "w600k.onnx", network, **form), engine=engine, threads=1, size=16)
    assert found.about.preprocessing == Preprocessing(16, 16, 0, (0.5 if std == 0.5 else 0.0,) * 3, (std,) * 3)
    assert (found.embedding_dim, found.about.kind, found.about.embedding_dim) == (8, "identity", 8)
    scale = 255 if form.get("dtype") == TensorProto.UINT8 else 1
    images = torch.randint(256, (5, 3, 16, 16)) / 255 * scale
    with torch.inference_mode():
        expected, rows = network(images), found(images)
    tolerance = 1e-3 if form.get("dtype") == TensorProto.FLOAT16 else 1e-5
    assert rows.dtype == torch.float32 and rows.shape == (5, 8)
    assert (rows - expected).norm() <= tolerance * expected.norm()
    assert found(images[:0]).shape == (0, 8)


def test_what_the_export_said_of_a_file_is_read(tmp_path, network):
    openvino = pytest.importorskip("openvino")
    about = About(kind="identity", preprocessing=Preprocessing(16, 16, 0, (0.1,) * 3, (0.2,) * 3), embedding_dim=8)
    told = asdict(about)
    path = write(tmp_path / "model.onnx", network, ("B", 3, "H", "W"), metadata=told)
    model = openvino.convert_model(path)
    model.set_rt_info(json.dumps(told), [METADATA])
    openvino.save_model(model, tmp_path / "model.xml", compress_to_fp16=False)
    images = torch.rand(3, 3, 16, 16)
    for name in ("model.onnx", "model.xml"):
        found = open_runtime(tmp_path / name)
        assert found.about == about
        cosines = nn.functional.cosine_similarity(found(images), network(images))
        assert cosines.min() > 0.9999
    found = open_runtime(write(path, network, metadata={**told, "preprocess_inside": True}))
    assert found.about.preprocessing.std == (1 / 255,) * 3
    # As networks exported from MXNet: they begin with a normalisation.
    assert open_runtime(write(path, network, names=("Sub1", "Mul1"))).about.preprocessing.mean == (0,) * 3


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_what_is_no_network_for_images_is_told_in_one_line(tmp_path, network, engine):
    pytest.importorskip(engine if engine == "openvino" else "onnxruntime")
    path = tmp_path / "x.onnx"

    def refused(part, size=16):
        with pytest.raises(UserError) as caught:
            open_runtime(path, engine=engine, size=size)
        assert str(path) in str(caught.value) and part in str(caught.value) and "\n" not in str(caught.value)

    refused("no such file")
    path.write_text("text")
    refused("not an ONNX model")
    write(path, nn.Sequential(nn.Conv2d(1, 4, 3), *network[1:]), ("B", 1, 16, 16))
    refused("(any, 1, 16, 16) is no batch of RGB images")
    write(path, network, ("B", 3, "H", "W"))
    refused("that can be run here", size=24)
    model = onnx.load(write(path, network))
    with pytest.raises(UserError, match="takes images of 16 x 16 pixels"):
        open_runtime(path, engine=engine)(torch.zeros(2, 3, 16, 20))
    model.graph.output.append(helper.make_tensor_value_info("relu", TensorProto.FLOAT, None))
    onnx.save(model, str(path))
    refused("1 inputs and 2 outputs")
    del model.graph.output[0]
    onnx.save(model, str(path))
    refused("no vector an image")
