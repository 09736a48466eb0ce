"""From a published report to the cases of its suite."""

from dataclasses import replace
from functools import partial
from typing import Any

from megaclass.bench.arguments import check_timeout, device_type, on_cores
from megaclass.bench.old_infer.cases import InferCase
from megaclass.bench.old_infer.cases import resolved as resolved_infer
from megaclass.bench.old_infer.images import open_images
from megaclass.bench.old_infer.plan import plan_of as infer_plan
from megaclass.bench.old_suite.fit import Fitted, in_memory, in_time, on_devices
from megaclass.bench.old_suite.machine import Machine
from megaclass.bench.old_train.cases import TrainCase, resolved
from megaclass.bench.old_train.plan import plan_of as train_plan
from megaclass.bench.recipes import SYNTHETIC
from megaclass.bench.sweep import Planned
from megaclass.errors import UserError, lookup
from megaclass.results import published

# Where a report does not say it: images of a step on each device.
DEVICE_BATCH = 256
# As NVIDIA's reports were taken: 500 steps an epoch, three of them, the first a warm-up. Others do not say.
_EPOCHS = {"resnet50-nvidia": (500, 2, 1)}
_OTHER_EPOCHS = (100, 2, 1)


def planned(options: Any) -> list[Planned]:
    """The cases of the suite ``options.name``, scaled where ``options.fit`` says so. UserError: options that make no
    sense."""
    report = published.load(options.name)
    check_timeout(options.timeout)
    if not options.minutes > 0:
        raise UserError(f"--minutes: {options.minutes:g} is not a positive number")
    if options.whole_job and options.simulate_ranks:
        raise UserError(
            "--whole-job and --simulate-ranks say two things about ranks without a device: give one"
        )
    if options.data_root and options.only != "train":
        open_images(options.data_root)
    device = device_type(options.device)
    asked = [_case(benchmark, case, options, device) for benchmark, case in report.cases()]
    if options.only:
        lookup(dict.fromkeys(case.benchmark for case in asked), options.only, "--only")
        asked = [case for case in asked if case.benchmark == options.only]
    if options.fit:
        fitted = _fitted(asked, Machine.here(device), options)
    else:
        fitted = [_on_one_device(case, options) for case in asked]
    ways = {
        "whole_job": options.whole_job,
        "simulate_ranks": options.simulate_ranks,
        "minutes": options.minutes if options.fit else 0,
    }
    plan = []
    for before, found in zip(asked, fitted, strict=True):
        (case,) = on_cores([found.case], options.threads)
        before = replace(before, threads=case.threads)
        make = infer_plan if isinstance(case, InferCase) else train_plan
        one = make(case, asked=before if case != before else None, suite=options.name, identity=ways)
        plan.append(replace(one, skip=found.skip or one.skip))
    return plan


def _case(benchmark: str, given: dict[str, Any], options: Any, device: str) -> Any:
    """The case that the report names, as this project measures it."""
    iterations, epochs, warmup = _EPOCHS.get(options.name, _OTHER_EPOCHS)
    common = {
        "iterations": options.iterations or iterations,
        "epochs": epochs,
        "warmup": warmup,
        "device": device,
        "seed": options.seed,
        "data": options.data_root or SYNTHETIC,
    }
    if benchmark == "infer":
        return resolved_infer(InferCase(**given, **common, engine=options.engine))
    batch = {"global_batch_size": DEVICE_BATCH * given.get("world_size", 1)}
    storage = {"storage": options.storage} if options.storage else {}
    return resolved(TrainCase(**batch | given, **common, **storage))


def _on_one_device(case: Any, options: Any) -> Fitted:
    """What the flags about ranks say, on any machine."""
    if isinstance(case, TrainCase) and options.simulate_ranks:
        return Fitted(replace(case, world_size=1, simulate_ranks=case.world_size))
    if isinstance(case, TrainCase) and options.whole_job:
        return Fitted(replace(case, world_size=1))
    return Fitted(case)


def _fitted(asked: list[Any], machine: Machine, options: Any) -> list[Fitted]:
    """Every case as this machine can measure it, in ``options.minutes`` for all of them together."""
    found = [Fitted(case) for case in asked]
    rules = [
        partial(on_devices, machine=machine, simulate=options.simulate_ranks, whole_job=options.whole_job),
        partial(in_memory, machine=machine),
    ]
    for rule in rules:
        found = [one if one.skip else rule(one.case) for one in found]
    # Those that are too slow leave their time to the others.
    while True:
        kept = sum(not one.skip for one in found)
        seconds = 60 * options.minutes / max(kept, 1)
        timed = [one if one.skip else in_time(one.case, machine, seconds) for one in found]
        if sum(not one.skip for one in timed) == kept:
            return timed
        slowest = max(
            (i for i, one in enumerate(timed) if one.skip and not found[i].skip),
            key=lambda i: found[i].case.batch_size,
        )
        found[slowest] = timed[slowest]
