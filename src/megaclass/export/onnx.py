"""ONNX (https://onnx.ai), by PyTorch's own exporter."""

import logging
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from megaclass.inference.runtimes import METADATA, open_runtime

SUFFIX, NEEDS, OPSET = ".onnx", ("onnx", "onnxscript", "onnxruntime"), 18


def write(path: Path, program: torch.export.ExportedProgram, about: str, result: str, half: bool) -> None:
    """Weights stand in the file, or beyond 2 GB, which it cannot hold, in one beside it."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # operators of torchvision that are not used
    made = torch.onnx.export(
        program,
        (),
        dynamo=True,
        opset_version=OPSET,
        input_names=["images"],
        output_names=[result],
        verbose=False,
    )
    assert made is not None
    made.model.metadata_props[METADATA] = about
    made.save(path)


def runner(path: Path) -> Callable[[Tensor], Tensor]:
    return open_runtime(path)
