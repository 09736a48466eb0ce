"""A bundle: one directory with all that a trained model needs, to copy, publish and load. It is read without trust.

::

    model.safetensors   backbone.*, and head.*: a linear head, or the centres of a margin head, fp32 (C * K, D)
    config.toml         the configuration; of paths the last part
    classes.txt         the names of the classes, where there are any and their centres came along
    megaclass.json      what :class:`About` says, and size and CRC32 of the files above
    README.md           the model card

Shapes: C = classes, K = sub-centres of each, D = embedding columns.
"""

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megaclass import __version__
from megaclass.checkpoint import tensorfile
from megaclass.checkpoint.manifest import faults_of
from megaclass.checkpoint.tensorfile import Blocks, FileEntry
from megaclass.config import Config, from_mapping, load_recipe, options, to_toml, values
from megaclass.errors import UserError, extra, first_line, printable
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
SCHEME = "hf://"
_FORMAT, _CENTRES = {"format": "megaclass-bundle", "version": 1}, "head.weight"
_ADVICE = "fetch the bundle again, or write a new one"
_MOST_BYTES, _BLOCK_ROWS = 1 << 24, 1 << 15  # of megaclass.json; centres in memory at once


# -- read -----------------------------------------------------------------------------------------------


def check(path: Path) -> About:
    """What the bundle says of its model. UserError unless every file is as it was written."""
    with faults_of(path / ABOUT, _ADVICE) as file:
        found = json.loads(read_regular(file, _MOST_BYTES))
        if {name: found[name] for name in _FORMAT} != _FORMAT:
            raise ValueError("of another format, or of a later release")
        entries = {name: FileEntry(**entry) for name, entry in found["files"].items()}
        if not {WEIGHTS, CONFIG} <= entries.keys() <= {WEIGHTS, CONFIG, CLASSES}:
            raise ValueError(f"its files are {', '.join(entries)[:80]!r}")
    for name, entry in entries.items():
        with faults_of(path / name, _ADVICE) as file:
            if (size := regular_size(file)) != entry.bytes:
                raise ValueError(f"{size} bytes in place of {entry.bytes}")
            tensorfile.check_crc32(file, entry)
    names = RunDirectory(path).read_classes() if CLASSES in entries else None
    return About.from_json({**found, "classes": names}, str(path / ABOUT))


def open_bundle(path: Path, settings: Mapping[str, Any]) -> Model:
    """The model of a bundle, with settings changed as for a run. Nothing larger than its files is made of it."""
    about = check(path)
    config = from_mapping(settings, load_recipe(str(path / CONFIG), stored=True))
    config = replace(config, model=replace(config.model, weights=""))
    with faults_of(path / WEIGHTS, _ADVICE) as file:
        with torch.device("meta"):  # as large as config.toml likes, it takes no memory
            plan = configured_backbone(config.model, config.data.image_size, config.head.kind)
        columns, is_linear = int(plan.embedding_dim), about.kind == "classification"  # type: ignore[arg-type]
        stored, classes = tensorfile.shapes(file).get(_CENTRES), (about.num_centres, columns)
        if sum(tensor.nbytes for tensor in plan.state_dict().values()) > regular_size(file):
            raise ValueError(f"smaller than the model of {CONFIG}")
        if stored != classes and (stored or is_linear):
            raise ValueError(f"{_CENTRES} is {stored}, and {classes} elsewhere")
        use_threads(config.run.threads)
        backbone, arithmetic = build_model(config, pick_device(config.run.device))
        backbone.load_state_dict(tensorfile.read_tensors(file, "backbone."))
        head = LinearHead(*classes).to(arithmetic.device) if is_linear else None
        if head is not None:
            head.load_state_dict(tensorfile.read_tensors(file, "head."))

    def rows(start: int, stop: int) -> Tensor:
        return tensorfile.copy_rows(file, _CENTRES, start, stop, torch.empty(stop - start, columns))

    reader, flip = image_reader(config, arithmetic), config.evaluate.flip
    about = replace(about, preprocessing=preprocessing_of(config), flip=flip, embedding_dim=columns)
    return Model(str(path), about, backbone, reader, head, rows if stored and not is_linear else None)


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
        shape = (model.about.num_centres, model.embedding_dim)
        tensors[_CENTRES] = Blocks(torch.float32, shape, partial(_in_blocks, model))
    output.mkdir()
    files = {WEIGHTS: tensorfile.write_tensors(output / WEIGHTS, tensors)}

    def write(file: str, content: bytes) -> None:
        files[file] = tensorfile.write_bytes(output / file, iter([content]))

    write(CONFIG, to_toml(config, docs=True).encode("utf-8", "surrogateescape"))
    if model.classes and centres:
        write(CLASSES, run.classes.read_bytes())
    about = asdict(replace(model.about, classes=None, licence=card.get("licence", "")))
    told = {**_FORMAT, "files": {file: entry._asdict() for file, entry in files.items()}, **about}
    write(ABOUT, json.dumps(told, indent=1, allow_nan=False).encode())
    loader = jinja2.PackageLoader("megaclass.inference")
    environment = jinja2.Environment(loader=loader, trim_blocks=True, lstrip_blocks=True)
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    facts = {"name": printable(name), "about": model.about, "config": config, "start": start, **card}
    facts |= {"recipe": to_toml(config, only_changed=True), "version": __version__}
    write(CARD, environment.get_template("card.md.j2").render(facts).encode("utf-8", "replace"))


def _in_blocks(model: Model) -> Iterator[Tensor]:
    assert model.rows is not None
    for start in range(0, count := model.about.num_centres, _BLOCK_ROWS):
        yield model.rows(start, min(start + _BLOCK_ROWS, count))


def _without_places(config: Config) -> Config:
    """The configuration without directories, hosts and keys: of each path or address its last part."""
    given: dict[str, dict[str, Any]] = {}
    for key, value in values(config).items():
        if options()[key].metadata["path"]:
            section, name = key.split(".")
            last = [part.partition("?")[0].rstrip("/").rpartition("/")[2] for part in value.split(os.pathsep)]
            given.setdefault(section, {})[name] = os.pathsep.join(last)
    here = {"run": {"output": "", "device": "auto", "threads": 0}, "model": {"weights": ""}}
    return from_mapping(given | here, config, stored=True)


# -- on the Hugging Face hub ------------------------------------------------------------------------------


def fetched(address: str) -> Path:
    """The local copy of ``hf://owner/name`` or ``hf://owner/name@revision``, of a bundle's files alone. What is there
    already is not fetched again; with HF_HUB_OFFLINE=1 nothing is asked."""
    found = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", address)
    if found is None:
        raise UserError(f"{address}: write hf://owner/name, or hf://owner/name@revision")
    with _asking(address) as hub:
        return Path(hub.snapshot_download(found[1], revision=found[2], allow_patterns=list(FILES)))


def push(directory: Path, repository: str, *, public: bool = False) -> str:
    """Upload a bundle; returns its address. A repository that is missing is made, private unless ``public``. The key is
    that of ``hf auth login``, or HF_TOKEN."""
    check(directory)
    with _asking(repository) as hub:
        api = hub.HfApi(library_name="megaclass", library_version=__version__)
        api.create_repo(repository, private=not public, exist_ok=True)
        what = {"folder_path": directory, "allow_patterns": list(FILES)}
        return str(api.upload_folder(repo_id=repository, **what).commit_url)


@contextlib.contextmanager
def _asking(what: str) -> Iterator[Any]:
    """Give the library, whose errors, and those of the network under it, are of many kinds."""
    hub = extra("huggingface_hub", "hub")
    try:
        yield hub
    except Exception as error:
        told = f"{what}: {first_line(error)}; look at the name, the network and the key (`hf auth login`, or HF_TOKEN)"
        raise UserError(told) from None
