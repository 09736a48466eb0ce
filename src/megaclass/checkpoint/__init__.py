"""Checkpoints: complete, atomic, independent of the number of ranks, and safe to open from strangers.

A checkpoint is a directory that only ever appears whole::

    checkpoints/step-00000100/
        manifest.json                            what it is, all scalars, the size and CRC32 of each file
        replicated.safetensors                   what every rank holds alike: backbone, its optimizer, ...
        shard-0000000000-0000500000.safetensors  class rows [0, 500000) of every sharded tensor
        shard-0000500000-0001000000.safetensors  ... and so on: files follow rows, never ranks

Nothing in it is a pickle: opening a hostile one ends in a :class:`~megaclass.errors.UserError`, never in
code that runs or in an allocation larger than the files themselves.

The package knows no model, head or optimizer: it takes nested dicts, lists and tuples of tensors and scalars,
and row ranges of tensors that are split over the ranks.
"""

from megaclass.checkpoint.directory import best, latest, list_checkpoints, usable
from megaclass.checkpoint.reader import Checkpoint, load, verify
from megaclass.checkpoint.saver import Saved, Saver, Sharded

__all__ = [
    "Checkpoint", "Saved", "Saver", "Sharded", "best", "latest", "list_checkpoints", "load", "usable", "verify",
]  # fmt: skip
