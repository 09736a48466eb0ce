"""What travels between ranks in a step.

b = images of a rank's micro-batch, D = columns of an embedding.
"""

import math
from dataclasses import dataclass

from megaclass.plan.devices import REACHED, Device
from megaclass.plan.memory import Job

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

    def seconds(self, device: Device) -> tuple[float, float]:
        """Of all of them, of a step: at best and at worst. A ring of ranks, with a latency a hop; all-reduces go by
        NCCL's trees, whose hops are the logarithm."""
        twice = self.kind == "all-reduce"
        hops = 2 * math.ceil(math.log2(self.ranks)) if twice else self.ranks - 1
        sent = (1 + twice) * self.bytes * (self.ranks - 1) / self.ranks / device.links[self.between_nodes]
        low, high = (self.count * (hops * device.hops[self.between_nodes] + sent / part) for part in REACHED["wire"])
        return high, low


def collectives(job: Job) -> list[Collective]:
    """Of a step, in their order; without those of a few bytes that carry the loss and what ranks vote on."""
    config, ranks, sharers = job.config, job.ranks, job.sharers
    found: list[Collective] = []

    def add(name: str, kind: str, size: float, count: int, among: int, between: bool) -> None:
        if among > 1 and size:
            found.append(Collective(name, kind, size, count, among, between))

    parts, b, dim = config.data.accumulation, job.images, job.passes.embedding_dim
    out = ranks > job.node_ranks
    if config.head.kind == "margin":
        if config.head.sample_rate < 1:
            add("labels, to draw the sample", "all-gather", 8 * b * parts * ranks, 1, ranks, out)
        beyond = sharers > job.node_ranks
        add("embeddings", "all-gather", 4 * b * dim * sharers, parts, sharers, beyond)
        add("labels", "all-gather", 8 * b * sharers, parts, sharers, beyond)
        add("sums and target cosines", "all-reduce", 16 * b * sharers, parts, sharers, beyond)
        add("gradient of the embeddings", "reduce-scatter", 4 * b * dim * sharers, parts, sharers, beyond)
        tiles = math.ceil(job.scored / max(1, job.tile_rows))
        size = 4 * dim * job.scored / max(1, tiles)
        add("gradient of the centres, by tiles", "all-reduce", size, tiles, ranks // sharers, out)
    else:
        add("gradient of the head", "all-reduce", 4 * job.classes * (dim + 1), 1, ranks, out)
    size = job.passes.trained * (4 if config.speed.gradient_compression == "none" else 2)
    count = math.ceil(job.passes.trained * 4 / (config.speed.bucket_mb * 2**20 or _BUCKET))
    add("gradients of the backbone, by buckets", "all-reduce", size / count, count, ranks, out)
    return found
