"""The directory of a study: a run for each seed, one recipe for all of them, and the rows.

``recipe.toml`` is the complete configuration that every seed is trained with; ``seed-K`` its run directory, and
``seed-K.log`` what it said. ``rows.jsonl`` gets a row when a seed is done.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from megaclass.bench.arguments import share_of_cores
from megaclass.bench.old_stability.cases import METRICS, StabilityCase, changes, differences
from megaclass.config import Config, load_recipe, to_toml
from megaclass.errors import UserError
from megaclass.parallel import groups
from megaclass.results.events import StartEvent, read_events
from megaclass.results.rundir import DEFAULT_ROOT, RunDirectory
from megaclass.train.arithmetic import pick_arithmetic


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is trained, with which seeds, and where. ``case`` is that of the first seed."""

    config: Config
    case: StabilityCase
    seeds: list[int]
    directory: Path

    @property
    def world_size(self) -> int:
        return self.case.world_size

    @property
    def recipe_file(self) -> Path:
        return self.directory / "recipe.toml"

    @property
    def rows_file(self) -> Path:
        return self.directory / "rows.jsonl"

    def case_of(self, seed: int) -> StabilityCase:
        return replace(self.case, seed=seed)

    def run_of(self, seed: int) -> RunDirectory:
        return RunDirectory(self.directory / f"seed-{seed}")

    def log_of(self, seed: int) -> Path:
        return self.directory / f"seed-{seed}.log"

    def result_of(self, seed: int) -> dict[str, Any] | None:
        """What the training ended with, if it did."""
        path = self.run_of(seed).result
        if not path.is_file():
            return None
        try:
            result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            _ = result["steps"], result["seconds"], result["environment"]
        except (ValueError, KeyError, TypeError, OSError):
            raise UserError(
                f"{path}: not the result of a run; remove {path.parent} to train it again"
            ) from None
        return result


def plan(config: Config, recipe: Config, seeds: list[int], world_size: int, output: str) -> Study:
    """UserError: a configuration that this machine cannot train, or settings that belong to the study."""
    given = differences(recipe, config)
    for key, flag in (("run.seed", "--seeds"), ("run.output", "--output")):
        if key in given:
            raise UserError(f"--{key}: the seeds of a study have it from {flag}")
    if config.model.weights or config.head.weights:
        key = "model.weights" if config.model.weights else "head.weights"
        raise UserError(f"--{key}: seeds that start from the same weights do not show how stable a recipe is")
    device = groups.pick_device(config.run.device)
    _check_ranks(config, world_size, device)
    case = StabilityCase(
        recipe=config.recipe,
        seed=seeds[0],
        metric=METRICS[config.evaluate.task],
        epochs_trained=None if config.schedule.steps else config.schedule.epochs,
        precision=pick_arithmetic(config.precision.compute, config.precision.channels_last, device).compute,
        image_size=config.data.image_size,
        global_batch_size=config.data.global_batch_size,
        data=config.data.path or config.data.source,
        evaluation_data=config.evaluate.path,
        settings=changes(config, recipe),
        world_size=world_size,
        device=device.type,
        threads=config.run.threads or share_of_cores(world_size),
    )
    directory = Path(output) if output else DEFAULT_ROOT / f"stability-{config.recipe}"
    return Study(config=shared(config), case=case, seeds=seeds, directory=directory)


def _check_ranks(config: Config, world_size: int, device: torch.device) -> None:
    if world_size < 1:
        raise UserError(f"--world-size: {world_size} is not a number of processes")
    if device.type == "cuda" and world_size > torch.cuda.device_count():
        raise UserError(
            f"--world-size: {world_size} processes need as many GPUs, and this machine shows "
            f"{torch.cuda.device_count()}"
        )
    batch = config.data.global_batch_size
    if batch % world_size:
        raise UserError(
            f"data.global_batch_size: {batch} does not divide into {world_size} ranks (--world-size)"
        )


def shared(config: Config) -> Config:
    """What all seeds have in common: the rest is said to each of them."""
    return replace(config, run=replace(config.run, output="", seed=0))


def prepare(study: Study) -> None:
    """Write the recipe for the seeds. UserError: the directory is another's, or holds seeds of other settings."""
    path = study.recipe_file
    if not path.exists():
        others = sorted(p.name for p in study.directory.iterdir() if p.name != ".lock")
        if others:
            raise UserError(
                f"--output: {study.directory} holds other files ({others[0]}); name a directory of its own"
            )
        part = path.with_suffix(".toml.part")
        part.write_text(to_toml(study.config), encoding="utf-8")
        part.replace(path)
    stored = load_recipe(str(path))
    if stored.recipe != study.config.recipe:
        raise _other(study, "recipe", stored.recipe, study.config.recipe)
    for key, (old, new) in differences(stored, study.config).items():
        raise _other(study, key, old, new)
    for seed in study.seeds:
        world_size = _world_size(study.run_of(seed))
        if world_size not in (None, study.world_size):
            raise _other(study, "--world-size", world_size, study.world_size)


def _other(study: Study, key: str, old: Any, new: Any) -> UserError:
    return UserError(
        f"--output: {study.directory} holds seeds with {key} {old!r}, and now it is {new!r}; name another directory, "
        "or say the same again"
    )


def _world_size(run: RunDirectory) -> int | None:
    """Of what was trained there so far."""
    if not run.events.is_file():
        return None
    return next(
        (event.world_size for event in read_events(run.events) if isinstance(event, StartEvent)), None
    )
