"""The memory that a recipe needs, known before it starts."""

from dataclasses import dataclass

from megaclass.config import Config
from megaclass.heads.storage import Storage
from megaclass.parallel.groups import shard_range

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
    config: Config,
    *,
    parameters: int,
    frozen: int,
    embedding_dim: int,
    classes: int,
    compute: str,
    ranks: int = 1,
    node_ranks: int = 1,
) -> Memory:
    """The memory of the rank that needs most, without building anything.

    parameters: numbers of the backbone that training moves; frozen: the others, norm statistics among them.
    compute: ``precision.compute`` with ``auto`` resolved. ranks: of the job; node_ranks: of them on one machine.
    Rows are stored as heads/storage.py says; weights are fp32, and autocast keeps 16-bit copies of them within a step.
    """
    head, optim = config.head, config.optim
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
