"""The configuration of a case that trains or runs the model of a recipe, and what its backbone computes."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megaclass.bench.case import Case, fields_of, long_flag, parameter
from megaclass.config import Config, Model, find_recipe, from_mapping, load_recipe
from megaclass.data.remote import local
from megaclass.errors import UserError

if TYPE_CHECKING:
    from megaclass.data.dataset import Dataset
    from megaclass.plan.activations import Passes

SYNTHETIC = "synthetic"  # as data: noise, made on the device or in memory
ITERATIONS = {"cpu": 10, "cuda": 100}  # of an epoch
# Where neither the case nor the recipe nor the data says.
_CLASSES = {"linear": 1000, "margin": 100_000}


def precision(given: str, *more: str) -> Any:
    """The parameter; ``given``: its flag's default; ``more``: what else there is."""
    return parameter(
        "fp32",
        ", ".join(["float32 (no tf32), tf32, float16 or bfloat16", *more]),
        sweeps=True,
        flags=("--dtype", "--precision"),
        given=given,
        choices=("fp32", "tf32", "fp16", "bf16", *more),
        aliases={"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"},
        setting="precision.compute",
    )


@dataclass(frozen=True, kw_only=True)
class ModelCase(Case):
    """What cases of training and of inference have in common.

    An empty text or a 0 stands for what the recipe says. precision: ``fp32`` is IEEE's, without tf32. tf32: what
    stays in fp32 beside 16-bit products may use it. iterations: steps of an epoch. epochs: timed ones; warmup: those
    before them. settings: further ``section.key`` values of the recipe.
    """

    recipe: str = parameter("resnet50_imagenet", "recipes, or .toml files", sweeps=True)
    backbone: str = parameter("", "instead of the recipe's", sweeps=True, setting="model.name")
    image_size: int = parameter(0, "pixels; 0: the recipe's", low=0, title="px", setting="data.image_size")
    precision: str = precision("bfloat16")
    tf32: bool = parameter(False, setting="precision.tf32")
    data: str = parameter(
        SYNTHETIC,
        "record set, folder of class folders, or a directory with train/ and val/",
        flags=("--data-root",),
    )
    iterations: int = parameter(
        0, "steps of an epoch; 0: 100 on CUDA, 10 on a CPU", flags=("-i", "--iterations"), low=0, effort=True
    )
    epochs: int = parameter(
        1, "epochs, those of the warm-up included", flags=("-e", "--epochs"), given="2", low=1, effort=True
    )
    warmup: int = parameter(
        1, "epochs at the beginning that are left out", flags=("-w", "--warmup"), low=0, effort=True
    )
    device: str = parameter("auto", "auto, cpu or cuda", setting="run.device")
    threads: int = parameter(0, "of each process on a CPU; 0: its share of the cores", low=0, setting="run.threads")
    seed: int = parameter(0, "of weights, images and labels", low=0, setting="run.seed")
    settings: dict[str, Any] = parameter({})

    @property
    def steps(self) -> int:
        """Timed turns."""
        return self.epochs

    @property
    def all_steps(self) -> int:
        """Of the timed epochs and of the warm-up."""
        return self.iterations * (self.epochs + self.warmup)

    def parameters(self) -> dict[str, Any]:
        """And what tells two versions of a recipe file apart; embedded recipes belong to the source revision."""
        if ".toml" not in self.recipe:
            return asdict(self)
        digest = hashlib.sha256(find_recipe(self.recipe).read_bytes()).hexdigest()
        return asdict(self) | {"recipe_digest": digest[:12]}


def config_of(case: Any) -> Config:
    """The configuration of a case: its recipe, then the fields that stand for a setting, then its ``settings``. Empty
    texts and zeros are left to the recipe. UserError: a recipe or a value that there is not."""
    from megaclass.models.registry import backbone_options

    recipe = _recipe_of(case.recipe, case.backbone)
    margin = recipe.head.kind == "margin"
    given: dict[str, Any] = {"run.track": "none"}
    for f in fields_of(case):
        value = getattr(case, f.name)
        if f.metadata["setting"] and (value not in ("", 0) or value is False):
            given[f.metadata["setting"]] = value
    given["run.seed"] = case.seed
    if case.precision == "int8":  # what becomes of an fp32 model
        given["precision.compute"] = "fp32"
    if margin:
        given["head.precision"] = {"fp16": "bf16", "int8": "fp32"}.get(case.precision, case.precision)
    else:
        given = {key: value for key, value in given.items() if not key.startswith("head.")}
    if "embedding_dim" not in backbone_options(recipe.model.name):  # there it is fixed
        given.pop("model.embedding_dim", None)
    return with_settings(recipe, given | _data_of(case, recipe) | case.settings)


def with_settings(recipe: Config, settings: Mapping[str, Any]) -> Config:
    """The recipe with other values, by ``section.key``. UserError: a value that there is not."""
    nested: dict[str, dict[str, Any]] = {}
    for key, value in settings.items():
        section, _, name = key.partition(".")
        nested.setdefault(section, {})[name] = value
    return from_mapping(nested, recipe)


def _recipe_of(name: str, backbone: str) -> Config:
    """The recipe, without its evaluation. Options of its backbone (width, stem, ..) are of no use to another, which
    gets its own defaults."""
    from megaclass.models.registry import backbone_options

    recipe = load_recipe(name)
    model = recipe.model
    if backbone and backbone != model.name:
        backbone_options(backbone)
        model = Model(name=backbone, embedding_dim=model.embedding_dim)
    return replace(recipe, model=model, evaluate=replace(recipe.evaluate, task="none", path=""))


def _data_of(case: Any, recipe: Config) -> dict[str, Any]:
    """An inference has an output for each class of a linear head, and needs no set to know them; of synthetic data one
    class is asked for whether or not the head has any."""
    trains = case.benchmark == "train"
    if trains and case.data != SYNTHETIC:
        path = part_of(case.data, "train")
        source = "records" if (path / "train.rec").exists() else "folder"
        return {"data.source": source, "data.path": str(path)}
    scored = trains or recipe.head.kind == "linear"
    classes = case.num_classes or recipe.data.num_classes or _classes_there(recipe) or _CLASSES[recipe.head.kind]
    return {"data.source": "synthetic", "data.num_classes": classes if scored else 1}


def _classes_there(recipe: Config) -> int:
    """Of the set that the recipe trains on, where that is on this machine; else 0."""
    if recipe.data.source not in ("records", "folder") or not Path(recipe.data.path.split(":")[0]).exists():
        return 0
    return classes_of(recipe)


def classes_of(config: Config) -> int:
    """As a training on records or a folder counts them."""
    from megaclass.data.open import open_dataset

    return int(open_dataset(config.data.path).num_classes) * config.data.orientations


def part_of(data: str, part: str) -> Path:
    """The set under ``data``, or under its ``part`` (``train`` or ``val``) where it has one."""
    root = local(data)
    return root / part if (root / part).is_dir() else root


def open_images(data: str) -> "Dataset":
    """The set that an inference reads. UserError: there is none."""
    from megaclass.data.open import open_dataset

    if not local(data).exists():
        raise UserError(f"--data-root: {data} does not exist; name a set or a directory with val/")
    return open_dataset(part_of(data, "val"))


def check_settings(case: type[Any], keys: list[str]) -> None:
    """UserError: settings that the case has a flag for, or that no benchmark knows."""
    flags = {f.metadata["setting"]: long_flag(f) for f in fields_of(case) if f.metadata["help"]}
    flags |= dict.fromkeys(("data.source", "data.path"), "--data-root")
    for key in keys:
        if key in flags:
            raise UserError(f"--{key}: here that is {flags[key]}")
        if key.startswith("evaluate."):
            raise UserError(f"--{key}: a benchmark evaluates nothing; leave it out")


def timed_epochs(options: Any) -> list[int]:
    """Those that are left after the warm-up: on the command line all epochs count, as in NVIDIA's script."""
    timed = options.epochs - options.warmup
    if timed < 1 or options.warmup < 0:
        raise UserError(
            f"--epochs: {options.epochs} with {options.warmup} of warm-up leaves none to time; all epochs count"
        )
    return [timed]


def backbone_cost(config: Config) -> "Passes":
    """Counted once for each model and image size."""
    from megaclass.plan.activations import passes_of

    return passes_of(config, "fp32")
