"""Everything that ``megaclass plan`` says, of one configuration on one kind of device."""

from collections.abc import Iterator
from dataclasses import dataclass

from megaclass.config import steps_of
from megaclass.errors import UserError, in_bytes
from megaclass.plan.choose import changed, choices, largest_batch, largest_classes, nearest
from megaclass.plan.devices import Device
from megaclass.plan.memory import Job, Memory, memory_of
from megaclass.plan.speed import Fit, roofline
from megaclass.plan.wire import Collective, collectives

_CONTEXT = 1.5e9  # of a GPU, beside tensors: CUDA, NCCL, work space of cuDNN; an estimate
_DISK_RATE = 1e9  # bytes a second that a node writes; an assumption


@dataclass(frozen=True)
class Plan:
    job: Job
    device: Device
    memory: Memory
    wire: list[Collective]
    room: float  # bytes of a device for tensors
    steps: int  # 0: not known
    step_s: tuple[float, float]  # at best and at worst
    fit: Fit | None  # of measured rows

    @classmethod
    def of(cls, job: Job, device: Device, samples: int = 0, fit: Fit | None = None) -> "Plan":
        """samples: images of an epoch; 0: not known. UserError: a batch that the devices cannot share."""
        config = job.config
        size, parts = config.data.global_batch_size, job.ranks * config.data.accumulation
        if size % parts:
            raise UserError(
                f"data.global_batch_size: {size} is not shared evenly by {parts} parts (devices times "
                f"data.accumulation); take {max(parts, round(size / parts) * parts)}"
            )
        if config.head.kind == "margin" and "bf16" not in device.rates:  # our kernels need it too
            job = changed(job, "head", kernels="torch")
        wire, room = collectives(job), device.memory - (_CONTEXT if device.kind == "cuda" else 0)
        step_s = roofline(job, device, wire)
        if fit:
            seconds = [fit.step_s(job) + sum(one.seconds(device)[place] for one in wire) for place in (0, 1)]
            step_s = seconds[0], seconds[1]
        known = samples or config.schedule.steps or config.schedule.samples
        steps = steps_of(config, samples).total if known else 0
        return cls(job, device, memory_of(job), wire, room, steps, step_s, fit)

    @property
    def fits(self) -> bool:
        return self.memory.total <= self.room

    @property
    def checkpoint(self) -> int:
        of_others = (self.memory.centres + self.memory.momentum) * (self.job.sharers - 1)
        return self.memory.stored + of_others

    @property
    def title(self) -> str:
        job, data = self.job, self.job.config.data
        classes = f"{job.classes:,}" if job.classes else "an unknown number of (--classes tells)"
        return (
            f"{job.config.recipe}: {job.config.model.name}, {classes} classes, global batch {data.global_batch_size:,} "
            f"({job.images:,} a device), {job.compute}, {job.ranks:,} x {self.device.name}"
        )

    def lines(self) -> Iterator[tuple[str, str]]:
        """What, and what is said of it."""
        job, context = self.job, self.device.memory - self.room
        parts = vars(self.memory) | {"context (estimate)": int(context)}
        yield from ((f"memory: {name}", in_bytes(size)) for name, size in parts.items() if size)
        told = f"{in_bytes(self.memory.total + context)} of {in_bytes(self.device.memory)}"
        yield "memory: all", told if self.fits else f"{told}: does not fit; {nearest(job, self.room)}"
        for one in self.wire:
            many = f"{one.count:,} x " if one.count > 1 else ""
            ms = between([1e3 * seconds for seconds in one.seconds(self.device)])
            yield (
                f"wire: {one.name}",
                f"{many}{one.kind} of {in_bytes(one.bytes)} among {one.ranks:,}, {ms} ms a step",
            )
        speed = between([job.config.data.global_batch_size / seconds for seconds in reversed(self.step_s)])
        how = f"fitted to {self.fit.rows} measured rows" if self.fit else "a roofline of data sheets, no measurement"
        yield "speed", f"{speed} images/s ({how}), which storage must deliver and CPUs decode"
        hours = between([self.steps * seconds / 3600 for seconds in self.step_s])
        yield (
            "time",
            f"{self.steps:,} steps, {hours} h" if self.steps else "unknown: --samples tells images of an epoch",
        )
        writes = self.checkpoint / max(1, job.ranks // job.node_ranks) / _DISK_RATE
        yield (
            "checkpoint",
            f"{in_bytes(self.checkpoint)}, {writes:.1f} s where each node writes {in_bytes(_DISK_RATE)}/s",
        )
        if job.classes and job.config.head.kind == "margin":
            yield "largest", f"{largest_classes(job, self.room):,} classes at this batch"
        yield "largest", f"global batch {largest_batch(job, self.room):,} at these classes"
        yield from (("would choose", text) for text in choices(job, self.device, self.room))


def between(pair: list[float]) -> str:
    """Two numbers, or one where they read alike."""
    return " to ".join(dict.fromkeys(f"{value:,.2g}" if value < 10 else f"{value:,.0f}" for value in pair))
