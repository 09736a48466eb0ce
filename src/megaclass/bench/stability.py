"""``megaclass bench stability``: one recipe trained with several seeds, and how far apart they end.

A study has a directory: ``recipe.toml`` is the complete configuration that every seed is trained with, ``seed-K`` the
run directory of a seed, ``seed-K.log`` what its training said, and ``rows.jsonl`` gets a row when a seed is done. A
case is a seed, and its one turn is a whole training, which goes on where an earlier one of it has stopped.
"""

import json
import os
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from megaclass.bench.case import (
    SPEED,
    Answers,
    Benchmark,
    Case,
    Implementation,
    Metric,
    Turns,
    parameter,
    value_of,
)
from megaclass.bench.flags import counts
from megaclass.bench.recipes import with_settings
from megaclass.config import Config, differences, load_recipe, to_toml
from megaclass.errors import UserError
from megaclass.results.events import StartEvent, StepEvent, read_events
from megaclass.results.rundir import DEFAULT_ROOT, RunDirectory, write_whole
from megaclass.results.stats import summary

_METRICS = {"verification": "pair_accuracy", "classification": "top1", "none": "final_loss"}
_MOST_SEEDS = 1000  # counted: a larger number was meant as a seed
# Settings that a case has a field for, or that change nothing of what is trained.
_TOLD = (
    "schedule.epochs", "precision.compute", "data.global_batch_size", "data.image_size", "data.source", "data.path",
    "evaluate.path", "evaluate.every", "evaluate.every_epochs",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class StabilityCase(Case):
    """The training of a recipe with one of its seeds. Data: a path, or the name of a set that makes itself."""

    steps: ClassVar[int] = 1
    warmup: ClassVar[int] = 0

    recipe: str = parameter("")
    seed: int = parameter(0)
    metric: str = parameter("final_loss")  # the name of the final one in ``Row.result``
    epochs_trained: float | None = parameter(None, title="epochs")  # None where steps are given
    precision: str = parameter("fp32")
    image_size: int = parameter(0)
    global_batch_size: int = parameter(0)
    data: str = parameter("")
    evaluation_data: str = parameter("")
    settings: dict[str, Any] = parameter({})  # that differ from the recipe and have no field here
    world_size: int = parameter(1, "processes of each training", flags=("-n", "--world-size"), low=1, title="devices")
    device: str = parameter("auto")
    threads: int = parameter(0)  # of each process on a CPU

    @property
    def text(self) -> str:
        ranks = f", {self.world_size} ranks" if self.world_size > 1 else ""
        return f"{self.recipe}, seed {self.seed}{ranks}, {self.device}"

    def why_skipped(self, gpus: int) -> str:
        if self.global_batch_size % self.world_size:
            return f"a global batch of {self.global_batch_size} does not divide into {self.world_size} ranks"
        return super().why_skipped(gpus)


def cases(options: Any) -> list[StabilityCase]:
    """A case a seed; the directory of the study is made ready for them. UserError: seeds, settings or a directory that
    make no study."""
    recipe = load_recipe(options.recipe)
    config = with_settings(recipe, options.settings)
    for key, flag in (("run.seed", "--seeds"), ("run.output", "--output")):
        if key in options.settings:
            raise UserError(f"--{key}: the seeds of a study have it from {flag}")
    found = [case_of(config, recipe, seed, options.world_size) for seed in seeds(options.seeds)]
    found[0].check()  # before anything is written
    directory = Path(options.output) if options.output else DEFAULT_ROOT / f"stability-{config.recipe}"
    open_study(directory, config, found)
    options.device, options.output = config.run.device, str(directory / "rows.jsonl")
    return found


def seeds(found: list[int]) -> list[int]:
    """``5`` is 0 to 4; ``3,7,9`` are these."""
    if len(found) == 1 and not 1 <= found[0] <= _MOST_SEEDS:
        raise UserError(f"--seeds: {found[0]} is outside [1, {_MOST_SEEDS}]; a list of seeds has commas")
    if min(found) < 0:
        raise UserError(f"--seeds: {min(found)} is below 0")
    return found if len(found) > 1 else [*range(found[0])]


def case_of(config: Config, recipe: Config, seed: int, world_size: int) -> StabilityCase:
    """The case of a configuration that has come from the recipe. UserError: this machine cannot train it."""
    from megaclass.parallel import groups
    from megaclass.train.arithmetic import pick_arithmetic

    precision, device = config.precision, groups.pick_device(config.run.device)
    return StabilityCase(
        recipe=config.recipe,
        seed=seed,
        metric=_METRICS[config.evaluate.task],
        epochs_trained=None if config.schedule.steps else config.schedule.epochs,
        precision=pick_arithmetic(precision.compute, precision.channels_last, device).compute,
        image_size=config.data.image_size,
        global_batch_size=config.data.global_batch_size,
        data=config.data.path or config.data.source,
        evaluation_data=config.evaluate.path,
        settings={key: new for key, (_, new) in differences(recipe, config).items() if _matters(key)},
        world_size=world_size,
        threads=config.run.threads,
    )


def _matters(key: str) -> bool:
    return key not in _TOLD and (not key.startswith("run.") or key == "run.deterministic")


def open_study(directory: Path, config: Config, cases: Sequence[StabilityCase]) -> None:
    """Write the recipe for the seeds. UserError: the directory is another's, or holds seeds of other settings."""
    config = replace(config, run=replace(config.run, output="", seed=0))
    path = directory / "recipe.toml"
    if not path.exists():
        try:
            directory.mkdir(parents=True, exist_ok=True)
            if others := sorted(other.name for other in directory.iterdir()):
                raise UserError(f"--output: {directory} holds other files ({others[0]}); name a directory of its own")
            write_whole(path, to_toml(config))
        except OSError as error:
            raise UserError(f"--output: cannot write into {directory}: {error.strerror}; name another") from None
    stored = load_recipe(str(path), stored=True)
    compared = {"recipe": (stored.recipe, config.recipe)} | differences(stored, config)
    for case in cases:
        for start in _events(RunDirectory(directory / f"seed-{case.seed}"), StartEvent)[:1]:
            compared[f"--world-size (seed {case.seed})"] = (start.world_size, case.world_size)
    for key, (old, new) in compared.items():
        if old != new:
            raise UserError(
                f"--output: {directory} holds seeds with {key} {old!r}, and now it is {new!r}; name another "
                "directory, or say the same again"
            )


class Training(Turns):
    """``megaclass train`` of one seed, by the processes of a case."""

    def __init__(self, case: StabilityCase, world: Any, name: str, options: dict[str, Any]) -> None:
        directory = Path(options["directory"])
        self._case, self._world = case, world
        self._run = RunDirectory(directory / f"seed-{case.seed}")
        self._log = directory / f"seed-{case.seed}.log"
        config = load_recipe(str(directory / "recipe.toml"))
        run = replace(config.run, seed=case.seed, output=str(self._run.path), threads=case.threads)
        self._config = replace(config, run=run)

    def turn(self, index: int) -> dict[str, Any]:
        """The training to its end; nothing where it has come there before. The answer has the fields of its row."""
        from megaclass.parallel import groups
        from megaclass.train import loop

        if not groups.on_main_rank(self._run.result.is_file):
            with self._log.open("ab", buffering=0) as log:
                for stream in (1, 2):  # what it and its libraries say; the answers have a pipe of their own
                    os.dup2(log.fileno(), stream)
            resume = groups.on_main_rank(self._run.config.exists)
            loop.run(self._config, self._world, resume=resume)
        groups.barrier()
        return left_by(self._run, self._case.global_batch_size)


def left_by(run: RunDirectory, global_batch_size: int) -> dict[str, Any]:
    """The fields of a row that follow from what a finished run left. The time of a step is that of each interval
    between two log lines: evaluations and checkpoints do not count."""
    speeds = (event.samples_per_second for event in _events(run, StepEvent))
    samples_ms = [round(global_batch_size / speed * 1000, 4) for speed in speeds if speed]
    try:
        result: dict[str, Any] = json.loads(run.result.read_text(encoding="utf-8"))
        left = {key: result[key] for key in ("samples_per_second", "environment")}
        step_ms = summary(samples_ms) if samples_ms else {}
        return left | {"samples_ms": samples_ms, "step_ms": step_ms, "result": flat_result(result)}
    except (ValueError, LookupError, TypeError, AttributeError):
        raise UserError(f"{run.result}: not the result of a run; remove {run.path} to train it again") from None


def _events(run: RunDirectory, kind: type) -> list[Any]:
    if not run.events.is_file():
        return []
    return [event for event in read_events(run.events) if isinstance(event, kind)]


def flat_result(result: Mapping[str, Any]) -> dict[str, float | None]:
    """Metrics by their names, those by rate with the rate behind (``tar_at_far_1e-2``), loss and time to train."""
    found: dict[str, float | None] = {}
    for kind in ("verification", "classification"):
        for name, value in result.get(kind, {}).items():
            inner = {name: value} if name != "tar_at_far" else {f"{name}_{k}": v for k, v in value.items()}
            found |= {k: v for k, v in inner.items() if v is None or isinstance(v, int | float)}
    return found | {name: result[name] for name in ("final_loss", "seconds", "time_to_train_s", "steps")}


def measures(name: str, case: StabilityCase, turns: Answers, limits: list[dict[str, float]]) -> dict[str, Any]:
    return dict(turns[0][0])


def flags(parser: ArgumentParser) -> None:
    parser.add_argument("recipe", help="name of a recipe (see `megaclass recipes`) or a .toml file")
    parser.add_argument("--seeds", type=counts, default="5", help="how many, from 0 on, or a list: 3,7,9")


METRICS = (
    Metric("metric", "Final metric", lambda row: row.result.get(row.case["metric"]), "higher"),
    *(
        Metric(name, title, value_of("result", name), "higher")
        for name, title in (("top1", "Top 1"), ("top5", "Top 5"), ("pair_accuracy", "Pair accuracy"))
    ),
    Metric("final_loss", "Last loss", value_of("result", "final_loss"), "lower"),
    Metric("seconds", "Time to train, s", value_of("result", "seconds"), "lower"),
    Metric("time_to_train_s", "Time to train and evaluate, s", value_of("result", "time_to_train_s"), "lower"),
    SPEED,
)

BENCHMARK = Benchmark(
    "stability",
    "Stability",
    "a recipe trained with several seeds: mean and spread of its metric, time to train, curves",
    StabilityCase,
    METRICS,
    "metric",
    "seed",
    prepare=Training,
    measures=measures,
    flags=flags,
    settings=True,
    cases=cases,
    implementations=lambda case, options: [Implementation(options={"directory": str(Path(options.output).parent)})],
    timeout_s=7 * 86400.0,
)
