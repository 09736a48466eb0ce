"""``megaclass bench suite``: every case of a published report, as published or scaled down to this machine.

What makes a row what it is stays: backbone, image size, classes, sample rate, parallelism, and the batch size of an
inference. What gives way with ``--fit``: the precision, where the device lacks it; ranks beyond the devices, of which
one process then does one rank's share; the batch of a training step, halved until it fits memory and time; and the
number of steps.
"""

import multiprocessing
import os
import re
import signal
from argparse import ArgumentParser
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from megaclass.bench import infer
from megaclass.bench.case import Implementation, Planned
from megaclass.bench.infer import ENGINES, InferCase, forward_flops
from megaclass.bench.recipes import SYNTHETIC, config_of, open_images
from megaclass.bench.sweep import device_type, planned, resolved
from megaclass.bench.train import TrainCase, job_of, step_flops
from megaclass.errors import UserError, in_bytes
from megaclass.results import published

# Where a report does not say it: images of a step on each device.
DEVICE_BATCH = 256
_LEAST_LOCAL_BATCH = 2  # batch norm needs two images
_LEAST_STEPS = 5  # of an epoch
_REACHED = 0.25  # of a large product's speed, by steps of convolutional networks: low, so that a plan is kept
_DRAWN_BYTES_PER_S = {"cpu": 5e8, "cuda": 5e10}  # of centres that are drawn, and momentum that is cleared
_START_S = {"cpu": 7.0, "cuda": 20.0}  # before the first step of a case
_USABLE = {"cpu": 0.8, "cuda": 0.9}  # of its memory a device can give to one case
_PRECISIONS = {"cpu": ("fp32", "bf16"), "cuda": ("fp32", "tf32", "bf16", "fp16")}
_SAME = "scaled down, it is the same as a case before it, which is measured"


def flags(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("name", nargs="?", default="", help="of the suite; without it they are listed")
    add("--fit", action="store_true", help="scale the cases to this machine and --minutes, or leave them out")
    missing = parser.add_mutually_exclusive_group().add_argument
    one = "with --fit, where devices are missing: one process"
    missing("--simulate-ranks", action="store_true", help=f"{one} does one rank's share, of linear heads too")
    missing("--whole-job", action="store_true", help=f"{one} does the work of all ranks")
    add("--plan", action="store_true", help="show what would be measured, and why the rest not")
    add("--minutes", type=float, default=8.0, help="that all cases together may take, roughly, with --fit")
    add("--part", default="", help="I/N: every N-th case from the I-th on, and no page")
    add("--engine", default="eager", choices=ENGINES, help="of inference")
    add("--storage", default="", help="of centres: fp32, bf16 or int8_rowwise; default: the recipe's")
    add(
        "--data-root",
        default=SYNTHETIC,
        help="record set, folder of class folders, or one with train/ and val/",
    )
    add("--device", default="auto", help="auto, cpu or cuda")


def plan(options: Any) -> list[Planned]:
    """The cases of the suite ``options.name``, scaled where ``options.fit`` says so. UserError: options that make no
    sense."""
    report = published.load(options.name)
    if not report.cases():
        raise UserError(f"{options.name}: trainings to their end, as `megaclass bench stability` does, and no suite")
    if not options.minutes > 0:
        raise UserError(f"--minutes: {options.minutes:g} is not a positive number")
    if (options.whole_job or options.simulate_ranks) and not options.fit:
        raise UserError("--whole-job and --simulate-ranks go with --fit")
    if options.data_root != SYNTHETIC:
        open_images(options.data_root)
    part = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", options.part or "1/1", re.ASCII)
    if not part:
        raise UserError(f"--part: {options.part!r} is not I/N, such as 3/8")
    device = device_type(options.device)
    asked = [_case(benchmark, case, options, device, report.iterations) for benchmark, case in report.cases()]
    fitted = _fitted(asked, Machine.here(device), options) if options.fit else [(case, "") for case in asked]
    ways = {
        "whole_job": options.whole_job,
        "simulate_ranks": options.simulate_ranks,
        "minutes": options.minutes if options.fit else 0,
    }
    found, kept = [], set()
    for before, (case, left_out) in zip(asked, fitted, strict=True):
        case = resolved(replace(case, threads=0), device)
        if not left_out:
            same = repr(replace(case, iterations=1))
            left_out = _SAME * (same in kept)
            kept.add(same)
        before = replace(before, threads=case.threads)
        who = infer.implementations(case, options) if isinstance(case, InferCase) else [Implementation()]
        original = before if case != before else None
        there = planned(case, who, original_case=original, suite=options.name, identity=ways)
        found.append(replace(there, skip=left_out or there.skip))
    return found[int(part[1]) - 1 :: int(part[2])]


def _case(benchmark: str, given: dict[str, Any], options: Any, device: str, iterations: int) -> Any:
    """The case that the report names, as this project measures it."""
    common = {"iterations": iterations, "epochs": 2, "warmup": 1, "data": options.data_root}
    if benchmark == "infer":
        return resolved(InferCase(**given, **common, engine=options.engine), device)
    batch = {"global_batch_size": DEVICE_BATCH * given.get("world_size", 1)}
    return resolved(TrainCase(**batch | given, **common, storage=options.storage), device)


# -- the machine -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Machine:
    device: str  # ``cpu``, which is one device with all its cores, or ``cuda``
    devices: int
    memory_bytes: float  # of each device, for one case
    product_flops: dict[str, float]  # operations a second of a large product, by precision
    bytes_per_second: float  # of a large copy

    @classmethod
    def here(cls, device: str) -> "Machine":
        """Measured by a process that ends: what it takes of the memory is there again for the cases."""
        context = multiprocessing.get_context("spawn")
        try:
            with ProcessPoolExecutor(1, context) as pool:
                return pool.submit(_measured, device, os.getpid()).result()
        except (RuntimeError, MemoryError) as error:
            raise UserError(f"--fit: this machine could not be measured ({error})") from None


def _measured(device: str, parent: int) -> Machine:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent

    import torch

    from megaclass.bench import timing
    from megaclass.bench.worker import die_with_parent
    from megaclass.results import machine

    die_with_parent(parent)
    on_gpu, where = device == "cuda", torch.device(device)
    devices = torch.cuda.device_count() if on_gpu else 1
    free = [torch.cuda.mem_get_info(i)[0] for i in range(devices)] if on_gpu else [machine.available_memory()]
    return Machine(
        device=device,
        devices=devices,
        memory_bytes=_USABLE[device] * min(free),
        product_flops={p: timing.product_flops(p, timing.LARGE, where) for p in _PRECISIONS[device]},
        bytes_per_second=timing.copy_bytes_per_second(where),
    )


# -- what fits ---------------------------------------------------------------------------------------


class LeftOut(Exception):  # noqa: N818 - an outcome of a case, not an error of ours
    """A case that this machine cannot measure, and why."""


def _fitted(asked: list[Any], machine: Machine, options: Any) -> list[tuple[Any, str]]:
    """Every case as this machine can measure it, in ``options.minutes`` for all of them together, and why it is left
    out, or an empty string."""

    def by(rule: Callable[[Any], Any], found: list[tuple[Any, str]]) -> list[tuple[Any, str]]:
        fitted = []
        for case, left_out in found:
            if not left_out:
                try:
                    case = rule(case)
                except LeftOut as reason:
                    left_out = str(reason)
            fitted.append((case, left_out))
        return fitted

    found = by(lambda case: on_devices(case, machine, options), [(case, "") for case in asked])
    found = by(lambda case: in_memory(case, machine), found)
    # Those that are too slow leave their time to the others.
    while True:
        kept = sum(not left_out for _, left_out in found)
        seconds = 60 * options.minutes / max(kept, 1)
        timed = by(lambda case, seconds=seconds: in_time(case, machine, seconds), found)  # type: ignore[misc]
        slow = [i for i, (_, left_out) in enumerate(timed) if left_out and not found[i][1]]
        if not slow:
            return timed
        slowest = max(slow, key=lambda i: found[i][0].batch_size)
        found[slowest] = timed[slowest]


def on_devices(case: Any, machine: Machine, options: Any) -> Any:
    """The case in a precision of this machine and on its devices."""
    if machine.device == "cpu":
        if case.precision == "tf32":
            raise LeftOut("tf32 exists on CUDA only")
        from megaclass.heads.precision import cpu_has_bf16

        half = "bf16" if cpu_has_bf16() else "fp32"
        case = replace(case, tf32=False, precision=half if case.precision == "fp16" else case.precision)
    if isinstance(case, InferCase) or case.world_size <= machine.devices:
        return case
    if options.whole_job:
        return replace(case, world_size=1)
    if options.simulate_ranks or config_of(case).head.kind == "margin":
        return replace(case, world_size=1, simulate_ranks=case.world_size)
    raise LeftOut(
        f"needs {case.world_size} devices, this machine has {machine.devices}; --simulate-ranks does one rank's share, "
        "without the exchange of gradients"
    )


def in_memory(case: Any, machine: Machine) -> Any:
    """The case with a batch whose activations fit beside the head, which has to fit as it is."""
    if isinstance(case, InferCase):
        return case
    from megaclass.plan.memory import memory_of

    head = head_bytes(case)
    if head > machine.memory_bytes:
        raise LeftOut(
            f"{in_bytes(head)} of centres and momentum do not fit into the {in_bytes(machine.memory_bytes)} "
            "that a case can have here; --storage int8_rowwise takes an eighth of what fp32 takes"
        )
    return _halved(case, lambda one: memory_of(job_of(one)).total <= machine.memory_bytes)


def in_time(case: Any, machine: Machine, seconds: float) -> Any:
    """The case with a batch and a number of steps that take about ``seconds``, starting its processes included."""
    epochs, speed = case.epochs + case.warmup, _REACHED * machine.product_flops[case.precision]
    left_s = max(seconds - _START_S[machine.device], 1.0)
    if isinstance(case, InferCase):
        step_s = forward_flops(case) / speed
        if step_s * epochs * _LEAST_STEPS > left_s:
            raise LeftOut(
                f"a batch would take about {step_s:.2g} s, and {left_s:.2g} s are left for each case; see --minutes"
            )
    else:
        from megaclass.plan.speed import work_of

        left_s = max(left_s - head_bytes(case) / _DRAWN_BYTES_PER_S[machine.device], 1.0)
        moved_s = work_of(job_of(case)).moved / machine.bytes_per_second
        image_s = step_flops(case) / case.simulate_ranks / case.global_batch_size / speed
        least_s = left_s / epochs / _LEAST_STEPS
        case = _halved(case, lambda one: one.global_batch_size * image_s + moved_s <= least_s)
        step_s = case.global_batch_size * image_s + moved_s
    return replace(case, iterations=min(case.iterations, max(_LEAST_STEPS, int(left_s / step_s / epochs))))


def head_bytes(case: TrainCase) -> int:
    """Of the centres and their momentum on each rank; a linear head counts as part of the network."""
    from megaclass.plan.memory import memory_of

    memory = memory_of(job_of(case))
    return memory.centres + memory.momentum


def _halved(case: TrainCase, fits: Callable[[TrainCase], bool]) -> TrainCase:
    """The case with its batch halved until it fits, or can be halved no more."""
    local = case.global_batch_size // case.ranks
    while not fits(case) and local >= 2 * _LEAST_LOCAL_BATCH:
        local //= 2
        case = replace(case, global_batch_size=local * case.ranks)
    return case
