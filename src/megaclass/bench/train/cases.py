"""The cases of ``bench train``, and the configuration of the run that each of them stands for."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from megaclass.bench.arguments import check_counts, crowded
from megaclass.bench.cost import backbone_cost
from megaclass.bench.recipes import PRECISIONS, SYNTHETIC, recipe_digest, recipe_of, with_settings
from megaclass.config import Config
from megaclass.data.open import open_dataset
from megaclass.errors import UserError, lookup
from megaclass.models.registry import backbone_options

_OF_THE_RECIPE = (
    *("num_classes", "embedding_dim", "image_size", "global_batch_size", "num_examples"), "warmup", "seed",
)  # fmt: skip
# Where neither the case nor the recipe nor the data says.
_CLASSES = {"linear": 1000, "margin": 100_000}


@dataclass(frozen=True, kw_only=True)
class TrainCase:
    """One measurement of training.

    An empty text or a 0 stands for what the recipe says. global_batch_size and num_classes are those of the whole job:
    with ``world_size`` ranks, or ``simulate_ranks``, each has its share. iterations: steps of an epoch. epochs: timed
    ones; warmup: those before them. num_examples: of an epoch of the schedule, for synthetic data. settings: further
    ``section.key`` values of the recipe. threads: of each process on a CPU.
    """

    benchmark: ClassVar[str] = "train"

    recipe: str = "resnet50_imagenet"
    backbone: str = ""
    num_classes: int = 0
    embedding_dim: int = 0
    image_size: int = 0
    global_batch_size: int = 0
    world_size: int = 1
    simulate_ranks: int = 1
    precision: str = "fp32"
    tf32: bool = False
    sample_rate: float = 0.0
    parallelism: str = ""
    storage: str = ""
    data: str = SYNTHETIC
    num_examples: int = 0
    iterations: int = 10
    epochs: int = 1
    warmup: int = 1
    device: str = "cpu"
    threads: int = 1
    seed: int = 0
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def ranks(self) -> int:
        """Among how many the batch and the classes are divided."""
        return self.world_size * self.simulate_ranks

    @property
    def steps(self) -> int:
        """Timed turns."""
        return self.epochs

    @property
    def text(self) -> str:
        """For a person, in a line."""
        text = f"{self.recipe} {self.backbone} {self.image_size} px, global batch {self.global_batch_size:,}"
        text += f", {self.num_classes:,} classes"
        if 0 < self.sample_rate < 1:
            text += f" at rate {self.sample_rate:g}"
        if self.parallelism == "data":
            text += ", head on every rank"
        if self.simulate_ranks > 1:
            text += f", rank 0 of {self.simulate_ranks}"
        if self.world_size > 1:
            text += f", {self.world_size} ranks"
        return f"{text}, {self.precision}{'+tf32' if self.tf32 else ''}, {self.device}"

    def parameters(self) -> dict[str, Any]:
        """For a row."""
        return asdict(self) | recipe_digest(self.recipe)

    def check(self) -> None:
        """What no machine could run is the user's mistake."""
        lookup(dict.fromkeys(PRECISIONS.values()), self.precision, "precision")
        check_counts(self, _OF_THE_RECIPE)
        if self.world_size > 1 and self.simulate_ranks > 1:
            raise UserError("--simulate-ranks stands for the other ranks: it goes with one process (-n 1)")

    def why_skipped(self, gpus: int) -> str:
        """Why this case does not fit the machine or itself, or an empty string."""
        if self.global_batch_size % self.ranks:
            return f"a global batch of {self.global_batch_size} does not divide into {self.ranks} ranks"
        if self.device == "cuda" and self.world_size > gpus:
            return f"{self.world_size} processes need as many GPUs, and there are {gpus}"
        if reason := crowded(self.device, self.world_size):
            return reason
        if self.device == "cpu" and (self.precision == "tf32" or self.tf32):
            return "tf32 exists on CUDA only"
        return ""


def config_of(case: TrainCase) -> Config:
    """The configuration that the case trains. UserError: a recipe or a value that there is not."""
    recipe = recipe_of(case.recipe, case.backbone)
    taken = backbone_options(recipe.model.name)
    given: dict[str, dict[str, Any]] = {
        "run": {"device": case.device, "threads": case.threads, "tensorboard": False},
        "data": _data_of(case, recipe),
        # Where a backbone fixes it, the case only says what it is.
        "model": {"embedding_dim": case.embedding_dim if "embedding_dim" in taken else 0},
        "head": {"sample_rate": case.sample_rate, "parallelism": case.parallelism, "storage": case.storage},
        "precision": {"compute": case.precision, "tf32": case.tf32},
    }
    if recipe.head.kind == "margin":
        given["head"]["precision"] = "bf16" if case.precision == "fp16" else case.precision
    said = {
        section: {
            name: value for name, value in values.items() if value not in ("", 0, 0.0) or value is False
        }
        for section, values in given.items()
    }
    said["run"]["seed"] = case.seed
    return with_settings(recipe, said, case.settings)


def _data_of(case: TrainCase, recipe: Config) -> dict[str, Any]:
    data = {"image_size": case.image_size, "global_batch_size": case.global_batch_size}
    if case.data == SYNTHETIC:
        classes = case.num_classes or recipe.data.num_classes or _CLASSES[recipe.head.kind]
        return data | {"source": "synthetic", "num_classes": classes, "num_samples": case.num_examples}
    path = training_path(case.data)
    return data | {"source": "records" if (path / "train.rec").exists() else "folder", "path": str(path)}


def training_path(data: str) -> Path:
    """The set under ``data``, or under its ``train`` where it has one."""
    return Path(data) / "train" if (Path(data) / "train").is_dir() else Path(data)


def resolved(case: TrainCase) -> TrainCase:
    """The case with everything said that it left to its recipe or its data. UserError: no set of images there, or one
    of other classes."""
    case.check()
    config = config_of(case)
    classes = config.data.num_classes
    if case.data != SYNTHETIC:
        classes = open_dataset(training_path(case.data)).num_classes * config.data.orientations
        if case.num_classes not in (0, classes):
            raise UserError(
                f"--num-classes: {case.num_classes}, but {case.data} has {classes} classes; leave it out"
            )
    return replace(
        case,
        backbone=config.model.name,
        num_classes=classes,
        embedding_dim=backbone_cost(config).embedding_dim,
        image_size=config.data.image_size,
        global_batch_size=config.data.global_batch_size,
        sample_rate=config.head.sample_rate,
        parallelism=config.head.parallelism,
        storage=config.head.storage,
    )
