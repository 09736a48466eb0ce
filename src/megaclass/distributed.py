"""Processes: start and stop, who holds what, and the collectives that the rest of the house uses.

Every function works without a process group too, as the only rank: code above this layer never asks
whether a run is distributed.

Shapes: B = rows of one rank, G = rows of all ranks, D = columns.
"""

import contextlib
import datetime
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from megaclass.errors import LostRankError, UserError

T = TypeVar("T")

# PyTorch 2.13 renamed the two; 2.11 knows only the second name.
_all_gather_single = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
_reduce_scatter_single = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)


@dataclass(frozen=True)
class World:
    """This process among all processes of the run."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0


@dataclass(frozen=True)
class _Simulation:
    ranks: int
    gather: Callable[[Tensor], Tensor]


_simulation: _Simulation | None = None


@contextlib.contextmanager
def simulated(ranks: int, gather: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Be rank 0 of ``ranks`` in one process, to measure one rank's share of a larger job.

    Nothing is sent: ``gather(tensor_b)`` makes up what an all-gather of this rank's rows would give (G rows,
    this rank's first), a reduction leaves what this rank has, and a reduce-scatter takes this rank's part. The
    work is that of one rank, its results are not those of a job.
    """
    global _simulation
    if dist.is_initialized() or _simulation is not None:
        raise RuntimeError("ranks can be simulated in a process that is alone")
    _simulation = _Simulation(ranks, gather)
    try:
        yield
    finally:
        _simulation = None


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    if _simulation is not None:
        return _simulation.ranks
    return dist.get_world_size() if dist.is_initialized() else 1


def alone() -> bool:
    """Whether there is nobody to exchange anything with, simulated ranks not counted."""
    return _simulation is not None or world_size() == 1


def pick_device(name: str) -> torch.device:
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N``; under torchrun each local rank takes its own GPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"run.device: {name!r} is not a device; use auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"run.device: {name!r} is not supported; use auto, cpu, cuda or cuda:N")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(f"run.device: {name!r} asked for, but PyTorch sees no CUDA GPU; use cpu or auto")
        if device.index is not None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError(
                f"run.device: {name!r} names one GPU for all processes; say cuda, and each takes its own"
            )
        index = device.index if device.index is not None else int(os.environ.get("LOCAL_RANK", 0))
        if index >= torch.cuda.device_count():
            raise UserError(
                f"run.device: GPU {index} asked for, but this machine shows {torch.cuda.device_count()}; "
                "start as many processes as there are GPUs"
            )
        device = torch.device("cuda", index)
    return device


@contextlib.contextmanager
def started(device_name: str = "auto", timeout_s: float = 600.0) -> Iterator[World]:
    """Join the process group that torchrun describes in the environment, and leave it at the end.

    Outside torchrun no group is made and the world has one rank. gloo serves CPU tensors, nccl CUDA ones.
    """
    device = pick_device(device_name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield World(rank(), world_size(), device)
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(
        backend,
        timeout=datetime.timedelta(seconds=timeout_s),
        device_id=device if device.type == "cuda" else None,
    )
    try:
        yield World(rank(), world_size(), device)
        dist.barrier()  # leave together: a rank that tears its connections down can take the others along
    except RuntimeError as error:
        # gloo has no exception type of its own, but names its source file.
        if isinstance(error, dist.DistBackendError) or "gloo/" in str(error):
            raise LostRankError(f"rank {rank()} stops, since another rank has left or hangs") from error
        raise
    finally:
        dist.destroy_process_group()


def collective_device() -> torch.device:
    """Where a tensor must lie for a collective: nccl takes none on the CPU."""
    if dist.is_initialized() and dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def shard_range(count: int, index: int, parts: int) -> tuple[int, int]:
    """The contiguous ``[start, stop)`` of ``range(count)`` that part ``index`` of ``parts`` owns.

    Sizes differ by at most one and the larger ones come first, as in arcface_torch.
    """
    if not 0 <= index < parts:
        raise ValueError(f"part {index} of {parts} does not exist")
    base, extra = divmod(count, parts)
    start = index * base + min(index, extra)
    return start, start + base + (index < extra)


def all_gather_rows(tensor_B: Tensor) -> Tensor:
    """Concatenate the same-shaped tensors of all ranks along dimension 0, in rank order (no gradient)."""
    if _simulation is not None:
        return _simulation.gather(tensor_B)
    if world_size() == 1:
        return tensor_B
    gathered_G = tensor_B.new_empty((world_size() * tensor_B.shape[0], *tensor_B.shape[1:]))
    _all_gather_single(gathered_G, tensor_B.contiguous())
    return gathered_G


def all_reduce_(tensor: Tensor, op: str = "sum") -> Tensor:
    """Reduce in place over all ranks (``sum``, ``max``, ``min`` or ``mean``) and return the tensor."""
    if not alone():
        if op == "mean":
            dist.all_reduce(tensor, dist.ReduceOp.SUM)
            tensor.div_(world_size())
        else:
            dist.all_reduce(
                tensor, {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX, "min": dist.ReduceOp.MIN}[op]
            )
    return tensor


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return all_reduce_(tensor.clone())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        # Every rank's output is the same sum, so each input receives the sum of all output gradients.
        return all_reduce_(grad.contiguous().clone())


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """A differentiable sum over all ranks."""
    return _AllReduceSum.apply(tensor) if world_size() > 1 else tensor


def broadcast_object(value: Any) -> Any:
    """Rank 0's picklable value, on every rank."""
    if alone():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather_objects(value: Any) -> list[Any]:
    """Every rank's picklable value, in rank order, on every rank."""
    if alone():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def barrier() -> None:
    if not alone():
        dist.barrier()


def agree_or_raise(error: Exception | None) -> None:
    """Raise on every rank if any rank brings an error, so that no rank waits for one that has left.

    A rank's own error that is no UserError (a bug) is raised as it is; the others hear of it.
    """
    messages = [message for message in gather_objects(None if error is None else _told(error)) if message]
    if error is not None and not isinstance(error, UserError):
        raise error
    if messages:
        agreed = UserError(messages[0])
        agreed.agreed = True
        raise agreed from error


def _told(error: Exception) -> str:
    return (
        str(error) if isinstance(error, UserError) else f"a rank failed with {type(error).__name__}: {error}"
    )


def together(work: Callable[[], T]) -> T:
    """``work()`` on every rank; an error of one rank is raised on all."""
    result, error = None, None
    try:
        result = work()
    except Exception as caught:
        error = caught
    agree_or_raise(error)
    return cast(T, result)


def on_main_rank(work: Callable[[], T]) -> T:
    """``work()`` on rank 0 alone; all ranks get its (picklable) result or its UserError."""
    return cast(T, broadcast_object(together(lambda: work() if rank() == 0 else None)))


def reduce_scatter_rows(tensor_G: Tensor) -> Tensor:
    """The sum over ranks of this rank's equal part of dimension 0 (no gradient)."""
    if world_size() == 1:
        return tensor_G
    tensor_b = tensor_G.new_empty((tensor_G.shape[0] // world_size(), *tensor_G.shape[1:]))
    if _simulation is not None:
        return tensor_b.copy_(tensor_G[: len(tensor_b)])
    _reduce_scatter_single(tensor_b, tensor_G.contiguous())
    return tensor_b
