"""What fits, and what does not is refused, with the nearest setting that does."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from megaclass.config import Config
from megaclass.errors import UserError, in_bytes
from megaclass.heads.storage import STORAGES
from megaclass.models.registry import backbone_options
from megaclass.plan.devices import Device
from megaclass.plan.memory import Job, Memory, memory_of
from megaclass.plan.speed import roofline
from megaclass.plan.wire import collectives

_MOST_CLASSES = 1 << 34


def changed(job: Job, section: str, **values: Any) -> Job:
    return replace(job, config=with_section(job.config, section, **values))


def with_section(config: Config, section: str, **values: Any) -> Config:
    return replace(config, **{section: replace(getattr(config, section), **values)})


def largest(low: int, high: int, fits: Callable[[int], bool]) -> int:
    """The largest number for which ``fits`` holds, if it holds for all below it too; 0: not even for ``low``."""
    if not fits(low):
        return 0
    while high - low > max(0, low // 1000):  # three digits are what a person reads
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _step(job: Job) -> int:
    """Images by which a global batch grows that the ranks can share."""
    return job.ranks * job.config.data.accumulation


def largest_batch(job: Job, room: float, of: Callable[[Memory], float] = lambda m: m.total) -> int:
    """The global batch; accumulation stays."""
    step = _step(job)

    def fits(count: int) -> bool:
        return of(memory_of(changed(job, "data", global_batch_size=count * step))) <= room

    return step * largest(1, 1 << 20, fits)


def largest_classes(job: Job, room: float, of: Callable[[Memory], float] = lambda m: m.total) -> int:
    return largest(1, _MOST_CLASSES, lambda count: of(memory_of(replace(job, classes=count))) <= room)


def require_memory(job: Job, room: float, there: int = 0) -> None:
    """UserError where the job cannot run in ``room`` bytes, ``there`` of which it has taken already."""
    memory = memory_of(job)
    if memory.least(job.kind) - there <= room:
        return
    data = job.config.data
    what = f"data.global_batch_size: {data.global_batch_size:,} images of data.image_size {data.image_size}"
    if job.classes:
        what += f", {job.classes:,} classes"
    raise UserError(
        f"{what} and {job.config.model.name} need {in_bytes(memory.least(job.kind))} of memory a rank "
        f"({largest_parts(memory)}), and {in_bytes(room + there)} are there for it; {nearest(job, room + there)}"
    )


def largest_parts(memory: Memory) -> str:
    parts = sorted(vars(memory).items(), key=lambda part: -part[1])
    return ", ".join(f"{name} {in_bytes(size)}" for name, size in parts[:3] if size)


def nearest(job: Job, room: float) -> str:
    """The setting nearest to the job's that fits into ``room`` bytes, as advice."""

    def least(memory: Memory) -> float:
        return memory.least(job.kind)

    batch = largest_batch(job, room, least)
    if batch:
        return f"lower data.global_batch_size to {batch:,}, or raise data.accumulation"
    one = changed(job, "data", global_batch_size=_step(job))
    classes = largest_classes(one, room, least) if job.classes else 0
    if classes:
        return f"lower the classes to {classes:,}, or take more ranks or, of a margin head, a smaller head.storage"
    return "lower model.width or data.image_size, or take a smaller model.name"


def choices(job: Job, device: Device, room: float) -> Iterator[str]:
    """What plan would choose, each with the reason in a sentence: storage, parallelism, sample rate, checkpointing."""

    def needs(one: Job) -> int:
        return memory_of(one).total

    def step_ms(one: Job) -> float:
        return 1e3 * roofline(one, device, collectives(one))[0]

    if job.config.head.kind == "margin" and job.classes:
        stored = {name: changed(job, "head", storage=name) for name in STORAGES}
        name = next((name for name, one in stored.items() if needs(one) <= room), "int8_rowwise")
        why = "the finest that fits" if needs(stored[name]) <= room else "the smallest, and too large"
        others = ", ".join(
            f"{other} takes {in_bytes(needs(one))}" for other, one in stored.items() if other != name
        )
        yield f"head.storage {name}: {in_bytes(needs(stored[name]))} in all, {why} ({others})"
        job = stored[name]
        if job.ranks > 1:
            ways = {
                name: changed(job, "head", parallelism=name, shard_group="world")
                for name in ("model", "data")
            }
            best = min(ways, key=lambda name: (needs(ways[name]) > room, step_ms(ways[name])))
            told = " or ".join(
                f"{step_ms(o):.3g} ms and {in_bytes(needs(o))} with {n}" for n, o in ways.items()
            )
            yield f"head.parallelism {best}: a step takes {told}, by the roofline's best case"
            job = ways[best]
        full, tenth = (step_ms(changed(job, "head", sample_rate=rate)) for rate in (1.0, 0.1))
        rate = 1.0 if full < 1.25 * tenth else 0.1
        yield f"head.sample_rate {rate:g}: a step takes {full:.3g} ms with all classes and {tenth:.3g} ms with a tenth"
    if "checkpoint_activations" not in backbone_options(job.config.model.name):
        return
    plain, again = (changed(job, "model", checkpoint_activations=wanted) for wanted in (False, True))
    held = [in_bytes(memory_of(one).activations) for one in (plain, again)]
    wanted = needs(plain) > room
    why = (
        "the batch does not fit without"
        if wanted
        else "the batch fits without, and it costs a third more arithmetic"
    )
    yield f"model.checkpoint_activations {str(wanted).lower()}: {why} ({held[0]} of activations become {held[1]})"
