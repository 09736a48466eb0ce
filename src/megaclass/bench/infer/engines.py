"""What runs a model: PyTorch kernel by kernel, torch.compile, its CUDA graphs, or ONNX Runtime.

Shapes: B = images of a batch, HW = image.
"""

import importlib
from collections.abc import Callable

import torch
from torch import Tensor

from megaclass.bench.infer import onnx_engine
from megaclass.bench.infer.cases import InferCase
from megaclass.bench.infer.model import Scorer, cast_weights

Forward = Callable[[Tensor], Tensor]
Engine = Callable[[Scorer, Tensor, InferCase], Forward]


def _eager(scorer: Scorer, images_BCHW: Tensor, case: InferCase) -> Forward:
    if case.precision in ("bf16", "fp16"):
        cast_weights(scorer, images_BCHW)
    return scorer


def _compiled(scorer: Scorer, images_BCHW: Tensor, case: InferCase) -> Forward:
    forward: Forward = torch.compile(_eager(scorer, images_BCHW, case), dynamic=False)
    return forward


def _cudagraph(scorer: Scorer, images_BCHW: Tensor, case: InferCase) -> Forward:
    # PyTorch copies the batch into the graph's own input, replays, and hands out the graph's own output.
    forward: Forward = torch.compile(_eager(scorer, images_BCHW, case), dynamic=False, mode="reduce-overhead")
    return forward


BUILDERS: dict[str, Engine] = {
    "eager": _eager,
    "compiled": _compiled,
    "cudagraph": _cudagraph,
    "onnx": onnx_engine.build,
}


def build_engine(scorer: Scorer, images_BCHW: Tensor, case: InferCase) -> Forward:
    """From normalised images on the device to the result on the device. ``images_BCHW`` are such as will come."""
    return BUILDERS[case.engine](scorer, images_BCHW, case)


def load_engine_libraries(case: InferCase) -> None:
    """Import what an engine is made of: it is no memory of a model."""
    if case.engine in ("compiled", "cudagraph"):
        importlib.import_module("torch._inductor.compile_fx")
    if case.engine == "onnx":
        onnx_engine.load_libraries()
