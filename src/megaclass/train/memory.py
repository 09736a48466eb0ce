"""Whether a run can fit into memory: what its head and its batches need at the least, before any of it is made.

Where a system lends more memory than it has, no allocator refuses, and the kernel ends the process without a word.
Activations are not counted, nor what a GPU holds, whose allocator refuses: what is refused here could never have run.
"""

import os

import torch

from megaclass.config import Config
from megaclass.config.sections import Head
from megaclass.data.loader import PREFETCHED
from megaclass.errors import UserError
from megaclass.heads.storage import Storage
from megaclass.parallel.groups import World
from megaclass.results.machine import available_memory


def head_bytes(head: Head, num_classes: int, dim: int, ranks: int) -> float:
    """Of the centres and their optimizer's state on each of ``ranks`` that share the classes."""
    if head.kind == "linear":
        return 3 * 4 * num_classes * dim  # weight, gradient, momentum
    storage = Storage.named(head.storage)
    held = num_classes / (ranks if head.parallelism == "model" else 1)
    return held * (2 if storage.momentum else 1) * dim * storage.dtype.itemsize


def require_batches(config: Config, world: World) -> None:
    """UserError unless the images of the batches that are made ahead fit."""
    data = config.data
    images = data.global_batch_size // world.size
    values = (
        3 * data.image_size**2 * images
    )  # a byte each as they are loaded, in fp32 as the model takes them
    needed = (PREFETCHED + 1) * values + (4 * values // data.accumulation if _on_cpu(world) else 0)
    _require(
        needed,
        f"data.global_batch_size: {images:,} images a rank of data.image_size {data.image_size}",
        "lower one of them",
    )


def require_head(config: Config, num_classes: int, dim: int, world: World) -> None:
    """UserError unless the rank's part of the head fits."""
    if _on_cpu(world):
        ranks = world.size if config.head.shard_group == "world" else _local_ranks()
        needed = head_bytes(config.head, num_classes, dim, ranks)
        _require(
            needed,
            f"data.num_classes: a {config.head.kind} head of {num_classes:,} classes and {dim:,} columns",
            "use fewer classes, a smaller model.embedding_dim or, of a margin head, a smaller head.storage",
        )


def _require(needed: float, what: str, advice: str) -> None:
    """``needed`` is of one rank, and its machine may have several."""
    needed, available = needed * _local_ranks(), available_memory()
    if needed > available:
        raise UserError(
            f"{what} needs {needed / 2**30:,.1f} GiB of memory, and {available / 2**30:,.1f} GiB are free; {advice}"
        )


def _on_cpu(world: World) -> bool:
    return torch.device(world.device).type == "cpu"


def _local_ranks() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
