"""From a trained model to a file of another format, checked before it is there, with a report beside it."""

import functools
import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from megaclass.checkpoint.tensorfile import write_tensors
from megaclass.checkpoint.weights import located
from megaclass.config import Config, load_recipe
from megaclass.errors import UserError, first_line, lookup
from megaclass.export import onnx, openvino, pt2, weights
from megaclass.export.network import Network, insightface, metadata, trace
from megaclass.export.parity import evaluation_path, judge, parity, pick_images, pixels, spread
from megaclass.export.quantise import quantise
from megaclass.files import whole_file
from megaclass.inference.embedding import open_images
from megaclass.inference.evaluate import evaluate
from megaclass.inference.load import open_model
from megaclass.inference.model import Model
from megaclass.inference.runtimes import missing, open_runtime
from megaclass.models import vit
from megaclass.results.rundir import RunDirectory

Say = Callable[[str], None]

# The names here of the networks that arcface_torch has (backbones/__init__.py), all for 112 pixels.
_THEIRS = {"mobilefacenet", "mbf", "mobilefacenet_large", "mbf_large", *vit.SIZES}
_THEIRS |= {f"{name}{depth}" for name in ("iresnet", "r") for depth in (18, 34, 50, 100, 200)}


def export(options: Any, output: Path, usual: Callable[[str], Any], say: Say) -> None:
    """Write ``output``. UserError, in one line, and nothing is left. options: of the command; usual: their defaults."""
    suffixes, write, takes = lookup(FORMATS, options.format, "format")
    for option in {option: None for *_, parts in FORMATS.values() for option in parts}:
        if option not in takes and getattr(options, option) != usual(option):
            others = " and ".join(other for other, parts in FORMATS.items() if option in parts[2])
            raise UserError(f"--{option.replace('_', '-')} goes with {others}, not with {options.format}; leave it out")
    if suffixes and output.suffix not in suffixes:
        raise UserError(f"OUTPUT: {output} does not end with {' or '.join(suffixes)}; name such a file")
    write(options.source, output, options, say)


# -- as a network ----------------------------------------------------------------------------------------


def _network(made_by: ModuleType, source: str, output: Path, options: Any, say: Say) -> None:
    _check(made_by, options)
    model = open_model(
        source,
        options.checkpoint,
        {"run": {"device": "cpu"}, "precision": {"compute": "fp32", "channels_last": False}},
    )
    network = Network(model, options.result, options.preprocess)
    evaluation = evaluation_path(model)
    images, called = pick_images(options.images, evaluation, model)
    about = metadata(model, network, options.licence)
    run = pt2.runner if made_by is pt2 else open_runtime
    with whole_file("OUTPUT", output) as part:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of PyTorch, of its own parts
                program = trace(network, network.example(model))
                made_by.write(part, program, json.dumps(about), network.result)
        except (OSError, UserError):
            raise
        except Exception as error:
            raise UserError(
                f"{source}: the exporter of {output.suffix} refuses this network ({first_line(error)})"
            ) from error
        found = parity(model, network, images, run(part))
        judge(found, "fp32")
        say(f"fp32 beside the model: {_told(found)} ({called})")
        report: dict[str, Any] = {"source": about["model"], "result": network.result, "precision": "fp32"}
        report |= {"opset": onnx.OPSET} if made_by is onnx else {}
        report |= {"parity": found | {"of": Path(called).name}}
        if options.int8:
            report |= _to_int8(model, network, part, options, evaluation, say)
            found = parity(model, network, images, run(part))
            judge(found, "int8")
            say(f"int8 beside the model: {_told(found)}")
            report |= {"precision": "int8", "parity_int8": found | {"of": Path(called).name}}
        if made_by is onnx:
            report["insightface"] = insightface(model, network, part.stat().st_size / 2**20, options.int8)
            for what, reason in report["insightface"].items():
                say(f"InsightFace's {what}: {'would refuse it: ' + reason if reason else 'as it has to be'}")
        text = json.dumps(report | {"about": about}, indent=2)
        part.with_name(f"{part.name}.json").write_text(text + "\n", encoding="utf-8")


def _check(made_by: ModuleType, options: Any) -> None:
    if options.int8 and not (options.calibrate and options.calibration_images > 0):
        raise UserError("--int8 needs images to take ranges from; name some with --calibrate")
    engine, also = ("onnx", ("onnxscript",)) if made_by is onnx else ("openvino", ())
    if made_by is not pt2 and (reason := missing(engine, also=(*also, *["nncf"] * options.int8))):
        raise UserError(reason)


def _to_int8(model: Model, network: Network, path: Path, options: Any, evaluation: str, say: Say) -> dict[str, Any]:
    """Quantise the file, and measure what that takes from the accuracy."""
    images = spread(open_images([options.calibrate])[0], options.calibration_images)
    at = options.evaluate or evaluation
    before = _accuracy(path, at) if at else None
    batches = pixels(model, images, 1)
    inputs = batches if network.preprocess else (model.reader.to_input(batch).contiguous() for batch in batches)
    quantise(path, inputs, any(name.endswith("attn") for name, _ in network.backbone.named_modules()))
    report: dict[str, Any] = {
        "calibration": {"of": Path(options.calibrate).name, "images": len(images)},
        "accuracy": None,
    }
    if before is None:
        say("Warning: what INT8 takes from the accuracy is not measured; name a labelled set with --evaluate")
        return report
    after = _accuracy(path, at)
    report["accuracy"] = {"of": Path(at).name, "measure": before[0], "fp32": before[1], "int8": after[1]}
    say(f"{before[0]} on {at}: {before[1]:.2%} in fp32, {after[1]:.2%} in int8")
    return report


def _accuracy(path: Path, at: str) -> tuple[str, float]:
    """Pair accuracy, or top-1 of a classifier, of a file: the name of the measure and the number."""
    model = open_model(path, "best", {"run": {"device": "cpu"}})
    kind = "classification" if model.about.kind == "classification" else "verification"
    found = evaluate(model, at, kind, episodes=0)
    return "pair accuracy" if found.kind == "verification" else "top-1", float(found.score or 0.0)


def _told(found: dict[str, Any]) -> str:
    return (
        f"cosine {found['cosine_min']:.6f} or more, mean {found['cosine_mean']:.6f}, largest difference "
        f"{found['largest_difference']:.3g} of {found['largest_value']:.3g}, {found['images']} images"
    )


# -- weights alone ---------------------------------------------------------------------------------------


def _backbone(source: str, output: Path, options: Any, say: Say) -> None:
    with whole_file("OUTPUT", output) as part:
        model = weights.read_model(Path(source), options.checkpoint)
        weights.write_backbone(part, model, as_torch=output.suffix != ".safetensors")


def _safetensors(source: str, output: Path, options: Any, say: Say) -> None:
    with whole_file("OUTPUT", output) as part:
        weights.write_model(part, weights.read_model(Path(source), options.checkpoint))


def _centres(source: str, output: Path, options: Any, say: Say) -> None:
    """Of some classes, and their momentum where it was kept, as ``weight`` and ``momentum``, fp32."""
    found = re.fullmatch(r"(\d{0,18}):(\d{0,18})", options.classes)
    if found is None:
        raise UserError(f"--classes: {options.classes!r} is no range; write START:STOP, such as 0:1000")
    model = weights.read_model(
        Path(source), options.checkpoint, slice(*(int(n) if n else None for n in found.groups()))
    )
    if not model.centres:
        raise UserError(f"{source}: no class centres there, but a linear head or a backbone alone")
    with whole_file("OUTPUT", output) as part:
        write_tensors(part, model.centres)
    what = "classes" if model.sub_centres == 1 else f"centres, {model.sub_centres} of each class"
    say(f"{' and '.join(model.centres)} of {model.centres['weight'].shape[0]:,} {what}")


def _arcface_torch(source: str, output: Path, options: Any, say: Say) -> None:
    """The files of the ranks, and ``model.pt`` beside them."""
    with whole_file("OUTPUT", output) as part:
        paths = weights.to_rank_files(
            source, part, ranks=options.ranks, layout=options.layout, which=options.checkpoint
        )
        whole = weights.read_model(Path(source), options.checkpoint)
        weights.write_backbone(part / "model.pt", whole, as_torch=True)
    if found := located(Path(source), options.checkpoint):
        config = load_recipe(str(RunDirectory(found[0]).config), stored=True)
        model, size = config.model, config.data.image_size
        if model.name not in _THEIRS or (size, model.width) != (112, Config().model.width):
            say(f"Warning: arcface_torch has no network for {model.name}, width {model.width}, at {size} pixels")
    say(f"{len(paths)} files of ranks, and model.pt")


_OF_NETWORKS = ("result", "preprocess", "images", "licence")
_OF_INT8 = (*_OF_NETWORKS, "int8", "calibrate", "calibration_images", "evaluate")

# The suffixes of the file, what writes it, and the options that it takes besides ``checkpoint``.
FORMATS: dict[str, tuple[tuple[str, ...], Callable[[str, Path, Any, Say], None], tuple[str, ...]]] = {
    "onnx": ((onnx.SUFFIX,), functools.partial(_network, onnx), _OF_INT8),
    "openvino": ((openvino.SUFFIX,), functools.partial(_network, openvino), _OF_INT8),
    "pt2": ((pt2.SUFFIX,), functools.partial(_network, pt2), _OF_NETWORKS),
    "safetensors": ((".safetensors",), _safetensors, ()),
    "backbone": ((".safetensors", ".pt", ".pth"), _backbone, ()),
    "centres": ((".safetensors",), _centres, ("classes",)),
    "arcface_torch": ((), _arcface_torch, ("ranks", "layout")),
}
