"""Everything that ``megaclass plan`` says, of one configuration on one kind of device."""

import math
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from megaclass.config import Config, Steps, steps_of
from megaclass.errors import UserError, in_bytes
from megaclass.plan.choose import choices, largest_batch, largest_classes, nearest, with_section
from megaclass.plan.devices import Device, device
from megaclass.plan.memory import Job, Memory, memory_of
from megaclass.plan.speed import Fit, roofline
from megaclass.plan.wire import Collective, collectives

# Of a GPU, beside what PyTorch takes for tensors: the CUDA context, NCCL and cuDNN's work space.
_CONTEXT = 1.5e9

_PARTS = {
    "weights": "of the backbone, and of a linear head",
    "gradients": "when memory is highest",
    "optimizer": "momentum of the weights",
    "average": "optim.ema_decay",
    "casts": "weights in 16 bits, within a step",
    "activations": "grow with images a device",
    "centres": "head.storage, more devices",
    "momentum": "of the centres",
    "owed": "what sampling keeps of rows",
    "tiles": "work space of the head",
    "kept": "exponentials: head.recompute",
    "batch": "embeddings that are gathered",
    "loader": "batches that are made ahead",
    "holes": "of the allocator, within a step",
    "libraries": "their code and tables",
}


@dataclass(frozen=True)
class Plan:
    """samples: images of an epoch; 0: not known. fit: of measured rows; None: speed is a roofline."""

    job: Job
    device: Device
    samples: int
    fit: Fit | None

    @property
    def config(self) -> Config:
        return self.job.config

    @cached_property
    def memory(self) -> Memory:
        return memory_of(self.job)

    @cached_property
    def wire(self) -> list[Collective]:
        return collectives(self.job)

    @property
    def room(self) -> float:
        return 1e9 * self.device.memory_gb - (_CONTEXT if self.device.kind == "cuda" else 0)

    @property
    def fits(self) -> bool:
        return self.memory.total <= self.room

    @property
    def steps(self) -> Steps | None:
        schedule = self.config.schedule
        return (
            steps_of(self.config, self.samples)
            if self.samples or schedule.steps or schedule.samples
            else None
        )

    @property
    def step_s(self) -> tuple[float, float]:
        if self.fit:
            seconds = self.fit.step_s(self.job)
            low, high = (sum(one.seconds(self.device)[place] for one in self.wire) for place in (0, 1))
            return seconds + low, seconds + high
        return roofline(self.job, self.device, self.wire)

    @property
    def rates(self) -> tuple[float, float]:
        """Samples a second of the job, at worst and at best."""
        best, worst = self.step_s
        size = self.config.data.global_batch_size
        return size / worst, size / best

    @property
    def title(self) -> str:
        job, data = self.job, self.config.data
        classes = f"{job.classes:,} classes" if job.classes else "classes unknown: --classes tells"
        return (
            f"{self.config.recipe}: {self.config.model.name}, {classes}, global batch {data.global_batch_size:,} "
            f"({job.images:,} a device), {job.compute}, {job.ranks:,} x {self.device.name}"
        )

    def memory_lines(self) -> list[tuple[str, str, str]]:
        lines = [(name, in_bytes(size), _PARTS[name]) for name, size in vars(self.memory).items() if size]
        of = f"of {in_bytes(1e9 * self.device.memory_gb)}"
        if self.device.kind == "cuda":
            lines.append(("context", in_bytes(_CONTEXT), "CUDA, NCCL, cuDNN: an estimate"))
        total = self.memory.total + 1e9 * self.device.memory_gb - self.room
        return [*lines, ("all", in_bytes(total), of)]

    def lines(self) -> list[tuple[str, str]]:
        job, found = self.job, []
        for one in self.wire:
            low, high = (1e3 * seconds for seconds in one.seconds(self.device))
            many = f"{one.count:,} x " if one.count > 1 else ""
            what = f"{one.name}: {many}{one.kind} of {in_bytes(one.bytes)} among {one.ranks:,}"
            text = f"{what}, {low:.2f} to {high:.2f} ms"
            found.append(("wire, a step", text))
        low, high = self.rates
        how = (
            f"fitted to {self.fit.rows} measured rows"
            if self.fit
            else "a roofline of data sheets, not a measurement"
        )
        found.append(("speed", f"{_range(low, high)} images/s ({how})"))
        found.append(("loader", f"{_range(low, high)} images/s to be read and decoded on all nodes together"))
        if steps := self.steps:
            seconds = [steps.total * step_s for step_s in self.step_s]
            found.append(
                ("time to train", f"{steps.total:,} steps, {_range(*(s / 3600 for s in seconds))} hours")
            )
        else:
            found.append(("time to train", "unknown: --samples tells the images of an epoch"))
        found.append(
            (
                "checkpoint",
                f"{in_bytes(self.checkpoint)} of all ranks, {in_bytes(self.memory.stored)} of the first",
            )
        )
        if job.classes and job.config.head.kind == "margin":
            found.append(("largest", f"{largest_classes(job, self.room):,} classes at this batch"))
        batch = largest_batch(job, self.room)
        found.append(("largest", f"global batch {f'{batch:,}' if batch else 'none'} at these classes"))
        if not self.fits:
            found.append(("does not fit", nearest(job, self.room)))
        found += [("would choose", text) for text in choices(job, self.device, self.room)]
        return found

    @property
    def checkpoint(self) -> int:
        memory = self.memory
        of_head = (memory.centres + memory.momentum) * self.job.sharers
        return memory.weights + memory.optimizer + memory.average + of_head

    def as_dict(self) -> dict[str, Any]:
        return {
            "memory": asdict(self.memory) | {"total": self.memory.total},
            "room": self.room,
            "fits": self.fits,
            "wire": [asdict(one) | {"sent": one.sent} for one in self.wire],
            "step_s": list(self.step_s),
            "samples_per_second": list(self.rates),
            "measured": self.fit is not None,
            "steps": self.steps.total if self.steps else None,
            "checkpoint": self.checkpoint,
        }


def _range(low: float, high: float) -> str:
    digits = 3 - math.ceil(math.log10(max(low, 1e-9))) if low < 1000 else 0
    texts = [f"{value:,.{max(0, digits)}f}" for value in (low, high)]
    return texts[0] if texts[0] == texts[1] else " to ".join(texts)


@dataclass(frozen=True)
class Known:
    """Of the data: its classes, and the images of an epoch; 0: as the recipe or a set that is there says."""

    classes: int = 0
    samples: int = 0


def whole_plan(config: Config, kind: str, ranks: int, node_ranks: int, known: Known, fit: Fit | None) -> Plan:
    """UserError: no such kind of device, or a batch that its number does not share."""
    there = device(kind, node_ranks)
    if config.head.kind == "margin" and there.kind == "cuda" and "bf16" not in there.tflops:
        config = with_section(config, "head", kernels="torch")  # Triton's need compute capability 8.0
    size, parts = config.data.global_batch_size, ranks * config.data.accumulation
    if size % parts:
        raise UserError(
            f"data.global_batch_size: {size} is not shared evenly by {parts} parts (devices times data.accumulation); "
            f"take {max(parts, round(size / parts) * parts)}"
        )
    job = Job(
        config,
        there.resolved(config.precision.compute),
        known.classes or config.data.num_classes,
        ranks,
        node_ranks,
        there.kind,
    )
    images = known.samples or (config.data.num_samples if config.data.source == "synthetic" else 0)
    return Plan(job, there, images, fit)
