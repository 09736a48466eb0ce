"""What travels between ranks in a step.

b = images of a rank's micro-batch, D = columns of an embedding.
"""

import math
from dataclasses import dataclass

from megaclass.plan.devices import Device, reached
from megaclass.plan.memory import Job, tile_rows

_BUCKET = 25 << 20  # of DistributedDataParallel, where speed.bucket_mb is 0


@dataclass(frozen=True)
class Collective:
    """``count`` equal ones a step among ``ranks``. bytes: of the whole tensor, which the ranks give or get together."""

    name: str
    kind: str  # all-gather, reduce-scatter or all-reduce
    bytes: float
    count: int
    ranks: int
    between_nodes: bool

    @property
    def hidden(self) -> bool:
        """Whether it travels beside the backward pass."""
        return "backbone" in self.name

    @property
    def sent(self) -> float:
        """Bytes that a rank sends in a step, by a ring."""
        return (1 + (self.kind == "all-reduce")) * self.bytes * self.count * (self.ranks - 1) / self.ranks

    def seconds(self, device: Device) -> tuple[float, float]:
        """Of all of them, of a step: at best and at worst. A ring of ranks, with a latency a hop; of small all-reduces
        NCCL makes trees, whose hops are the logarithm."""
        latency_s = device.latency_us[self.between_nodes] * 1e-6
        hops = 2 * math.ceil(math.log2(self.ranks)) if self.kind == "all-reduce" else self.ranks - 1
        rate = 1e9 * (device.network_gb_s if self.between_nodes else device.link_gb_s)
        low, high = reached("wire")
        waits = self.count * hops * latency_s
        return waits + self.sent / (high * rate), waits + self.sent / (low * rate)


def collectives(job: Job) -> list[Collective]:
    """Of a step, in their order; without those of a few bytes that carry the loss and what ranks vote on."""
    config, ranks, sharers = job.config, job.ranks, job.sharers
    found: list[Collective] = []

    def add(name: str, kind: str, size: float, count: int, among: int) -> None:
        # The ranks of a node stand together; replicas of a node's classes are of different nodes.
        between = among > job.node_ranks or (
            among > 1 and sharers == job.node_ranks < ranks and "centres" in name
        )
        if among > 1 and size:
            found.append(Collective(name, kind, size, count, among, between))

    parts, b, dim = config.data.accumulation, job.images, job.passes.embedding_dim
    if config.head.kind == "margin":
        if config.head.sample_rate < 1:
            add("labels, to draw the sample", "all-gather", 8 * b * parts * ranks, 1, ranks)
        add("embeddings", "all-gather", 4 * b * dim * sharers, parts, sharers)
        add("labels", "all-gather", 8 * b * sharers, parts, sharers)
        add("sums and target cosines", "all-reduce", 16 * b * sharers, parts, sharers)
        add("gradient of the embeddings", "reduce-scatter", 4 * b * dim * sharers, parts, sharers)
        tiles = math.ceil(job.scored / tile_rows(job)) if job.scored else 0
        add(
            "gradient of the centres, by tiles",
            "all-reduce",
            4 * dim * job.scored / max(1, tiles),
            tiles,
            ranks // sharers,
        )
    else:
        of_head = 4 * job.classes * (dim + 1)
        add("gradient of the head", "all-reduce", of_head, 1, ranks)
    size = job.passes.trained * (4 if config.speed.gradient_compression == "none" else 2)
    bucket = config.speed.bucket_mb * 2**20 or _BUCKET
    count = math.ceil(job.passes.trained * 4 / bucket)
    add("gradients of the backbone, by buckets", "all-reduce", size / count, count, ranks)
    return found
