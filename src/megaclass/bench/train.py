"""``megaclass bench train``: whole training steps, data included, by device count, batch, precision and recipe; ours
with other settings and the loops of others take turns.
"""

import itertools
import math
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from megaclass.bench.case import (
    EPOCHS_SPEED,
    FLOPS,
    MEMORY,
    OF_LIMIT,
    Answers,
    Benchmark,
    Implementation,
    Metric,
    latency,
    parameter,
    value_of,
)
from megaclass.bench.flags import cases_of, counts, names
from megaclass.bench.head import RanksCase, libraries
from megaclass.bench.infer import InferCase
from megaclass.bench.peers import LOOPS, implementation, peer_flags, peers_asked
from megaclass.bench.recipes import (
    ITERATIONS,
    SYNTHETIC,
    ModelCase,
    backbone_cost,
    check_settings,
    classes_of,
    config_of,
    open_images,
    timed_epochs,
)
from megaclass.bench.timing import beside_limits, epoch_measures, measure
from megaclass.config import from_text, require_known
from megaclass.config import values as settings_of
from megaclass.errors import UserError
from megaclass.results.rows import Row

if TYPE_CHECKING:
    from megaclass.parallel.groups import World
    from megaclass.plan.memory import Job
    from megaclass.plan.speed import Fit

MODES = ("train", "val", "train_val")


@dataclass(frozen=True, kw_only=True)
class TrainCase(RanksCase, ModelCase):
    """One measurement of training."""

    num_classes: int = parameter(
        0,
        "of the whole job, with K, M or B; 0: the recipe's or its data's, else 1000 (margin head: 100K)",
        sweeps=True,
        low=0,
        title="classes",
        setting="data.num_classes",
    )
    embedding_dim: int = parameter(0, setting="model.embedding_dim")
    sample_rate: float = parameter(
        0.0,
        "Partial FC: fraction of the classes scored in a step; 0: the recipe's",
        sweeps=True,
        title="rate",
        setting="head.sample_rate",
        low=0,
        high=1,
    )
    parallelism: str = parameter("", title="head parallelism", setting="head.parallelism")
    storage: str = parameter(
        "",
        "of a margin head's centres and momentum; default: the recipe's",
        sweeps=True,
        setting="head.storage",
        choices=("", "fp32", "bf16", "int8_rowwise"),
    )
    global_batch_size: int = parameter(
        0,
        "images of a step over all devices; 0: the recipe's",
        sweeps=True,
        low=0,
        title="global batch",
        setting="data.global_batch_size",
    )
    num_examples: int = parameter(
        0,
        "synthetic images of an epoch of the learning rate's schedule; 0: the recipe's",
        low=0,
        effort=True,
        setting="data.num_samples",
    )

    @property
    def samples(self) -> int:
        return self.global_batch_size

    def resolved(self) -> "TrainCase":
        """UserError besides: no set of images there, or one of other classes."""
        config = config_of(self)
        classes, head = config.data.num_classes, config.head
        if self.data != SYNTHETIC:
            classes = classes_of(config)
            if self.num_classes not in (0, classes):
                raise UserError(
                    f"--num-classes: {self.num_classes}, but {self.data} has {classes} classes; leave it out"
                )
        return replace(
            self,
            backbone=config.model.name,
            num_classes=classes,
            embedding_dim=backbone_cost(config).embedding_dim,
            image_size=config.data.image_size,
            global_batch_size=config.data.global_batch_size,
            sample_rate=getattr(head, "sample_rate", 1.0),
            parallelism=getattr(head, "parallelism", "model"),
            storage=getattr(head, "storage", "fp32"),
            iterations=self.iterations or ITERATIONS[self.device],
        )


def prepare(case: TrainCase, world: "World", name: str, options: dict[str, Any]) -> Any:
    if name in LOOPS:
        return LOOPS[name](case, config_of(case), world, options)
    from megaclass.bench.training import Training

    return Training(case, config_of(case), world)


def step_flops(case: TrainCase, *, ours: bool = True) -> float:
    """Operations of a whole step of the job: the backward pass of the backbone takes twice its forward pass. A scored
    class takes four products with the rows that its rank sees in our margin head, three in a linear one and in those
    of others."""
    config = config_of(case)
    body = backbone_cost(config)
    products = 4 if ours and config.head.kind == "margin" else 3
    scored = case.num_classes * case.sample_rate
    return case.global_batch_size * (3 * body.forward_flops + 2 * products * body.embedding_dim * scored)


def measures(name: str, case: TrainCase, turns: Answers, limits: list[dict[str, float]]) -> dict[str, Any]:
    found = epoch_measures(turns, case.global_batch_size)
    flops = step_flops(case, ours=name not in LOOPS) / case.simulate_ranks  # of the processes that ran
    work = beside_limits({"flops": flops}, found["step_ms"]["p50"], limits)
    return found | {"work": work, "result": {"final_loss": turns[-1][0]["loss"]}}


def cases(options: Any) -> list[Any]:
    """Every combination of the lists; with ``--mode`` inference too. UserError: options that make no sense."""
    check_settings(TrainCase, [*options.settings, *swept(options.set)])
    if options.one_at_a_time and not options.set:
        raise UserError("--one-at-a-time goes with --set section.key=VALUE,VALUE")
    if (options.set or options.peer) and options.mode != "train":
        raise UserError(f"--set and --peer are of training: they go with --mode train, not {options.mode}")
    if (options.set or options.peer) and options.output.endswith(".json"):
        raise UserError("--set and --peer: a report in .json has one place a case; name a file in .jsonl")
    if options.batch_size and options.global_batch_size != [0]:
        raise UserError("--batch-size is of each device, --global-batch-size of all of them: give one")
    common = {"epochs": timed_epochs(options), "settings": [options.settings]}
    found: list[Any] = []
    if options.mode != "val":
        if not options.batch_size:
            found = cases_of(TrainCase, options, **common)
        else:
            each = cases_of(TrainCase, options, **common, global_batch_size=options.batch_size)
            found = [replace(case, global_batch_size=case.global_batch_size * case.ranks) for case in each]
    return found + (_inference(options, common) if options.mode != "train" else [])


def _inference(options: Any, common: dict[str, Any]) -> list[InferCase]:
    """The same networks without training, on one device: NVIDIA's ``--mode val``."""
    if not options.batch_size:
        raise UserError(f"--mode {options.mode}: inference needs --batch-size, of a device")
    if options.mode == "val" and (options.world_size, options.simulate_ranks) != ([1], [1]):
        raise UserError("--mode val measures one device: leave out -n and --simulate-ranks")
    if options.data != SYNTHETIC:
        open_images(options.data)
    return cases_of(InferCase, options, **common, num_classes=options.num_classes[:1], engine=["eager"], accuracy=[""])


def implementations(case: TrainCase, options: Any) -> list[Implementation]:
    """Ours in every combination of what ``--set`` says, or as the case is and then with one value changed at a time,
    each with all settings that are swept; and the loops of others on the case as it is. UserError: a value that does
    not go with the case."""
    values, config = swept(options.set), config_of(case)
    base = {key: settings_of(config)[key] for key in values}
    if options.one_at_a_time:
        changed = [{key: value} for key in values for value in values[key] if value != base[key]]
        variants = [base, *(base | change for change in changed)]
    else:
        variants = [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]
    found = [Implementation(changes=_changes(case, variant)) for variant in variants]
    for name in peers_asked(options, LOOPS):
        loop = LOOPS[name]
        given, missing = loop.options(options.peer_path), loop.why_not(case, config)
        found.append(implementation(name, case, changes=loop.changes(case), options=given, missing=missing))
    return found


def _changes(case: TrainCase, variant: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, and what follows from them."""
    if not variant:
        return {}
    before, after = asdict(case), asdict(replace(case, settings=case.settings | dict(variant)).resolved())
    return {name: value for name, value in after.items() if value != before[name]}


def case_of(row: Row) -> TrainCase:
    """What was measured; a row says more of it than was asked."""
    return TrainCase(**{name: value for name, value in row.case.items() if name in TrainCase.__dataclass_fields__})


def job_of(case: TrainCase) -> "Job":
    """For :mod:`megaclass.plan`: of the processes that run, or are simulated."""
    from megaclass.plan.memory import Job

    return Job(config_of(case), case.precision, case.num_classes, case.ranks, case.ranks, case.device)


def fit_of(rows: Sequence[Row], path: str, kind: str, precision: str) -> "Fit":
    """What our rows in ``path`` say of speed on ``kind`` (cpu or cuda) at this precision. UserError: there are none of
    them, or not of one machine."""
    from megaclass.plan.speed import Fit

    known = ("train", "ok", "megaclass")
    cases = [(row, case_of(row)) for row in rows if (row.benchmark, row.status, row.implementation) == known]
    cases = [
        (row, case)
        for row, case in cases
        if (case.device, case.precision) == (kind, precision) and 0 < row.step_ms.get("p50", 0) < math.inf
    ]
    machines = {(row.environment.get("cpu"), row.environment.get("gpu")) for row, _ in cases}
    if len(machines) != 1:
        what = f"rows of {len(machines)} machines" if machines else "no row of `bench train`"
        raise UserError(f"--from: {path} holds {what} on {kind} in {precision}; name rows of one machine")
    return Fit.of([(job_of(case), row.step_ms["p50"] / 1e3, row.work) for row, case in cases])


def swept(texts: Sequence[str]) -> dict[str, list[Any]]:
    """``section.key=a,b`` as key and values, in their order. UserError: no such setting."""
    found: dict[str, list[Any]] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        if not equals or not values:
            raise UserError(f"--set: {text!r} is not section.key=VALUE,VALUE")
        require_known(key)
        if key in found:
            raise UserError(f"--set {key}: given twice; put all its values into one")
        found[key] = [from_text(key, word) for word in names(values)]
    return found


def flags(parser: ArgumentParser) -> None:
    add = parser.add_argument
    batch = "images of a step on each device, instead of --global-batch-size"
    add("-b", "--batch-size", type=counts, default=[], metavar="LIST", help=batch)
    mode = "train, val (inference, as `bench infer` measures it) or train_val"
    add("--mode", default="train", choices=MODES, help=mode)
    peer_flags(parser, LOOPS)
    values = "section.key=LIST: values of a setting that take turns; given again: all combinations"
    add("--set", action="append", default=[], help=values)
    alone = "with --set: the case as it is, and each value changed alone"
    add("--one-at-a-time", action="store_true", help=alone)


METRICS = (
    EPOCHS_SPEED,
    Metric("compute_per_second", "Images/s, compute", value_of("rates", "compute"), "higher"),
    latency("p50", "Median step, ms"),
    latency("p99", "p99 step, ms"),
    MEMORY,
    FLOPS,
    OF_LIMIT,
    Metric("final_loss", "Last loss", value_of("result", "final_loss")),
)

BENCHMARK = Benchmark(
    "train",
    "Training",
    "whole training steps, by devices, batch, precision and recipe",
    TrainCase,
    METRICS,
    "samples_per_second",
    prepare=prepare,
    measures=measures,
    libraries=libraries,
    limits=measure,
    flags=flags,
    settings=True,
    cases=cases,
    implementations=implementations,
)
