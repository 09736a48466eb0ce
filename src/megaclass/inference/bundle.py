"""A bundle: one directory with all that a trained model needs, to copy, publish and load. It is read without trust.

::

    model.safetensors   backbone.*, and head.*: a linear head, or the centres of a margin head, fp32 (C, D)
    config.toml         the configuration; of paths the last part
    classes.txt         the names of the classes, where there are any and their centres came along
    megaclass.json      what :class:`About` says, and size and CRC32 of the files above
    README.md           the model card

Shapes: C = classes, D = embedding columns.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megaclass import __version__
from megaclass.checkpoint import tensorfile
from megaclass.checkpoint.manifest import DAMAGE
from megaclass.checkpoint.tensorfile import Blocks, FileEntry
from megaclass.config import Config, from_mapping, load_recipe, options, to_toml, values
from megaclass.errors import UserError, first_line, printable
from megaclass.files import read_regular, regular_size
from megaclass.heads.linear import LinearHead
from megaclass.inference.about import About
from megaclass.inference.model import Model
from megaclass.models.registry import configured_backbone
from megaclass.parallel.groups import pick_device
from megaclass.results.events import StartEvent, read_events
from megaclass.results.rundir import RunDirectory
from megaclass.train.arithmetic import use_threads
from megaclass.train.job import image_reader
from megaclass.train.model import build_model, preprocessing_of

FILES = (WEIGHTS, CONFIG, CLASSES, ABOUT, CARD) = (
    "model.safetensors", "config.toml", "classes.txt", "megaclass.json", "README.md"
)  # fmt: skip
_FORMAT, _CENTRES = {"format": "megaclass-bundle", "version": 1}, "head.weight"
_MOST_BYTES, _BLOCK_ROWS = 1 << 24, 1 << 15  # of megaclass.json; centres in memory at once


# -- read -----------------------------------------------------------------------------------------------


def check(path: Path) -> About:
    """What the bundle says of its model. UserError unless every file is as it was written."""
    with _blaming(path / ABOUT) as file:
        found = json.loads(read_regular(file, _MOST_BYTES))
        if {name: found[name] for name in _FORMAT} != _FORMAT:
            raise ValueError("of another format, or of a later release")
        entries = {name: FileEntry(**entry) for name, entry in found["files"].items()}
        if not {WEIGHTS, CONFIG} <= entries.keys() <= {WEIGHTS, CONFIG, CLASSES}:
            raise ValueError(f"its files are {', '.join(entries)[:80]!r}")
        about = About.from_json({**found, "classes": None}, str(file))
    for name, entry in entries.items():
        with _blaming(path / name) as file:
            if (size := regular_size(file)) != entry.bytes:
                raise ValueError(f"{size} bytes in place of {entry.bytes}")
            tensorfile.check_crc32(file, entry)
            if name == CLASSES:
                about = replace(about, classes=RunDirectory(path).read_classes())
                if len(about.classes or ()) != about.num_classes:
                    raise ValueError(f"other than {about.num_classes} names")
    return about


def open_bundle(path: Path, settings: Mapping[str, Any]) -> Model:
    """The model of a bundle, with settings changed as for a run. Nothing larger than its files is made of it."""
    about = check(path)
    config = from_mapping(settings, load_recipe(str(path / CONFIG), stored=True))
    with _blaming(path / WEIGHTS) as file:
        with torch.device("meta"):  # as large as config.toml likes, it takes no memory
            plan = configured_backbone(config.model, config.data.image_size)
        columns, is_linear = int(plan.embedding_dim), about.kind == "classification"  # type: ignore[arg-type]
        found = tensorfile.shapes(file)
        expected = {f"backbone.{name}": tuple(tensor.shape) for name, tensor in plan.state_dict().items()}
        if has_head := is_linear or _CENTRES in found:
            expected |= {_CENTRES: (about.num_classes, columns)}
            expected |= {"head.bias": (about.num_classes,)} if is_linear else {}
        for name in sorted(expected.keys() | found.keys()):
            if found.get(name) != expected.get(name):
                raise ValueError(f"{name} is {found.get(name)}, and {expected.get(name)} of {CONFIG}")
        use_threads(config.run.threads)
        backbone, arithmetic = build_model(config, pick_device(config.run.device))
        backbone.load_state_dict(tensorfile.read_tensors(file, "backbone."))
        head = LinearHead(about.num_classes, columns).to(arithmetic.device) if is_linear else None
        if head is not None:
            head.load_state_dict(tensorfile.read_tensors(file, "head."))

    def rows(start: int, stop: int) -> Tensor:
        return tensorfile.copy_rows(file, _CENTRES, start, stop, torch.empty(stop - start, columns))

    flip, reader = config.evaluate.flip and not is_linear, image_reader(config, arithmetic)
    about = replace(about, preprocessing=preprocessing_of(config), flip=flip)
    return Model(str(path), about, backbone, reader, head, rows if has_head and not is_linear else None)


@contextlib.contextmanager
def _blaming(file: Path) -> Iterator[Path]:
    """Give the path; what is wrong with the file becomes a UserError that says what to do."""
    try:
        yield file
    except (UserError, torch.OutOfMemoryError):
        raise
    except (*DAMAGE, RecursionError) as error:
        reason = error.strerror or str(error) if isinstance(error, OSError) else first_line(error)
        raise UserError(
            f"{file}: damaged ({reason[:300]}); fetch the bundle again, or write a new one"
        ) from None


# -- written --------------------------------------------------------------------------------------------


def write_bundle(model: Model, output: Path, *, name: str, centres: bool = True, **card: str) -> None:
    """Write a run's model into the new directory ``output``. Raises OSError.

    centres: of a margin head, block by block; without them the names of the classes stay away too. card: ``licence``,
    ``intended_use`` and ``data_description`` for the model card, whose title is ``name``.
    """
    run = RunDirectory(Path(model.source).resolve().parents[1])
    if not run.config.is_file():
        raise UserError(f"{model.source}: no checkpoint of a run; only one becomes a bundle")
    if not centres and model.head is not None:
        raise UserError("--centres: none goes with a margin head, not with a classifier")
    import jinja2

    events = read_events(run.events) if run.events.is_file() else []
    start = next((event for event in reversed(events) if isinstance(event, StartEvent)), None)
    config = _without_places(load_recipe(str(run.config), stored=True))
    tensors: dict[str, Tensor | Blocks] = {f"backbone.{k}": v for k, v in model.backbone.state_dict().items()}
    if model.head is not None:
        tensors |= {f"head.{key}": tensor for key, tensor in model.head.state_dict().items()}
    elif centres:
        shape = (model.num_classes, model.embedding_dim)
        tensors[_CENTRES] = Blocks(torch.float32, shape, partial(_in_blocks, model))
    output.mkdir()
    files = {WEIGHTS: tensorfile.write_tensors(output / WEIGHTS, tensors)}

    def write(file: str, content: bytes) -> None:
        files[file] = tensorfile.write_bytes(output / file, iter([content]))

    write(CONFIG, to_toml(config, docs=True).encode("utf-8", "surrogateescape"))
    if model.classes and centres:
        write(CLASSES, run.classes.read_bytes())
    about = replace(model.about, classes=None, licence=card.get("licence", "")).to_json()
    told = {**_FORMAT, "files": {file: entry._asdict() for file, entry in files.items()}, **about}
    write(ABOUT, json.dumps(told, indent=1, allow_nan=False).encode())
    loader = jinja2.PackageLoader("megaclass.inference")
    environment = jinja2.Environment(loader=loader, trim_blocks=True, lstrip_blocks=True)
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    facts = {"name": printable(name), "about": model.about, "config": config, "start": start, **card}
    facts |= {"recipe": to_toml(config, only_changed=True), "version": __version__}
    write(CARD, environment.get_template("card.md").render(facts).encode("utf-8", "replace"))


def _in_blocks(model: Model) -> Iterator[Tensor]:
    assert model.rows is not None
    for start in range(0, model.num_classes, _BLOCK_ROWS):
        yield model.rows(start, min(start + _BLOCK_ROWS, model.num_classes))


def _without_places(config: Config) -> Config:
    """The configuration without directories, hosts and keys: of each path or address its last part."""
    given: dict[str, dict[str, Any]] = {}
    for key, value in values(config).items():
        if options()[key].metadata["path"]:
            section, name = key.split(".")
            last = [part.partition("?")[0].rstrip("/").rpartition("/")[2] for part in value.split(os.pathsep)]
            given.setdefault(section, {})[name] = os.pathsep.join(last)
    unused = {"run": {"output": ""}, "model": {"weights": ""}}  # a bundle brings its own weights
    return from_mapping(given | unused, config, stored=True)
