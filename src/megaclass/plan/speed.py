"""How long a step takes: from the sheets of a device, as a roofline, or from measured rows, as a fit of three terms.

A step takes ``fixed + images * backbone's operations + scored classes * (images that a shard sees) * products``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from megaclass.plan.devices import Device, reached
from megaclass.plan.memory import Job
from megaclass.plan.wire import Collective

_PRODUCTS = (
    4  # that a scored class takes part in where pass 2 computes logits again; 3 where exponentials are kept
)


@dataclass(frozen=True)
class Work:
    """Of one rank and step. backbone, head: operations. moved: bytes of the head's tables. images: of the rank."""

    images: float
    backbone: float
    head: float
    moved: float


def work_of(job: Job) -> Work:
    from megaclass.heads.storage import Storage

    config, dim = job.config, job.passes.embedding_dim
    images = job.images * config.data.accumulation
    if config.head.kind == "linear":
        return Work(images, images * job.passes.flops, 6 * images * job.classes * dim, 24 * job.classes * dim)
    storage = Storage.named(config.head.storage)
    products = _PRODUCTS - (not job.has_kernels and job.keeps)
    head = 2 * products * images * job.sharers * dim * job.scored
    # Pass 1 reads a scored centre (of a sample its momentum too), pass 2 reads and writes both.
    tables = 3 + storage.momentum * (2 + (config.head.sample_rate < 1))
    return Work(images, images * job.passes.flops, head, tables * storage.dtype.itemsize * dim * job.scored)


def roofline(job: Job, device: Device, wire: Sequence[Collective]) -> tuple[float, float]:
    """Seconds of a step at best, where the head's arithmetic hides its traffic and gradients travel beside the backward
    pass, and at worst."""
    work = work_of(job)
    peak = 1e12 * device.tflops.get(job.compute, device.tflops["fp32"])
    of_head = 1e12 * device.tflops.get(job.config.head.precision, device.tflops["fp32"])
    found = []
    for place, better in ((1, True), (0, False)):
        backbone = work.backbone / (reached("backbone")[place] * peak)
        products = work.head / (reached("products")[place] * of_head)
        moved = work.moved / (reached("memory")[place] * 1e9 * device.memory_gb_s)
        of_backbone = sum(c.seconds(device)[not better] for c in wire if "backbone" in c.name)
        others = sum(c.seconds(device)[not better] for c in wire if "backbone" not in c.name)
        if better:
            found.append(max(backbone, backbone / 3 + of_backbone) + max(products, moved) + others)
        else:
            found.append(backbone + products + moved + of_backbone + others)
    return found[0], found[1]


@dataclass(frozen=True)
class Fit:
    """seconds: of a step whatever it computes, an operation of the backbone, one of the head, a byte of the head."""

    seconds: np.ndarray
    rows: int

    @classmethod
    def of(cls, measured: Sequence[tuple[Work, float]]) -> "Fit":
        """The least relative errors over steps of ``(work, seconds)``, no term below 0."""
        table = np.array([[1.0, work.backbone, work.head, work.moved] for work, _ in measured])
        seconds = np.array([second for _, second in measured])
        # Terms of size 1, and each row alike by its share.
        scale = table.max(axis=0)
        scale[scale == 0] = 1.0
        found, _ = nnls(table / scale / seconds[:, None], np.ones(len(seconds)))
        return cls(found / scale, len(seconds))

    def step_s(self, job: Job) -> float:
        work = work_of(job)
        return float(np.array([1.0, work.backbone, work.head, work.moved]) @ self.seconds)
