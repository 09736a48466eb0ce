"""Networks in files of other formats behind ``nn.Module``: .onnx files by ONNX Runtime (https://onnxruntime.ai), on
CUDA by its CUDA or TensorRT provider, and .xml files by OpenVINO (https://docs.openvino.ai).

Shapes: B = images of a batch, D = embedding columns (or logits), H, W = image.
"""

import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from megaclass.data.preprocessing import Preprocessing
from megaclass.errors import UserError, out_of_memory
from megaclass.heads.precision import cpu_has_bf16
from megaclass.inference.about import About, read_about

# What OpenVINO and NNCF send their maker of their use: without this package, which they can do without, nothing.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

METADATA = "megaclass"  # the key under which `megaclass export` stores one JSON object in a file
PACKAGES = {"onnx": ("onnx", "onnxruntime"), "openvino": ("openvino",), "tensorrt": ("onnx", "onnxruntime")}
FACE_SIZE = 112  # of a file that says none

_PIXELS = (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)  # as mean and deviation: left as they are
_TYPES = {"float": torch.float32, "float16": torch.float16, "uint8": torch.uint8}
# Among the first nodes of a network that was exported from MXNet, which normalises itself.
_NORMALISING = ("Sub", "_minus"), ("Mul", "_mul", "Div")
_FIRST_NODES = 8


@dataclass(frozen=True)
class Graph:
    """A network of one input and one output. run: a contiguous batch of ``shape`` (None: free) and ``dtype`` on
    ``device`` -> the output there, valid until the next call. stored: what `megaclass export` wrote into the file.
    takes_pixels: it normalises them itself."""

    run: Callable[[Tensor], Tensor]
    shape: list[int | None]
    dtype: torch.dtype
    stored: str
    device: torch.device = torch.device("cpu")
    takes_pixels: bool = False


class RuntimeBackbone(nn.Module):
    """images_BCHW, fp32, normalised as ``about.preprocessing`` says -> what the file computes of them, fp32 (B, D).

    about: as `megaclass export` wrote it into the file. One that brings none counts as an identity network whose pixels
    are brought to [-1, 1], as InsightFace has it, or left as they are where the graph takes bytes or normalises itself.
    Images have the size that the graph says, else ``about``, else ``size``; NCHW or NHWC, fp32, fp16 or uint8, any
    number of them or a fixed one. Raises UserError: a file that takes no RGB images, or gives no vector an image.
    """

    def __init__(self, graph: Graph, name: str, size: int = FACE_SIZE) -> None:
        super().__init__()
        self._graph, self._name = graph, name
        about = _about(graph.stored, name, size)
        self._channels_last, fixed = _sides(graph.shape, name)
        told = about.preprocessing
        told = replace(told, height=fixed[0] or told.height, width=fixed[1] or told.width)
        inside = bool(graph.stored) and json.loads(graph.stored).get("preprocess_inside")
        if inside or graph.takes_pixels or graph.dtype == torch.uint8:
            told = replace(told, mean=_PIXELS[0], std=_PIXELS[1])
        self._fixed, self.embedding_dim = fixed, 0
        self.embedding_dim = self(torch.zeros(1, 3, told.height, told.width)).shape[1]
        self.about = replace(about, preprocessing=told, embedding_dim=self.embedding_dim)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        count, _, height, width = images_BCHW.shape
        if self._fixed[0] not in (None, height) or self._fixed[1] not in (None, width):
            takes = " x ".join(str(side or "any") for side in self._fixed)
            raise UserError(f"{self._name}: takes images of {takes} pixels (height x width), not {height} x {width}")
        if not count:
            return images_BCHW.new_zeros(0, self.embedding_dim)
        graph, batch = self._graph, self._graph.shape[0]
        images = images_BCHW.permute(0, 2, 3, 1) if self._channels_last else images_BCHW
        images = images.round().clamp(0, 255) if graph.dtype == torch.uint8 else images
        images = images.to(graph.device, graph.dtype).contiguous()
        if batch in (None, count):
            rows = graph.run(images)
        else:  # a fixed number: the last ones in the company of black images
            images = torch.cat([images, images.new_zeros(-count % batch, *images.shape[1:])])
            rows = torch.cat([graph.run(part).clone() for part in images.split(batch)])[:count]
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
    """The network of an .onnx file or of an OpenVINO .xml. UserError: none of these, or it takes no images.

    device: of an .onnx file; the CPU where this ONNX Runtime has no CUDA. threads: of a CPU; 0: all cores. precision:
    in what fp32 is computed: ``fp32``, ``tf32`` (CUDA), ``bf16`` (OpenVINO), or ``int8``: bf16 where the CPU has it, in
    what an int8 network keeps in fp32. engine: ``onnx``, ``openvino`` (which reads .onnx too) or ``tensorrt``; empty:
    by the file's name. size: pixels, see :class:`RuntimeBackbone`.
    """
    path = Path(path)
    engine = engine or ("openvino" if path.suffix == ".xml" else "onnx")
    if reason := missing(engine):
        raise UserError(f"{path}: {reason}")
    if not path.is_file():
        raise UserError(f"{path}: no such file; name an .onnx file or an OpenVINO .xml")
    try:
        if engine == "openvino":
            return RuntimeBackbone(_openvino(path, threads, precision, size), str(path), size)
        graph = _onnx(path, torch.device(device), threads, precision, engine)
        return RuntimeBackbone(graph, str(path), size)
    except UserError:
        raise
    except Exception as error:
        what = "OpenVINO model with its .bin beside it" if path.suffix == ".xml" else "ONNX model"
        if out_of_memory(error):
            raise
        # OpenVINO begins with places in its source.
        raise UserError(f"{path}: not an {what} that can be run here ({str(error).strip().splitlines()[-1]})") from None


def missing(engine: str, device: str = "cpu", also: Sequence[str] = ()) -> str:
    """What to install for an engine, and ``also`` for what goes with it, or an empty string."""
    wanted = dict.fromkeys([*PACKAGES[engine], *also])
    lacking = [name for name in wanted if importlib.util.find_spec(name) is None]
    if lacking:
        extra = "openvino" if {"openvino", "nncf"} & set(lacking) else "onnx"
        return f"not installed: {', '.join(lacking)}; pip install 'megaclass[{extra}]'"
    provider = "Tensorrt" if engine == "tensorrt" else "CUDA"
    if device == "cuda" and engine != "openvino" and not _has(provider):
        return f"this ONNX Runtime has no {provider}: pip install onnxruntime-gpu in the place of onnxruntime"
    return ""


def _has(provider: str) -> bool:
    import onnxruntime

    return f"{provider}ExecutionProvider" in onnxruntime.get_available_providers()


def providers(device: torch.device, precision: str, engine: str = "onnx") -> list[tuple[str, dict[str, str]]]:
    """ONNX Runtime's execution providers with their options: CUDA's takes tf32 for fp32 unless it is told not to."""
    if device.type == "cpu":
        return [("CPUExecutionProvider", {})]
    index = {"device_id": str(device.index or 0)}
    cuda = "CUDAExecutionProvider", index | {"use_tf32": str(int(precision == "tf32"))}
    return [("TensorrtExecutionProvider", index), cuda] if engine == "tensorrt" else [cuda]


def _onnx(path: Path, device: torch.device, threads: int, precision: str, engine: str) -> Graph:
    import onnx
    import onnxruntime

    if device.type != "cpu" and not _has("CUDA"):
        device = torch.device("cpu")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors; what a user has to know is raised
    session = onnxruntime.InferenceSession(str(path), options, providers=providers(device, precision, engine))
    source, result = _only(path, session.get_inputs(), session.get_outputs())
    dtype = _TYPES.get(source.type[len("tensor(") : -1])
    if dtype is None:
        raise UserError(f"{path}: its input is a {source.type}; images are float, float16 or uint8")
    numpy_type = torch.empty(0, dtype=dtype).numpy().dtype

    def run(images: Tensor) -> Tensor:
        binding = session.io_binding()
        place = device.type, device.index or 0
        binding.bind_input(source.name, *place, numpy_type, tuple(images.shape), images.data_ptr())
        binding.bind_output(result.name, *place)
        if device.type == "cuda":  # the session works on a stream of its own: the images have to be there
            torch.cuda.current_stream(device).synchronize()
        session.run_with_iobinding(binding)  # returns when the result is there
        result_BD: Tensor = torch.from_dlpack(binding.get_outputs()[0])
        return result_BD

    nodes = onnx.load(str(path), load_external_data=False).graph.node[:_FIRST_NODES]
    normalises = all(any(node.name.startswith(names) for node in nodes) for names in _NORMALISING)
    stored = session.get_modelmeta().custom_metadata_map.get(METADATA, "")
    shape = [side if isinstance(side, int) else None for side in source.shape]
    return Graph(run, shape, dtype, stored, device, normalises)


def _openvino(path: Path, threads: int, precision: str, size: int) -> Graph:
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    source, _ = _only(path, model.inputs, model.outputs)
    dtype = torch.from_numpy(np.empty(0, source.get_element_type().to_dtype())).dtype
    stored = model.get_rt_info([METADATA]).astype(str) if model.has_rt_info([METADATA]) else ""
    shape = [side.get_length() if side.is_static else None for side in source.partial_shape]
    last, sides = _sides(shape, str(path))
    if None in sides:  # with free ones its products do not notice a size that does not fit
        told = _about(stored, str(path), size).preprocessing
        sides = [sides[0] or told.height, sides[1] or told.width]
        shape[1:] = [*sides, 3] if last else [3, *sides]
        model.reshape([side or -1 for side in shape])
    bf16 = precision == "bf16" or (precision == "int8" and cpu_has_bf16())
    settings: dict[str, Any] = {  # left to itself it computes fp32 in bf16 where the CPU has it
        "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    settings |= {"INFERENCE_NUM_THREADS": threads} if threads else {}
    request = core.compile_model(model, "CPU", settings).create_infer_request()

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(request.infer([images.numpy()], share_inputs=True)[0])

    return Graph(run, shape, dtype, stored)


def _only(path: Path, inputs: Sequence[Any], outputs: Sequence[Any]) -> tuple[Any, Any]:
    if len(inputs) == len(outputs) == 1:
        return inputs[0], outputs[0]
    counts = f"{len(inputs)} inputs and {len(outputs)} outputs"
    raise UserError(f"{path}: has {counts}; a backbone has one of each")


def _about(stored: str, name: str, size: int) -> About:
    if stored:
        return read_about(stored, name)
    return About(kind="identity", preprocessing=Preprocessing(size, size), embedding_dim=0)


def _sides(shape: list[int | None], name: str) -> tuple[bool, list[int | None]]:
    """Whether an input of that shape has its channels last, and the height and width that it has fixed."""
    if len(shape) != 4 or all(channels not in (3, None) for channels in (shape[1], shape[3])):
        text = ", ".join(str(side or "any") for side in shape)
        raise UserError(f"{name}: its input ({text}) is no batch of RGB images, (B, 3, H, W) or (B, H, W, 3)")
    last = shape[1] != 3 and shape[3] == 3
    return last, shape[1:3] if last else shape[2:]
