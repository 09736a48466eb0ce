"""ONNX (https://onnx.ai), by PyTorch's own exporter."""

import logging
from pathlib import Path

import torch

from megaclass.inference.runtimes import METADATA

SUFFIX, OPSET = ".onnx", 18


def write(path: Path, program: torch.export.ExportedProgram, about: str, result: str) -> None:
    """Weights stand in the file, or beyond 2 GB, which it cannot hold, in one beside it."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # operators of torchvision that are not used
    made = torch.onnx.export(
        program,
        (),
        dynamo=True,
        opset_version=OPSET,
        input_names=["images"],
        output_names=[result],
        dynamic_shapes=({0: "batch"},) if program.range_constraints else None,  # what the side is called
        verbose=False,
    )
    assert made is not None
    made.model.metadata_props[METADATA] = about
    made.save(path)
