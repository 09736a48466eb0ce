"""How long a step takes: by the sheets of a device, as a roofline, or by measured rows, as a fit of three terms."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from megaclass.heads.storage import Storage
from megaclass.plan.devices import Device, reached
from megaclass.plan.memory import Job
from megaclass.plan.wire import Collective


@dataclass(frozen=True)
class Work:
    """Of one rank and step. backbone, head: operations; moved: bytes of the head's tables; parameters: of what the
    backbone's optimizer moves."""

    backbone: float
    head: float
    moved: float
    parameters: float


def work_of(job: Job) -> Work:
    config, passes = job.config, job.passes
    dim, images = passes.embedding_dim, job.images * config.data.accumulation
    if config.head.kind == "linear":
        weights = job.classes * (dim + 1)
        return Work(images * passes.flops, 6 * images * job.classes * dim, 0, passes.trained + weights)
    storage = Storage.named(config.head.storage)
    products = 3 if job.keeps and not job.has_kernels else 4  # that a scored class takes part in
    head = 2 * products * images * job.sharers * dim * job.scored
    # Pass 1 reads a scored centre (of a sample its momentum too), pass 2 reads and writes both.
    tables = 3 + storage.momentum * (2 + (config.head.sample_rate < 1))
    moved = tables * storage.dtype.itemsize * dim * job.scored
    return Work(images * passes.flops, head, moved, passes.trained)


def roofline(job: Job, device: Device, wire: Sequence[Collective]) -> tuple[float, float]:
    """Seconds of a step at best, where the head's arithmetic hides its traffic and gradients travel beside the backward
    pass, and at worst."""
    work, peak = work_of(job), device.tflops["fp32"]
    # Weights, gradients and momentum are read and written once.
    moved = work.moved + 24 * work.parameters
    found = []
    for place in (0, 1):
        backbone = work.backbone / (reached("backbone")[place] * 1e12 * device.tflops.get(job.compute, peak))
        precision = device.tflops.get(job.config.head.precision, peak)
        products = work.head / (reached("products")[place] * 1e12 * precision)
        traffic = moved / (reached("memory")[place] * 1e9 * device.memory_gb_s)
        hidden = sum(c.seconds(device)[1 - place] for c in wire if c.hidden)
        seen = sum(c.seconds(device)[1 - place] for c in wire if not c.hidden)
        if place:
            found.append(max(backbone, backbone / 3 + hidden) + max(products, traffic) + seen)
        else:
            found.append(backbone + products + traffic + hidden + seen)
    return found[1], found[0]


@dataclass(frozen=True)
class Fit:
    """Of measured steps: seconds of an operation of the backbone and of a parameter that moves; the head's operations
    and bytes take ``slower`` times what the limits of the machine allow."""

    backbone_s: float
    parameter_s: float
    slower: float
    limits: tuple[float, float]  # operations and bytes a second
    rows: int

    @classmethod
    def of(cls, measured: Sequence[tuple[Job, float, Mapping[str, float | None]]]) -> "Fit":
        """The least relative errors over ``(job, seconds of a step, work of its row)``, no term below 0."""
        names = ("limit_flops_per_second", "limit_bytes_per_second")
        known = [[limit for _, _, work in measured if (limit := work.get(name))] for name in names]
        flops, moved = (statistics.median(limits) if limits else 1e11 for limits in known)
        fit = cls(1.0, 1.0, 1.0, (flops, moved), len(measured))
        terms = np.array([fit._terms(job) for job, _, _ in measured])
        scale = np.maximum(terms.max(axis=0), 1e-30)
        seconds = np.array([step_s for _, step_s, _ in measured])
        found, _ = nnls(terms / scale / seconds[:, None], np.ones(len(seconds)))
        backbone_s, parameter_s, slower = (found / scale).tolist()
        return cls(backbone_s, parameter_s, slower, fit.limits, fit.rows)

    def _terms(self, job: Job) -> list[float]:
        work = work_of(job)
        of_head = work.head / self.limits[0] + work.moved / self.limits[1]
        return [self.backbone_s * work.backbone, self.parameter_s * work.parameters, self.slower * of_head]

    def step_s(self, job: Job) -> float:
        """Without collectives."""
        return sum(self._terms(job))
