"""What one rank sends in a training step, for a row."""

import math

from torch import nn

from megaclass.heads.linear import LinearHead
from megaclass.parallel.traffic import Sent, Traffic
from megaclass.train.job import Job

BACKBONE = "backbone"
_COMPRESSED = {"fp16": 2, "bf16": 2}  # bytes of an element; low-rank compression counts in full
_MIB = 2**20
_DEFAULT_BUCKET_MB = 25.0  # of PyTorch, after a first one of 1 MB


def sent_in_step(traffic: Traffic, steps: int, job: Job, ranks: int) -> dict[str, float]:
    """``sent_bytes_KIND``, ``sent_calls_KIND`` and ``sent_rounds_KIND`` of a step: what was counted in ``steps``, and
    the gradients that DistributedDataParallel averages by itself, or would where ranks are simulated."""
    found = {
        f"sent_{name}_{kind}": value / steps
        for kind, sent in traffic.items()
        for name, value in vars(sent).items()
    }
    if ranks > 1 and BACKBONE not in traffic:
        averaged = _averaged(job, ranks)
        found |= {f"sent_{name}_{BACKBONE}": float(value) for name, value in vars(averaged).items()}
    return found


def _averaged(job: Job, ranks: int) -> Sent:
    """Gradients of the backbone, and of a head that every rank has, over all ranks at once."""
    speed = job.config.speed
    parts: list[nn.Module] = [job.backbone, *([job.head] if isinstance(job.head, LinearHead) else [])]
    sent = Sent()
    for part in parts:
        trained = sum(p.numel() for p in part.parameters() if p.requires_grad)
        whole = trained * _COMPRESSED.get(speed.gradient_compression, 4)
        buckets = max(1, math.ceil(trained * 4 / ((speed.bucket_mb or _DEFAULT_BUCKET_MB) * _MIB)))
        for _ in range(buckets):
            sent.add("all_reduce", whole / buckets, ranks)
    return sent
