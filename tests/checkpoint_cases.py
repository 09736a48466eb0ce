"""What the checkpoint tests share: a state to save, and what it means to be the same."""

import math
import struct

import torch

from megaclass import checkpoint
from megaclass.checkpoint import Saver, Sharded
from megaclass.errors import UserError

IDENTITY = {"backbone": "iresnet50", "classes": 23, "embedding_size": 4}


def save(root, step=1, *, state=None, sharded=None, keep_last=3, keep_every=0, beside=False, **options):
    """A save with the arguments that a test does not care about filled in, and its end; an error is raised."""
    options.setdefault("identity", IDENTITY)
    saver = Saver(root, keep_last=keep_last, keep_every=keep_every, beside=beside)
    assert not saver.save(step, state=state or {}, sharded=sharded or {}, **options)
    saved = saver.wait()
    if saved.error:
        raise UserError(saved.error)
    assert saver.wait() is saver.done() is None
    return saved.path


def head(rows=23, fill=None):
    """Three sharded tensors of one rank, as a head has them: wide, bf16 and one counter a row."""
    torch.manual_seed(0)
    tensors = {
        "head/centres": torch.randn(rows, 4),
        "head/momentum": torch.randn(rows, 4).bfloat16(),
        "head/last_step": torch.arange(rows),
    }
    if fill is not None:
        tensors = {name: torch.full_like(tensor, fill) for name, tensor in tensors.items()}
    return {name: Sharded(tensor, 0, rows) for name, tensor in tensors.items()}


def raw(tensor):
    return tensor.contiguous().view(-1).view(torch.uint8).tolist() if tensor.numel() else []


def same(a, b):
    """Equal in type, value and bits; 0.0 differs from -0.0, a NaN equals a NaN."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape and raw(a) == raw(b)
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return struct.pack("d", a) == struct.pack("d", b) or (math.isnan(a) and math.isnan(b))
    if isinstance(a, dict):
        return list(map(repr, a)) == list(map(repr, b)) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def read_all(path):
    loaded = checkpoint.load(path)
    return {
        "state": loaded.state,
        "step": loaded.step,
        **{name: loaded.rows(name) for name in loaded.sharded},
    }
