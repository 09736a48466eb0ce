"""The memory that a run needs at the least, before what takes most of it is made.

Where a system lends more memory than it has, no allocator refuses, and the kernel ends the process without a word.
Activations are not counted, nor is a GPU's memory held against it, whose allocator refuses: what is refused here could
never have run.
"""

import os
from dataclasses import dataclass

import torch
from torch import nn

from megaclass.config import Config
from megaclass.data.loader import PREFETCHED
from megaclass.errors import UserError, in_bytes
from megaclass.heads.storage import Storage
from megaclass.parallel.groups import World, shard_range
from megaclass.results.machine import available_memory

_FP32 = 4
# Of the weights, by optim.name; SGD without momentum keeps none.
_COPIES = {"sgd": 1, "lars": 1, "adamw": 2}


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank, by what they hold. What a batch takes comes on top: images and activations."""

    weights: int  # of the backbone, and of a linear head
    gradients: int
    optimizer: int
    average: int  # optim.ema_decay
    casts: int  # 16-bit copies of the weights within a step
    centres: int
    momentum: int  # of the centres
    owed: int  # by rows that sampling leaves out

    @property
    def total(self) -> int:
        return sum(vars(self).values())

    @property
    def stored(self) -> int:
        """What a checkpoint holds of it; with one rank, the whole checkpoint."""
        return self.weights + self.optimizer + self.average + self.centres + self.momentum


def memory_of(
    config: Config, backbone: nn.Module, *, classes: int, compute: str, ranks: int = 1, node_ranks: int = 1
) -> Memory:
    """The memory of the rank that needs most. Of ``backbone`` shapes alone matter, which the meta device has too.

    compute: ``precision.compute`` with ``auto`` resolved. ranks: of the job; node_ranks: of them on one machine.
    Rows are stored as heads/storage.py says; weights are fp32, and autocast keeps 16-bit copies of them within a step.
    """
    head, optim, embedding_dim = config.head, config.optim, int(backbone.embedding_dim)  # type: ignore[arg-type]
    parameters = sum(p.numel() for p in backbone.parameters() if p.requires_grad)
    # Norm statistics among them.
    frozen = sum(t.numel() for t in backbone.state_dict().values() if t.is_floating_point()) - parameters
    centres = momentum = owed = 0
    casts = 2 * parameters if compute in ("bf16", "fp16") else 0  # a linear head computes in fp32
    if head.kind == "linear":  # on every rank, and the backbone's optimizer moves it
        parameters += classes * (embedding_dim + 1)
    else:
        sharers = {"world": ranks, "node": node_ranks}[head.shard_group] if head.parallelism == "model" else 1
        _, rows = shard_range(classes, 0, sharers)
        storage = Storage.named(head.storage)
        scale = _FP32 if storage.dtype.itemsize == 1 else 0
        centres = rows * (embedding_dim * storage.dtype.itemsize + scale)
        momentum = rows * embedding_dim * storage.dtype.itemsize if storage.momentum else 0
        owed = rows * _FP32 if head.sample_rate < 1 else 0
    copies = 0 if optim.name == "sgd" and not optim.momentum else _COPIES[optim.name]
    return Memory(
        weights=_FP32 * (parameters + frozen),
        gradients=_FP32 * parameters,
        optimizer=copies * _FP32 * parameters,
        average=_FP32 * (parameters + frozen) if optim.ema_decay else 0,
        casts=casts,
        centres=centres,
        momentum=momentum,
        owed=owed,
    )


def require_batches(config: Config, world: World) -> None:
    """UserError unless the images of the batches that are made ahead fit."""
    data = config.data
    images = data.global_batch_size // world.size
    # A byte each as they are loaded, in fp32 as the model takes them.
    values = 3 * data.image_size**2 * images
    needed = (PREFETCHED + 1) * values + (4 * values // data.accumulation if _on_cpu(world) else 0)
    _require(
        needed,
        f"data.global_batch_size: {images:,} images a rank of data.image_size {data.image_size}",
        "lower one of them",
    )


def require_model(config: Config, backbone: nn.Module, classes: int, world: World) -> None:
    """UserError unless the rank's part of head, gradients and optimizer fits beside the backbone, which is there."""
    if _on_cpu(world):
        needs = memory_of(
            config, backbone, classes=classes, compute="fp32", ranks=world.size, node_ranks=_local_ranks()
        )
        _require(
            needs.total - sum(t.nbytes for t in backbone.state_dict().values()),
            f"data.num_classes: a {config.head.kind} head of {classes:,} classes and {config.model.name}",
            "use fewer classes, a smaller model.embedding_dim or, of a margin head, a smaller head.storage",
        )


def _require(needed: float, what: str, advice: str) -> None:
    """``needed`` is of one rank, and its machine may have several."""
    needed, available = needed * _local_ranks(), available_memory()
    if needed > available:
        raise UserError(
            f"{what} needs {in_bytes(needed)} of memory, and {in_bytes(available)} are free; {advice}"
        )


def _on_cpu(world: World) -> bool:
    return torch.device(world.device).type == "cpu"


def _local_ranks() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
