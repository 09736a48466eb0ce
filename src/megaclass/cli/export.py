"""``megaclass export``: a trained model for other programs."""

from megaclass.cli.common import tell
from megaclass.cli.parsing import make_parser, new_file, parse, require_one_process

_SOURCE = (
    "run directory, one checkpoint, or, for a network, a bundle; else also of arcface_torch: a backbone's file, or the "
    "directory of checkpoint_gpu_RANK.pt files"
)


def export(words: list[str]) -> None:
    parser = make_parser(
        "megaclass export FORMAT SOURCE OUTPUT [--result ..] [--preprocess] [--images DIR] [--int8 --calibrate DIR] "
        "[OPTIONS]",
        "Write a trained model for other programs. A network (onnx, openvino, pt2) takes any number of images, is "
        "compared with the model on images, and refused where it differs; OUTPUT.json is the report. Weights: "
        "safetensors (backbone.* and head.*, centres in fp32), backbone (a state dict; .pt: arcface_torch's model.pt), "
        "centres (weight and momentum of classes), arcface_torch (what its script resumes from, with model.pt).",
        {
            "format": "onnx (.onnx), openvino (.xml and .bin), pt2, safetensors, backbone (.safetensors, .pt), "
            "centres (.safetensors), or arcface_torch (a directory)",
            "source": _SOURCE,
            "output": "new file, or directory",
        },
        {
            "checkpoint": ("best", "of a run: best, latest or a step-NNNNNNNN"),
            "result": (
                ["auto", "features", "embeddings", "logits"],
                "of a network: embeddings are features of length 1; auto: logits of a linear head, else features",
            ),
            "preprocess": (
                False,
                "the network takes uint8 (batch, height, width, 3), RGB, and normalises itself",
            ),
            "images": ("", "to compare on; else those of the run's evaluation, or made ones"),
            "int8": (False, "onnx, openvino: 8-bit weights and activations, by NNCF"),
            "calibrate": (
                "",
                "INT8: images such as will come, from which the ranges of activations are taken",
            ),
            "calibration-images": (300, "INT8: how many of them"),
            "evaluate": (
                "",
                "INT8: set for the accuracy before and after; else that of the run's evaluation",
            ),
            "licence": ("", "of the model, to be stored in the file"),
            "classes": (":", "centres: START:STOP; one left out is the first or the last class"),
            "ranks": (0, "arcface_torch: processes that will read the files; 0: as many as wrote the source"),
            "layout": (["arcface_torch", "dropin"], "dropin: for arcface_torch's script with our head in it"),
        },
    )
    options = parse(parser, words)
    output = new_file(options.output, "OUTPUT")
    require_one_process(parser)

    from megaclass.export.run import export as write

    write(options, output, parser.get_default, tell)
    tell(f"wrote {output}")
