"""A program of torch.export, which PyTorch loads without our code: ``torch.export.load(path).module()``."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from megaclass.inference.runtimes import METADATA

SUFFIX = ".pt2"


def write(path: Path, program: torch.export.ExportedProgram, about: str, result: str) -> None:
    torch.export.save(program, path, extra_files={METADATA: about})


def runner(path: Path) -> Callable[[Tensor], Tensor]:
    """Of the input that the program takes: normalised, or 0..255 where it does that itself."""
    program = torch.export.load(path)
    module, inside = program.module(), program.example_inputs[0][0].dtype == torch.uint8

    def run(images_BCHW: Tensor) -> Tensor:
        images = images_BCHW.permute(0, 2, 3, 1).to(torch.uint8) if inside else images_BCHW
        result: Tensor = module(images.contiguous())
        return result

    return run
