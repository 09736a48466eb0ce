"""What a row of ``bench stability`` is of: a training of a recipe with one of its seeds."""

from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from megaclass.config import Config, to_mapping
from megaclass.errors import UserError

METRICS = {"verification": "pair_accuracy", "classification": "top1", "none": "final_loss"}
MOST_SEEDS = 1000

# Settings that a case has a field for, or that change nothing of what is trained.
_TOLD = (
    "schedule.epochs",
    "precision.compute",
    "data.global_batch_size",
    "data.image_size",
    "data.source",
    "data.path",
    "evaluate.path",
    "evaluate.every",
)


@dataclass(frozen=True, kw_only=True)
class StabilityCase:
    """A training. metric: the name of the final metric in ``Row.result``. epochs_trained: passes over the data, None
    where steps are given. settings: ``section.key`` values that differ from the recipe and have no field here. data,
    evaluation_data: a path, or the name of a set that makes itself. threads: of each process on a CPU.
    """

    benchmark: ClassVar[str] = "stability"

    recipe: str
    seed: int
    metric: str
    epochs_trained: float | None
    precision: str
    image_size: int
    global_batch_size: int
    data: str
    evaluation_data: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    world_size: int = 1
    device: str = "cpu"
    threads: int = 1

    def parameters(self) -> dict[str, Any]:
        """For a row."""
        return asdict(self)


def changes(config: Config, recipe: Config) -> dict[str, Any]:
    """By ``section.key`` what differs from the recipe, as far as a training depends on it."""
    found = differences(recipe, config)
    return {
        key: new
        for key, (_, new) in found.items()
        if key not in _TOLD and (not key.startswith("run.") or key == "run.deterministic")
    }


def differences(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """By ``section.key`` the settings of both where they differ."""
    before, after = to_mapping(old), to_mapping(new)
    return {
        f"{section}.{key}": (before[section][key], value)
        for section, values in after.items()
        if isinstance(values, dict)
        for key, value in values.items()
        if value != before[section][key]
    }


def seeds(text: str) -> list[int]:
    """``5`` is 0 to 4; ``3,7,9`` are these."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() for word in words):
        raise UserError(
            f"--seeds: {text!r} is not a number of seeds such as 5, nor a list of them such as 3,7,9"
        )
    found = [int(word) for word in words]
    if len(found) == 1:
        if not 1 <= found[0] <= MOST_SEEDS:
            raise UserError(f"--seeds: {found[0]} is outside [1, {MOST_SEEDS}]; a list of seeds has commas")
        return [*range(found[0])]
    if len({*found}) < len(found):
        raise UserError(f"--seeds: {text} names a seed twice")
    return found
