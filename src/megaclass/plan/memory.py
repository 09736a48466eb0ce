"""The memory of one rank, by what it holds: the one sum that plan, training's refusals and the doctor go by."""

import math
from dataclasses import dataclass

from megaclass.config import Config
from megaclass.data.loader import PREFETCHED
from megaclass.heads.softmax import _has_bf16_without_amx as casts_operands
from megaclass.heads.storage import Storage
from megaclass.parallel.groups import shard_range
from megaclass.plan.activations import Passes, passes_of

_FP32 = 4
# Of the weights, by optim.name; SGD without momentum keeps none.
_COPIES = {"sgd": 1, "lars": 1, "adamw": 2}
# As heads/softmax.py keeps exponentials; what the Triton kernels take whatever the number of classes.
_KEPT_SHARE = 0.25
_KERNELS = 96 << 20
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
    """What is planned. compute: ``precision.compute`` with ``auto`` resolved. ranks: of the job; node_ranks: of them on
    one machine. kind: ``cpu`` or ``cuda``. classes 0: not known yet."""

    config: Config
    compute: str
    classes: int
    ranks: int = 1
    node_ranks: int = 1
    kind: str = "cpu"

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
        if self.config.head.kind == "linear" or self.config.head.parallelism == "data":
            return 1
        return {"world": self.ranks, "node": self.node_ranks}[self.config.head.shard_group]

    @property
    def rows(self) -> int:
        """Classes of the rank that has most."""
        return shard_range(self.classes, 0, self.sharers)[1]

    @property
    def scored(self) -> int:
        """Of these, in a step."""
        return math.ceil(self.rows * self.config.head.sample_rate)

    @property
    def operand(self) -> int:
        """Bytes of an operand of the head's products."""
        return (
            2 if self.config.head.precision == "bf16" and (self.kind == "cuda" or casts_operands()) else _FP32
        )

    @property
    def keeps(self) -> bool:
        """Whether the head keeps exponentials for its second pass."""
        head, dim = self.config.head, self.passes.embedding_dim
        small = self.images * self.sharers * self.operand <= _KEPT_SHARE * 2 * _FP32 * dim
        return head.recompute == "never" or (head.recompute == "auto" and small)

    @property
    def has_kernels(self) -> bool:
        return self.kind == "cuda" and self.config.head.kernels != "torch"


def memory_of(job: Job) -> Memory:
    """Rows are stored as heads/storage.py says; weights are fp32, with 16-bit copies of them within a step."""
    config, passes, optim = job.config, job.passes, job.config.optim
    of_head = job.classes * (passes.embedding_dim + 1) if config.head.kind == "linear" else 0
    trained = (
        passes.trained + of_head
    )  # a linear head is on every rank, and the backbone's optimizer moves it
    floats = passes.floats + of_head
    copies = 0 if optim.name == "sgd" and not optim.momentum else _COPIES[optim.name]
    stay = job.ranks > 1 or config.data.accumulation > 1
    gradients, casts, activations = passes.peak(job.images, stay)
    found = {"kept": 0, "tiles": 0} | (_of_head(job) if config.head.kind == "margin" else {})
    if of_head:
        found["batch"] = 3 * _FP32 * job.images * job.classes  # logits, their softmax and gradient
    if job.kind == "cpu":
        found["holes"] = passes.grown(job.images) - sum(passes.peak(job.images, False))
        found["libraries"] = _LIBRARIES
    return Memory(
        weights=_FP32 * floats,
        gradients=gradients + _FP32 * of_head,
        optimizer=copies * _FP32 * trained,
        average=_FP32 * floats if optim.ema_decay else 0,
        casts=casts,
        activations=activations,
        loader=_loader(job),
        **found,
    )


def _loader(job: Job) -> int:
    """A byte each of the images that are made ahead and of those in use."""
    data = job.config.data
    batches = 2 if data.source == "synthetic" else PREFETCHED + 1
    return batches * 3 * data.image_size**2 * math.ceil(data.global_batch_size / job.ranks)


def tile_rows(job: Job) -> int:
    """Rows of a tile of the head in plain PyTorch, as heads/softmax.py chooses them."""
    head, dim = job.config.head, job.passes.embedding_dim
    tile_bytes = (head.tile_mb or (256 if job.kind == "cuda" else 8)) * 1e6
    copies = 3 if head.sample_rate < 1 else 2
    return max(
        1, min(job.scored, max(64, int(tile_bytes / (4 * (2 * job.images * job.sharers + copies * dim)))))
    )


def _of_head(job: Job) -> dict[str, int]:
    """Of a margin head: its tables, and what comes with a batch."""
    head, dim, storage = job.config.head, job.passes.embedding_dim, Storage.named(job.config.head.storage)
    batch, scored, sampled = job.images * job.sharers, job.scored, head.sample_rate < 1
    table = job.rows * dim * storage.dtype.itemsize
    found = {
        "centres": table + (_FP32 * job.rows if storage.dtype.itemsize == 1 else 0),
        "momentum": table if storage.momentum else 0,
        # The numbers of the rows of a step, and their products, come on top of what is kept of each row.
        "owed": _FP32 * job.rows + 24 * scored if sampled else 0,
        # Unit embeddings, sums and targets; in fp64 the two of which the product gives the target's cosine, and that.
        "batch": batch * dim * (3 * _FP32 + 3 * 8),
    }
    if job.has_kernels:
        return found | {"kept": 0, "tiles": _KERNELS}
    of_one = max(1, scored * batch * job.operand)
    parts = job.config.data.accumulation
    fit = int(_KEPT_SHARE * 2 * _FP32 * scored * dim / of_one)
    found["kept"] = (
        of_one * {"always": 0, "never": parts, "auto": min(parts, fit)}[head.recompute] if scored else 0
    )
    # Bytes of a tile's row: the gradient and its product with the centre.
    row = 2 * _FP32 * dim
    tables = 1 + storage.momentum
    if sampled:  # gathered as stored, and brought up to date
        row += tables * storage.dtype.itemsize * dim + _FP32 * dim
    if storage.dtype.itemsize < _FP32:  # as fp32, with random numbers to round by, and rounded
        row += (tables + 1) * _FP32 * dim + sampled * storage.dtype.itemsize * dim
    if job.operand < _FP32:
        row += 2 * dim * job.operand + batch * job.operand * (not found["kept"])
    if job.operand < _FP32 or not found["kept"]:
        row += _FP32 * batch  # exponentials
    return found | {"tiles": tile_rows(job) * row}
