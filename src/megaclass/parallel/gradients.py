"""How the backbone's gradients are averaged over the ranks: hooks for DistributedDataParallel.

    if hook := communication_hook(reduce, compression):
        model.register_comm_hook(*hook)

``hierarchical`` goes by nodes: the ranks of a node share the sum of their gradients out, each brings its part to the
sum over the nodes with the ranks in its place there, and the node puts the parts together. The flat ring of gloo and
nccl moves as many bytes between nodes where ranks are numbered node by node; a hierarchy takes fewer turns (see
docs/distributed.md).
"""

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook

from megaclass.errors import UserError
from megaclass.parallel.groups import Grouping, all_ranks

REDUCTIONS = ("flat", "hierarchical")
COMPRESSIONS = ("none", "fp16", "bf16", "powersgd")

POWERSGD_RANK = 2  # of the two factors that stand for a gradient matrix
POWERSGD_START = 1000  # steps before the first compressed one: early gradients are not of low rank

Hook = Callable[[Any, dist.GradBucket], torch.futures.Future[Tensor]]

_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def communication_hook(reduce: str, compression: str) -> tuple[Any, Hook] | None:
    """State and hook for ``register_comm_hook``; None where DistributedDataParallel needs none. All ranks call.

    fp16, bf16: rounded to 16 bits on the way, after the division by the number of ranks. powersgd: matrices as
    products of low rank, what is left out added to the next step (Vogels et al., NeurIPS 2019, arXiv:1905.13727);
    a resumed run starts without what was left out.
    """
    if reduce not in REDUCTIONS or compression not in COMPRESSIONS:
        raise ValueError(f"no gradient reduction {reduce!r} with compression {compression!r}")
    if compression == "powersgd":
        if reduce == "hierarchical":
            raise UserError(
                "speed.gradient_compression: 'powersgd' factors whole matrices, and 'hierarchical' cuts them up; set "
                "speed.gradient_reduce to 'flat'"
            )
        state = PowerSGDState(
            None, matrix_approximation_rank=POWERSGD_RANK, start_powerSGD_iter=POWERSGD_START
        )
        return state, _low_rank
    if reduce == "flat" and compression == "none":
        return None
    units = all_ranks().split("node" if reduce == "hierarchical" else "rank")
    stream = torch.cuda.Stream() if dist.get_backend() == "nccl" else None
    return _Way(units, _DTYPES.get(compression), stream), average


def _low_rank(state: PowerSGDState, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """PyTorch's hook, which a gradient that was not finite would spoil for all later steps; the optimizers have left
    that step out.

    Its later collectives start when its earlier ones end, which over gloo is another order of buckets on each rank:
    sums of what does not belong together. So there the next bucket waits.
    """
    _forget_what_is_not_finite(state, bucket.index())
    future = powerSGD_hook(state, bucket)
    if dist.get_backend() == "gloo":
        future.wait()
    return future


def _forget_what_is_not_finite(state: PowerSGDState, index: int) -> None:
    """What was left out starts at 0 again, and the factors at random numbers, which are the same on every rank."""
    if (error := state.error_dict.get(index)) is not None:
        error.nan_to_num_(0.0, 0.0, 0.0)
    for memory in (state.p_memory_dict, state.q_memory_dict):
        if (factors := memory.get(index)) is not None:
            generator = torch.Generator(factors.device)
            generator.manual_seed(index)
            fresh = torch.randn(
                factors.shape, dtype=factors.dtype, device=factors.device, generator=generator
            )
            factors.copy_(torch.where(torch.isfinite(factors).all(), factors, fresh))


@dataclass(frozen=True)
class _Way:
    units: Grouping
    dtype: torch.dtype | None  # on the way; None: as it is
    stream: torch.cuda.Stream | None = None  # on CUDA, beside the backward pass


def average(way: _Way, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """The mean over all ranks, in place in the bucket: over a unit, over the units, and back.

    Not PyTorch's hook for 16 bits: DistributedDataParallel refuses that for bf16 where there is no nccl.
    """
    buffer, within, across = bucket.buffer(), way.units.within, way.units.across
    on_gpu = buffer.device.type == "cuda"
    future: torch.futures.Future[Tensor] = torch.futures.Future(devices=[buffer.device] if on_gpu else [])
    with _beside_backward(way.stream):
        count = len(buffer)
        padded = buffer.new_zeros(-(-count // within.size) * within.size, dtype=way.dtype)
        padded[:count] = buffer / (within.size * across.size)  # first, or fp16 sums could overflow
        part = across.all_reduce_(within.reduce_scatter_rows(padded))
        buffer.copy_(within.all_gather_rows(part)[:count])
        future.set_result(buffer)
    return future


def _beside_backward(stream: torch.cuda.Stream | None) -> AbstractContextManager[Any]:
    """On a stream of its own, the backward pass does not wait for a bucket."""
    if stream is None:
        return contextlib.nullcontext()
    stream.wait_stream(torch.cuda.current_stream())
    return torch.cuda.stream(stream)
