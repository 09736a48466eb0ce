"""What fits, and what does not is refused, with the nearest setting that does."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from megaclass.errors import UserError, in_bytes
from megaclass.heads.storage import STORAGES
from megaclass.models.registry import backbone_options
from megaclass.plan.devices import Device
from megaclass.plan.memory import Job, Memory, memory_of
from megaclass.plan.speed import roofline
from megaclass.plan.wire import collectives


def changed(job: Job, section: str, **values: Any) -> Job:
    of_section = replace(getattr(job.config, section), **values)
    return replace(job, config=replace(job.config, **{section: of_section}))


def largest_batch(job: Job, room: float) -> int:
    """The global batch that fits; 0: none. Accumulation stays."""
    step = job.ranks * job.config.data.accumulation
    return step * _largest(1 << 20, lambda n: changed(job, "data", global_batch_size=n * step), room)


def largest_classes(job: Job, room: float) -> int:
    return _largest(1 << 34, lambda n: replace(job, classes=n), room)


def _largest(high: int, of: Callable[[int], Job], room: float) -> int:
    low = 0
    while high - low > low // 1000:  # three digits are what a person reads
        middle = (low + high + 1) // 2
        low, high = (middle, high) if memory_of(of(middle)).total <= room else (low, middle - 1)
    return low


def require_memory(job: Job, room: float) -> None:
    """UserError where the job cannot run in ``room`` bytes."""
    memory, data = memory_of(job), job.config.data
    if (least := memory.least(job.kind)) > room:
        classes = f", {job.classes:,} classes" if job.classes else ""
        raise UserError(
            f"data.global_batch_size: {data.global_batch_size:,} images of data.image_size {data.image_size}{classes} "
            f"and {job.config.model.name} need {in_bytes(memory.total)} of memory a rank ({largest_parts(memory)}), "
            f"{in_bytes(least)} for certain, and {in_bytes(room)} are there for it; {nearest(job, room)}"
        )


def largest_parts(memory: Memory) -> str:
    parts = sorted(vars(memory).items(), key=lambda part: -part[1])
    return ", ".join(f"{name} {in_bytes(size)}" for name, size in parts[:3] if size)


def nearest(job: Job, room: float) -> str:
    """The setting nearest to the job's that fits into ``room`` bytes, as advice; if there is none, that is not sure not
    to fit."""
    memory = memory_of(job)
    one = changed(job, "data", global_batch_size=job.ranks * job.config.data.accumulation)
    for most in (room, room + memory.total - memory.least(job.kind)):
        if batch := largest_batch(job, most):
            return f"lower data.global_batch_size to {batch:,}, or raise data.accumulation"
        if job.classes and (classes := largest_classes(one, most)):
            return f"lower the classes to {classes:,}, or take more ranks or, of a margin head, a smaller head.storage"
    return "lower model.width or data.image_size, or take a smaller model.name"


def choices(job: Job, device: Device, room: float) -> Iterator[str]:
    """What plan would choose, each with the reason in a sentence: storage, parallelism, sample rate, checkpointing."""

    def costs(one: Job) -> str:
        ms = 1e3 * roofline(one, device, collectives(one))[0]
        return f"{in_bytes(memory_of(one).total)}, {ms:.3g} ms a step at best"

    def choose(section: str, name: str, values: tuple[Any, ...], why: str, gain: float = 1.0) -> Iterator[str]:
        """The first value that fits, unless a later one that fits is ``gain`` times as fast."""
        nonlocal job
        jobs = {value: changed(job, section, **{name: value}) for value in values}
        fitting = [v for v, one in jobs.items() if memory_of(one).total <= room] or [values[-1]]
        times = {v: roofline(jobs[v], device, collectives(jobs[v]))[0] for v in fitting}
        fastest = min(fitting, key=lambda v: times[v])
        best = fastest if gain and times[fitting[0]] > gain * times[fastest] else fitting[0]
        job = jobs[best]
        yield f"{section}.{name} {best}: {why} ({'; '.join(f'{value}: {costs(one)}' for value, one in jobs.items())})"

    if job.config.head.kind == "margin" and job.classes:
        yield from choose("head", "storage", (*STORAGES,), "the finest that fits, or the smallest", 0)
        if job.ranks > 1:
            yield from choose("head", "parallelism", ("data", "model"), "the faster of those that fit")
        yield from choose("head", "sample_rate", (1.0, 0.1), "all classes unless a tenth is 1.25 times as fast", 1.25)
    if "checkpoint_activations" in backbone_options(job.config.model.name):
        why = "only where the batch does not fit without: it computes a third more"
        yield from choose("model", "checkpoint_activations", (False, True), why, 0)
