"""How long a step takes: by the sheets of a device, as a roofline, or by measured rows, as a fit of three terms."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.optimize import nnls

from megaclass.heads.storage import Storage
from megaclass.plan.devices import REACHED, Device
from megaclass.plan.memory import Job
from megaclass.plan.wire import Collective


class Work(NamedTuple):
    """Of one rank and step. backbone, head: operations; moved: bytes of the head's tables; parameters: that the
    optimizer of the backbone moves."""

    backbone: float
    head: float
    moved: float
    parameters: float


def work_of(job: Job) -> Work:
    head, passes = job.config.head, job.passes
    dim, images = passes.embedding_dim, job.images * job.config.data.accumulation
    if head.kind == "linear":
        trained = passes.trained + job.classes * (dim + 1)
        return Work(images * passes.flops, 6 * images * job.classes * dim, 0, trained)
    storage = Storage.named(head.storage)
    products = 3 if job.kept else 4  # that a scored class takes part in
    # Pass 1 reads a scored centre (of a sample its momentum too), pass 2 reads and writes both.
    tables = 3 + storage.momentum * (2 + (head.sample_rate < 1))
    moved = tables * storage.dtype.itemsize * dim * job.scored
    return Work(images * passes.flops, 2 * products * images * job.sharers * dim * job.scored, moved, passes.trained)


def roofline(job: Job, device: Device, wire: Sequence[Collective]) -> tuple[float, float]:
    """Seconds of a step at best, where the head's arithmetic hides its traffic and gradients travel beside the backward
    pass, and at worst."""
    work, peak, found = work_of(job), device.rates["fp32"], []
    for place in (1, 0):
        share = {what: REACHED[what][place] for what in REACHED}
        backbone = work.backbone / (share["backbone"] * device.rates.get(job.compute, peak))
        products = work.head / (share["products"] * device.rates.get(job.config.head.precision, peak))
        # Weights, gradients and momentum are read and written once.
        traffic = (work.moved + 24 * work.parameters) / (share["memory"] * device.memory_rate)
        hidden, seen = (sum(c.seconds(device)[1 - place] for c in wire if c.hidden is h) for h in (True, False))
        if place:
            found.append(max(backbone, backbone / 3 + hidden) + max(products, traffic) + seen)
        else:
            found.append(backbone + products + traffic + hidden + seen)
    return found[0], found[1]


@dataclass(frozen=True)
class Fit:
    """Of measured steps: seconds of an operation of the backbone, of a parameter that moves, and of the head over what
    ``limits`` of the machine, in operations and bytes a second, allow for it."""

    seconds: tuple[float, ...]
    limits: tuple[float, float]
    rows: int

    @classmethod
    def of(cls, measured: Sequence[tuple[Job, float, Mapping[str, float | None]]]) -> "Fit":
        """The least relative errors over ``(job, seconds of a step, work of its row)``, no term below 0."""
        names = ("limit_flops_per_second", "limit_bytes_per_second")
        flops, moved = (statistics.median([row.get(name) or 1e11 for *_, row in measured]) for name in names)
        fit = cls((), (flops, moved), len(measured))
        terms = np.array([fit._terms(job) for job, *_ in measured])
        scale = np.maximum(terms.max(axis=0), 1e-30)
        found, _ = nnls(terms / scale / np.array([[s] for _, s, _ in measured]), np.ones(len(measured)))
        return cls((*(found / scale).tolist(),), fit.limits, fit.rows)

    def _terms(self, job: Job) -> list[float]:
        work = work_of(job)
        return [work.backbone, work.parameters, work.head / self.limits[0] + work.moved / self.limits[1]]

    def step_s(self, job: Job) -> float:
        """Without collectives."""
        return float(np.dot(self.seconds, self._terms(job)))
