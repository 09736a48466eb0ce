"""From where a trained model lies to one that is ready for use."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from megaclass.checkpoint import Checkpoint
from megaclass.checkpoint.reader import expecting
from megaclass.checkpoint.weights import located, stored_rows, sub_centres, weights_of
from megaclass.config import Config, from_mapping, load_recipe
from megaclass.data.classnames import read_classes
from megaclass.data.preprocessing import NORMALISATIONS
from megaclass.errors import UserError
from megaclass.heads.linear import LinearHead
from megaclass.inference.about import About
from megaclass.inference.bundle import ABOUT, SCHEME, fetched, open_bundle
from megaclass.inference.model import GivenLogits, Model
from megaclass.inference.runtimes import FACE_SIZE, open_runtime
from megaclass.parallel.groups import pick_device
from megaclass.results.events import EvaluationEvent, read_events
from megaclass.results.rundir import RunDirectory
from megaclass.train.arithmetic import pick_arithmetic, use_threads
from megaclass.train.job import image_reader
from megaclass.train.model import build_model, preprocessing_of
from megaclass.train.start import linear_head

_NETWORKS = (".onnx", ".xml")


def load(
    source: str | Path, *, checkpoint: str = "best", device: str = "auto", threads: int = 0, align: str = ""
) -> Model:
    """The model of a run, ready for use.

    source: a run directory, one of its checkpoints, a bundle, ``hf://owner/name`` of one, an .onnx file, or an OpenVINO
    .xml. checkpoint: of a run: ``best``, ``latest`` or ``step-NNNNNNNN``. device: ``auto`` (CUDA where there is one),
    ``cpu``, ``cuda`` or ``cuda:1``. threads: of the CPU; 0: all cores. align: see
    :meth:`Model.aligning`.

    Raises UserError, which says what to do, for anything that is no model, is damaged, or does not fit this machine.
    """
    return open_model(source, checkpoint, {"run": {"device": device, "threads": threads}}).aligning(align)


def open_model(source: str | Path, which: str, settings: Mapping[str, Any]) -> Model:
    """The same, with settings of the run changed, such as ``{"evaluate": {"batch_size": 8}}``."""
    source = fetched(str(source)) if str(source).startswith(SCHEME) else Path(source)
    if which != "best" and ((source / ABOUT).exists() or source.suffix in _NETWORKS):
        raise UserError(f"{source}: holds one model, and no checkpoint {which!r}, as a run does; leave it out")
    if (source / ABOUT).exists():
        return open_bundle(source, settings)
    if source.suffix in _NETWORKS:
        return _of_network(source, settings)
    found = located(source, which)
    if found is None:
        raise UserError(
            f"{source}: no model there; name a run's directory, such as runs/mine-001, one checkpoint of it, or an "
            f"exported file ({', '.join(_NETWORKS)})"
        )
    return _of_run(*found, settings)


def _of_run(run_dir: Path, stored: Checkpoint, settings: Mapping[str, Any]) -> Model:
    directory = RunDirectory(run_dir)
    config = from_mapping(settings, load_recipe(str(directory.config), stored=True))
    # What a run started from need not lie here any more, and would be overwritten.
    config = replace(config, model=replace(config.model, weights=""))
    use_threads(config.run.threads)
    backbone, arithmetic = build_model(config, pick_device(config.run.device))
    embedding_dim = int(backbone.embedding_dim)  # type: ignore[arg-type]
    head, rows, of_class = None, None, sub_centres(stored)
    with expecting(f"{stored.path}: checkpoint of another model"):
        backbone.load_state_dict(weights_of(stored, "backbone"))
        if "head" in stored.state:  # a linear one; rows of a margin head are sharded
            weights = weights_of(stored, "head")
            head = LinearHead(len(weights["weight"]), embedding_dim).to(arithmetic.device)
            head.load_state_dict(weights)
    if head is not None:
        num_classes = head.out_features
    else:
        entry = stored.sharded.get("head/weight")
        if entry is None or entry.shape[1:] != (embedding_dim,):
            shape = "missing" if entry is None else entry.shape
            raise UserError(
                f"{stored.path}: checkpoint of another model (centres: {shape}, embeddings {embedding_dim})"
            )
        num_classes = entry.shape[0] // of_class
        rows = partial(_centres, stored)
    about = _about(
        config,
        backbone,
        head,
        num_classes=num_classes,
        sub_centres=of_class,
        classes=directory.read_classes(num_classes),
        evaluation=_evaluation_of(directory, stored.step),
    )
    return Model(str(stored.path), about, backbone, image_reader(config, arithmetic), head, rows)


def _about(config: Config, backbone: nn.Module, head: LinearHead | None, **more: Any) -> About:
    """What the configuration of a model, and its parts, tell of it."""
    return About(
        kind="identity" if head is None else "classification",
        preprocessing=preprocessing_of(config),
        embedding_dim=int(backbone.embedding_dim),  # type: ignore[arg-type]
        loss=config.head.loss,
        flip=config.evaluate.flip,
        recipe=config.recipe,
        **more,
    )


def _of_network(path: Path, settings: Mapping[str, Any]) -> Model:
    """Of an exported file, or of anyone's, for which ``data.image_size``, ``data.normalise``, ``evaluate.resize`` and
    ``evaluate.flip`` say what it does not."""
    config = from_mapping(settings, Config())
    threads = use_threads(config.run.threads)
    device = pick_device(config.run.device)
    given = settings.get("data", {})
    size = config.data.image_size if "image_size" in given else FACE_SIZE
    backbone = open_runtime(path, device, threads=threads, size=size)
    about: About = backbone.about
    changed: dict[str, Any] = {}
    if "normalise" in given:
        changed["mean"], changed["std"] = NORMALISATIONS[given["normalise"]]
    if "resize" in (measured := settings.get("evaluate", {})):
        changed["resize"] = config.evaluate.resize
    preprocessing = replace(about.preprocessing, **changed)
    flip = config.evaluate.flip if "flip" in measured else about.flip
    same = preprocessing == about.preprocessing and flip == about.flip
    fingerprint = about.fingerprint if same else ""  # else its embeddings are others than those of its run
    about = replace(about, preprocessing=preprocessing, flip=flip, fingerprint=fingerprint)
    reader = image_reader(config, pick_arithmetic("fp32", False, device), preprocessing)
    head = None if about.kind == "identity" else GivenLogits()
    return Model(str(path), about, backbone, reader, head)


def _centres(stored: Checkpoint, start: int, stop: int) -> Tensor:
    return stored_rows(stored, "head/weight", start, stop).fp32()


def _evaluation_of(directory: RunDirectory, step: int) -> dict[str, Any]:
    """What the run measured of the weights of this very step: of several sets the first. Empty where it did not."""
    if not directory.events.is_file():
        return {}
    found = [e for e in read_events(directory.events) if isinstance(e, EvaluationEvent) and e.step == step]
    return dict(found[0].metrics) if found else {}


def of_recipe(config: Config, names: str = "") -> Model:
    """The network that a configuration describes, with ``model.weights``, random without, and the last layer of a
    classifier that these hold. ``names``: a file of its classes. UserError for weights of another network."""
    use_threads(config.run.threads)
    weights = config.model.weights
    backbone, arithmetic = build_model(config, pick_device(config.run.device))
    head = linear_head(backbone, weights) if weights else None
    num_classes = head.out_features if head else 0
    classes = read_classes(names, num_classes) if head and names else None
    about = _about(config, backbone, head, num_classes=num_classes, classes=classes)
    return Model(
        weights or config.recipe,
        about,
        backbone,
        image_reader(config, arithmetic),
        head and head.to(arithmetic.device),
    )
