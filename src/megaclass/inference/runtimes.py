"""Networks in files of other formats behind ``nn.Module``: .onnx files by ONNX Runtime (https://onnxruntime.ai), on
CUDA by its CUDA or TensorRT provider, and .xml files by OpenVINO (https://docs.openvino.ai).

Shapes: B = images of a batch, D = embedding columns (or logits), H, W = image.
"""

import importlib.util
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from megaclass.errors import UserError, out_of_memory

METADATA = "megaclass"  # the key under which `megaclass export` stores one JSON object in a file
FACE_SIZE = 112  # of a file that says none
# As (value / 255 - mean) / std: pixels to [-1, 1] as InsightFace has it, and pixels left as they are.
SYMMETRIC, PIXELS = ((0.5,) * 3, (0.5,) * 3), ((0.0,) * 3, (1 / 255,) * 3)

# What an engine is imported from, and the provider that ONNX Runtime needs for it.
PACKAGES = {"onnx": ("onnx", "onnxruntime"), "openvino": ("openvino",), "tensorrt": ("onnx", "onnxruntime")}
_TYPES = {"float": torch.float32, "float16": torch.float16, "uint8": torch.uint8, "double": torch.float64}
_LIKE_MXNET = ("Sub", "_minus"), ("Mul", "_mul", "Div")
_FIRST_NODES = 8


@dataclass(frozen=True)
class Graph:
    """A network of one input and one output, as a runtime has it.

    run: a contiguous batch of the input's ``shape`` (None: free) and ``dtype`` on ``device`` -> the output there, valid
    until the next call at least. metadata: what `megaclass export` said of it. normalises: it begins with a subtraction
    and a multiplication, as networks exported from MXNet do.
    """

    run: Callable[[Tensor], Tensor]
    shape: Sequence[int | None]
    dtype: torch.dtype
    device: torch.device = torch.device("cpu")
    metadata: dict[str, Any] = field(default_factory=dict)
    normalises: bool = False


class RuntimeBackbone(nn.Module):
    """images_BCHW, fp32, normalised by ``mean`` and ``std`` -> what the file computes of them, fp32 (B, D).

    mean, std: a channel, as (value / 255 - mean) / std. They are the file's metadata's; for one that brings none 0.5,
    as InsightFace's networks have it, or such that pixels stay as they are where the graph takes bytes or normalises
    itself. height, width: the file's; where it leaves them free its metadata's, else ``size``. The file may take its
    images as NCHW or NHWC, fp32, fp16 or uint8, and any number of them or a fixed one.

    Raises UserError: a file that takes no RGB images, or gives no vector an image.
    """

    def __init__(self, graph: Graph, name: str, size: int = FACE_SIZE) -> None:
        super().__init__()
        self._graph, self._name, self.metadata = graph, name, graph.metadata
        self._channels_last, (self.height, self.width) = _sides(name, graph.shape, self.metadata, size)
        self._batch = graph.shape[0]
        self._fixed = [side or 0 for side in (graph.shape[1:3] if self._channels_last else graph.shape[2:])]
        stored = self.metadata.get("preprocessing") or {}
        inside = self.metadata.get("preprocess_inside", graph.dtype == torch.uint8 or graph.normalises)
        given = stored.get("mean", SYMMETRIC[0]), stored.get("std", SYMMETRIC[1])
        self.mean, self.std = map(tuple, PIXELS if inside else given)
        self.embedding_dim = 0
        try:
            self.embedding_dim = self(torch.zeros(1, 3, self.height, self.width)).shape[1]
        except UserError:
            raise
        except Exception as error:
            raise _refused(name, f"cannot be run on {self.width} x {self.height} pixels", error) from None

    def forward(self, images_BCHW: Tensor) -> Tensor:
        count, _, *sides = images_BCHW.shape
        if any(own not in (0, side) for own, side in zip(self._fixed, sides, strict=True)):
            raise UserError(
                f"{self._name}: takes images of {self.width} x {self.height} pixels (width x height), "
                f"not {sides[1]} x {sides[0]}"
            )
        if not count:
            return images_BCHW.new_zeros(0, self.embedding_dim)
        graph = self._graph
        images = images_BCHW.permute(0, 2, 3, 1) if self._channels_last else images_BCHW
        images = images.round().clamp(0, 255) if graph.dtype == torch.uint8 else images
        images = images.to(graph.device, graph.dtype).contiguous()
        if self._batch in (None, count):
            rows = graph.run(images)
        else:  # a fixed batch, the last one filled with black images
            missing = images.new_zeros(-count % self._batch, *images.shape[1:])
            pieces = torch.cat([images, missing]).split(self._batch)
            rows = torch.cat([graph.run(piece).clone() for piece in pieces])[:count]
        if len(rows) != count or rows.numel() != count * max(rows.shape[1:], default=0):
            raise UserError(f"{self._name}: its output {tuple(rows.shape)} is no vector an image, (B, D)")
        return rows.flatten(1).to(images_BCHW.device, torch.float32)


def open_runtime(
    path: Path | str,
    device: torch.device | str = "cpu",
    *,
    threads: int = 0,
    precision: str = "fp32",
    engine: str = "",
    size: int = FACE_SIZE,
) -> RuntimeBackbone:
    """The network of an .onnx file or of an OpenVINO .xml.

    device: of an .onnx file; a CPU where this ONNX Runtime has no CUDA. threads: of a CPU; 0: all cores. precision:
    what is computed in where the file says fp32: ``fp32``, ``tf32`` (CUDA), or ``bf16`` (OpenVINO). engine: ``onnx``,
    ``openvino`` (which reads .onnx too) or ``tensorrt``; empty: by the file's name. size: pixels, see
    :class:`RuntimeBackbone`. Raises UserError: a file that is none of these, or a network that takes no images.
    """
    path = Path(path)
    engine = engine or ("openvino" if path.suffix == ".xml" else "onnx")
    if reason := missing(engine):
        raise UserError(f"{path}: {reason}")
    if not path.is_file():
        raise UserError(f"{path}: no such file; name an .onnx file or an OpenVINO .xml")
    try:
        if engine == "openvino":
            graph = _openvino(path, threads, precision, size)
        else:
            graph = _onnx(path, torch.device(device), threads, precision, engine)
    except UserError:
        raise
    except Exception as error:
        what = "OpenVINO model with its .bin beside it" if path.suffix == ".xml" else "ONNX model"
        raise _refused(path, f"not an {what} that can be run here", error) from None
    return RuntimeBackbone(graph, str(path), size)


def missing(engine: str) -> str:
    """What to install for an engine, or an empty string."""
    lacking = [name for name in PACKAGES[engine] if importlib.util.find_spec(name) is None]
    extra = "openvino" if engine == "openvino" else "onnx"
    return f"not installed: {', '.join(lacking)}; pip install 'megaclass[{extra}]'" if lacking else ""


def has_provider(name: str) -> bool:
    """Whether the installed ONNX Runtime has an execution provider: ``CUDA`` or ``Tensorrt``."""
    import onnxruntime

    return f"{name}ExecutionProvider" in onnxruntime.get_available_providers()


def providers(device: torch.device, precision: str, engine: str = "onnx") -> list[tuple[str, dict[str, str]]]:
    """ONNX Runtime's execution providers with their options: CUDA's takes tf32 for fp32 unless it is told not to."""
    if device.type == "cpu":
        return [("CPUExecutionProvider", {})]
    cuda = (
        "CUDAExecutionProvider",
        {"device_id": str(device.index or 0), "use_tf32": str(int(precision == "tf32"))},
    )
    tensorrt = "TensorrtExecutionProvider", {"device_id": str(device.index or 0)}
    return [tensorrt, cuda] if engine == "tensorrt" else [cuda]


def _onnx(path: Path, device: torch.device, threads: int, precision: str, engine: str) -> Graph:
    import onnx
    import onnxruntime

    if device.type != "cpu" and not has_provider("CUDA"):
        device = torch.device("cpu")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors; what a user has to know is raised
    session = onnxruntime.InferenceSession(str(path), options, providers=providers(device, precision, engine))
    source, result = _only(path, session.get_inputs(), session.get_outputs())
    dtype = _TYPES.get(source.type[len("tensor(") : -1])
    if dtype is None:
        raise UserError(f"{path}: its input is a {source.type}; images are float, float16 or uint8")
    index = device.index or 0

    def run(images: Tensor) -> Tensor:
        binding = session.io_binding()
        numpy_type, shape = images.new_empty(0, device="cpu").numpy().dtype, tuple(images.shape)
        binding.bind_input(source.name, device.type, index, numpy_type, shape, images.data_ptr())
        binding.bind_output(result.name, device.type, index)
        if device.type == "cuda":  # the session works on a stream of its own: the images have to be there
            torch.cuda.current_stream(device).synchronize()
        session.run_with_iobinding(binding)  # returns when the result is there
        (value,) = binding.get_outputs()
        result_BD: Tensor = torch.from_dlpack(value)
        return result_BD

    shape = [side if isinstance(side, int) else None for side in source.shape]
    nodes = onnx.load(str(path), load_external_data=False).graph.node[:_FIRST_NODES]
    both = all(any(node.name.startswith(names) for node in nodes) for names in _LIKE_MXNET)
    stored = session.get_modelmeta().custom_metadata_map.get(METADATA, "")
    return Graph(run, shape, dtype, device, _told(stored), both)


def _openvino(path: Path, threads: int, precision: str, size: int) -> Graph:
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    source, _ = _only(path, model.inputs, model.outputs)
    dtype = torch.from_numpy(np.empty(0, source.get_element_type().to_dtype())).dtype
    settings: dict[str, Any] = {  # left to itself it computes fp32 in bf16 where the CPU has it
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
        "PERFORMANCE_HINT": "LATENCY",
    }
    if threads:
        settings["INFERENCE_NUM_THREADS"] = threads
    metadata = _told(model.get_rt_info([METADATA]).astype(str) if model.has_rt_info([METADATA]) else "")
    shape = [side.get_length() if side.is_static else None for side in source.partial_shape]
    if None in shape[1:]:  # computing with free ones, its products do not notice a size that does not fit
        last, (height, width) = _sides(path, shape, metadata, size)
        shape[1:] = [height, width, 3] if last else [3, height, width]
        model.reshape([side or -1 for side in shape])
    request = core.compile_model(model, "CPU", settings).create_infer_request()

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(request.infer([images.numpy()], share_inputs=True)[0])

    return Graph(run, shape, dtype, metadata=metadata)


def _sides(
    name: Path | str, shape: Sequence[int | None], metadata: dict[str, Any], size: int
) -> tuple[bool, list[int]]:
    """Whether an input of that shape has its channels last, and the height and width of its images."""
    if len(shape) != 4 or all(channels not in (3, None) for channels in (shape[1], shape[3])):
        text = f"({', '.join(str(side or 'any') for side in shape)})"
        raise UserError(f"{name}: its input {text} is no batch of RGB images, (B, 3, H, W) or (B, H, W, 3)")
    last = shape[1] != 3 and shape[3] == 3
    stored = metadata.get("preprocessing") or {}
    sides = zip(shape[1:3] if last else shape[2:], ("height", "width"), strict=True)
    return last, [side or int(stored.get(key, size)) for side, key in sides]


def _only(path: Path, inputs: Sequence[Any], outputs: Sequence[Any]) -> tuple[Any, Any]:
    if len(inputs) != 1 or len(outputs) != 1:
        raise UserError(
            f"{path}: has {len(inputs)} inputs and {len(outputs)} outputs; a backbone has one of each"
        )
    return inputs[0], outputs[0]


def _told(stored: str) -> dict[str, Any]:
    with suppress(ValueError):
        told = json.loads(stored)
        return told if isinstance(told, dict) else {}
    return {}


def _refused(name: Path | str, what: str, error: Exception) -> Exception:
    """What a runtime has refused, in one line: its last one, OpenVINO begins with places in its source. Want of memory
    stays what it is."""
    return (
        error
        if out_of_memory(error)
        else UserError(f"{name}: {what} ({str(error).strip().splitlines()[-1]})")
    )
