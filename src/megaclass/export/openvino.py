"""OpenVINO's files (https://docs.openvino.ai), a .xml with the network and a .bin with the weights beside it."""

from pathlib import Path

import torch

from megaclass.inference.runtimes import METADATA

SUFFIX = ".xml"


def write(path: Path, program: torch.export.ExportedProgram, about: str, result: str) -> None:
    import openvino

    model = openvino.convert_model(program)
    model.reshape([-1, *next(iter(program.example_inputs[0])).shape[1:]])  # the converter frees all sides
    model.inputs[0].get_tensor().set_names({"images"})
    model.outputs[0].get_tensor().set_names({result})
    model.set_rt_info(about, [METADATA])
    openvino.save_model(model, path, compress_to_fp16=False)
