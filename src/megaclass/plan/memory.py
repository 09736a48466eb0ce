"""The memory of one rank, by what it holds: the one sum that plan, training's refusals and the doctor go by."""

import math
from dataclasses import dataclass

from megaclass.config import Config
from megaclass.data.loader import PREFETCHED
from megaclass.heads.margins import MARGINS
from megaclass.heads.products import operand_type
from megaclass.heads.softmax import most_kept, tile_rows
from megaclass.heads.storage import Storage
from megaclass.parallel.groups import shard_range
from megaclass.plan.activations import Passes, passes_of

_FP32 = 4
# Of the weights, by optim.name; SGD without momentum keeps none.
_COPIES = {"sgd": 1, "lars": 1, "lamb": 2, "adamw": 2}
_KERNELS = 96 << 20  # what the Triton kernels take, whatever the number of classes
_LIBRARIES = 15 << 20  # as measured of small models


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank when they are most."""

    weights: int  # of the backbone, and of a linear head
    gradients: int
    optimizer: int
    average: int  # optim.ema_decay
    casts: int  # 16-bit copies of the weights within a step
    activations: int
    centres: int = 0
    momentum: int = 0  # of the centres
    owed: int = 0  # by rows that sampling leaves out
    tiles: int = 0  # work space of the head
    kept: int = 0  # exponentials, from the head's first pass to its second
    batch: int = 0  # what the head gathers and computes for each row of the batch that it sees
    loader: int = 0  # batches that are made ahead
    holes: int = 0  # that the allocator of a CPU cannot fill within a step
    libraries: int = 0  # code and tables that they make in the first steps, on a CPU

    @property
    def total(self) -> int:
        return sum(vars(self).values())

    def least(self, kind: str) -> float:
        """What a run needs for certain: less by how far the plan of activations may be off, and by what compiled blocks
        save of them on a GPU."""
        return self.total - self.holes - self.libraries - (0.1 if kind == "cpu" else 0.5) * self.activations

    @property
    def stored(self) -> int:
        """What a checkpoint holds of it; with one rank, the whole checkpoint."""
        return self.weights + self.optimizer + self.average + self.centres + self.momentum


@dataclass(frozen=True)
class Job:
    """What is planned."""

    config: Config
    compute: str  # ``precision.compute`` with ``auto`` resolved
    classes: int  # 0: not known yet
    ranks: int = 1
    node_ranks: int = 1  # those on one machine
    kind: str = "cpu"  # or ``cuda``

    @property
    def passes(self) -> Passes:
        return passes_of(self.config, self.compute)

    @property
    def images(self) -> int:
        """Of a micro-batch of a rank."""
        return math.ceil(self.config.data.global_batch_size / self.ranks / self.config.data.accumulation)

    @property
    def sharers(self) -> int:
        """How many ranks share the classes."""
        head = self.config.head
        shared = head.kind == "margin" and head.parallelism == "model"
        return {"world": self.ranks, "node": self.node_ranks}[head.shard_group] if shared else 1

    @property
    def rows(self) -> int:
        """Centres of the rank that has most."""
        return shard_range(self.classes, 0, self.sharers)[1] * self.config.head.sub_centres

    @property
    def scored(self) -> int:
        """Of these, in a step."""
        return math.ceil(self.rows * self.config.head.sample_rate)

    @property
    def operand(self) -> int:
        """Bytes of an operand of the head's products."""
        return operand_type(self.config.head.precision, self.kind == "cuda").itemsize

    @property
    def has_kernels(self) -> bool:
        head = self.config.head
        return self.kind == "cuda" and head.kernels != "torch" and head.sub_centres == 1 and not self.reweighs

    @property
    def reweighs(self) -> bool:
        """Whether the margin is one for negatives too."""
        return getattr(MARGINS.get(self.config.head.margin), "reweighs", False)

    @property
    def kept(self) -> int:
        """Micro-batches whose exponentials the head keeps for its second pass, see heads/softmax.py."""
        how, parts = self.config.head.recompute, self.config.data.accumulation
        if self.has_kernels or how == "always":
            return 0
        fit = int(most_kept(self.passes.embedding_dim)) // (self.images * self.sharers * self.operand)
        return parts if how == "never" else min(parts, fit)

    @property
    def tile_rows(self) -> int:
        """Of the head in plain PyTorch."""
        head, batch = self.config.head, self.images * self.sharers
        dim, on_cuda = self.passes.embedding_dim, self.kind == "cuda"
        return min(self.scored, tile_rows(batch, dim, head.sample_rate < 1, head.tile_mb, on_cuda))


def memory_of(job: Job) -> Memory:
    """Rows are stored as heads/storage.py says; weights are fp32, with 16-bit copies of them within a step."""
    data, passes, optim = job.config.data, job.passes, job.config.optim
    # A linear head is on every rank, and the backbone's optimizer moves it.
    of_head = job.classes * (passes.embedding_dim + 1) if job.config.head.kind == "linear" else 0
    copies = 0 if optim.name == "sgd" and not optim.momentum else _COPIES[optim.name]
    gradients, casts, activations = passes.peak(job.images, job.ranks > 1 or data.accumulation > 1)
    batches = 2 if data.source == "synthetic" else PREFETCHED + 1
    on_cpu = job.kind == "cpu"
    # Of a linear head: logits, their softmax and gradient.
    found = {"batch": 3 * _FP32 * job.images * job.classes} if of_head else _of_margin_head(job)
    return Memory(
        weights=_FP32 * (passes.floats + of_head),
        gradients=gradients + _FP32 * of_head,
        optimizer=copies * _FP32 * (passes.trained + of_head),
        average=_FP32 * (passes.floats + of_head) if optim.ema_decay else 0,
        casts=casts,
        activations=activations,
        loader=batches * 3 * data.image_size**2 * math.ceil(data.global_batch_size / job.ranks),
        holes=passes.grown(job.images) - sum(passes.peak(job.images, False)) if on_cpu else 0,
        libraries=_LIBRARIES if on_cpu else 0,
        **found,
    )


def _of_margin_head(job: Job) -> dict[str, int]:
    """Its tables, and what comes with a batch."""
    head, dim, storage = job.config.head, job.passes.embedding_dim, Storage.named(job.config.head.storage)
    batch, sampled, stored = job.images * job.sharers, head.sample_rate < 1, storage.dtype.itemsize
    # Of a tile's row: the gradient, and its product with the centre.
    row = 2 * _FP32 * dim
    if sampled:  # gathered as stored, and brought up to date
        row += ((1 + storage.momentum) * stored + _FP32) * dim
    if stored < _FP32:  # as fp32, with random numbers to round by, and rounded
        row += ((2 + storage.momentum) * _FP32 + sampled * stored) * dim
    if job.operand < _FP32:
        row += 2 * job.operand * dim + job.operand * batch * (not job.kept)
    if job.operand < _FP32 or not job.kept:
        row += _FP32 * batch  # exponentials
    if job.reweighs:
        row += 2 * _FP32 * batch
    if head.sub_centres > 1:
        row += _FP32 * batch + _FP32 * batch // head.sub_centres  # which is nearest, and its logit
    return {
        "centres": job.rows * (stored * dim + _FP32 * (stored == 1)),
        "momentum": job.rows * stored * dim * storage.momentum,
        # The numbers of the rows of a step, and their products, come on top of what is kept of each row.
        "owed": (_FP32 * job.rows + 24 * job.scored) * sampled,
        # Unit embeddings, sums and targets; in fp64 the two of which the product gives the target's cosine, and that.
        "batch": batch * dim * (3 * _FP32 + 3 * 8),
        "kept": job.kept * job.scored * batch * job.operand,
        "tiles": _KERNELS if job.has_kernels else job.tile_rows * row,
    }
