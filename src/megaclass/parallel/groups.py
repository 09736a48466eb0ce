"""Processes: start and stop, who holds what, and the collectives that the rest of the house uses.

Tensors are exchanged by the methods of a :class:`Group` of ranks, small objects by the functions below, over all
ranks. Everything works without a process group too, as the only rank: code above this layer never asks whether a
run is distributed.

Shapes: B = rows of one rank, G = rows of all ranks of a group.
"""

import contextlib
import datetime
import functools
import gc
import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from megaclass.errors import AgreedError, LostRankError, UserError
from megaclass.parallel import agreement
from megaclass.parallel.heartbeat import heartbeat
from megaclass.parallel.rendezvous import decline, is_loss, join, number, place

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


# -- groups of ranks ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """Ranks that exchange tensors, this one as ``rank`` of ``size``. Of one rank nothing is sent."""

    rank: int = 0
    size: int = 1
    process_group: dist.ProcessGroup | None = None

    def share(self, count: int) -> tuple[int, int]:
        """The contiguous ``[start, stop)`` of ``range(count)`` that is this rank's, see :func:`shard_range`."""
        return shard_range(count, self.rank, self.size)

    def all_gather_rows(self, tensor_B: Tensor) -> Tensor:
        """Concatenate the same-shaped tensors of the ranks along dimension 0, in rank order (no gradient)."""
        if self.size == 1:
            return tensor_B
        gathered_G = tensor_B.new_empty((self.size * tensor_B.shape[0], *tensor_B.shape[1:]))
        _all_gather_single(gathered_G, tensor_B.contiguous(), group=self.process_group)
        return gathered_G

    def reduce_scatter_rows(self, tensor_G: Tensor) -> Tensor:
        """The sum over the ranks of this rank's equal part of dimension 0 (no gradient)."""
        if self.size == 1:
            return tensor_G
        tensor_B = tensor_G.new_empty((tensor_G.shape[0] // self.size, *tensor_G.shape[1:]))
        _reduce_scatter_single(tensor_B, tensor_G.contiguous(), group=self.process_group)
        return tensor_B

    def all_reduce_(self, tensor: Tensor, op: str = "sum") -> Tensor:
        """Reduce in place over the ranks (``sum``, ``max`` or ``mean``) and return the tensor."""
        if self.size > 1:
            # gloo has no mean
            operation = dist.ReduceOp.MAX if op == "max" else dist.ReduceOp.SUM
            dist.all_reduce(tensor, operation, group=self.process_group)
            if op == "mean":
                tensor.div_(self.size)
        return tensor

    def split(self, unit: str) -> "Grouping":
        """The ranks in units of all (``world``), of those of a ``node``, or of one (``rank``).

        All ranks call it for the first time together. UserError where ``node`` cannot be.
        """
        if unit == "rank":
            return Grouping(Group(), self)
        if unit == "world" or self.process_group is None:
            return Grouping(self, Group())
        return _by_node(self)


class Simulated(Group):
    """Rank 0 of ``ranks`` in a process that is alone, to measure one rank's share of a larger job.

    Nothing is sent: ``gathered(tensor_b)`` makes up what an all-gather of this rank's rows would give (G rows, this
    rank's first), a reduction leaves what this rank has, and a reduce-scatter takes this rank's part. The work is that
    of one rank, its results are not those of a job.
    """

    def __init__(self, ranks: int, gathered: Callable[[Tensor], Tensor]) -> None:
        super().__init__(0, ranks)
        object.__setattr__(self, "gathered", gathered)

    def all_gather_rows(self, tensor_B: Tensor) -> Tensor:
        return self.gathered(tensor_B)  # type: ignore[attr-defined]

    def reduce_scatter_rows(self, tensor_G: Tensor) -> Tensor:
        return tensor_G[: len(tensor_G) // self.size].clone()

    def all_reduce_(self, tensor: Tensor, op: str = "sum") -> Tensor:
        return tensor


@dataclass(frozen=True)
class Grouping:
    """A group's ranks as a table with a row for each unit: ``within`` is this rank's unit, and ``across`` its column,
    the ranks that have its place in the other units."""

    within: Group
    across: Group


def all_ranks() -> Group:
    return Group(rank(), world_size(), dist.group.WORLD) if dist.is_initialized() else Group()


_timeout: datetime.timedelta | None = None


@functools.lru_cache(maxsize=1)  # process groups are made once, and end with the group of all ranks
def _by_node(everyone: Group) -> Grouping:
    of_ranks = gather_objects([os.environ.get(name) for name in ("LOCAL_WORLD_SIZE", "LOCAL_RANK")])
    told = of_ranks[0][0]
    local = int(told) if told and told.isdigit() else 0
    expected = [[str(local), str(number % local)] for number in range(everyone.size)] if local else []
    if of_ranks != expected or everyone.size % local:
        raise UserError(
            "ranks grouped by node (head.shard_group): each node must have the same number of ranks, and torchrun's "
            "LOCAL_WORLD_SIZE and LOCAL_RANK say otherwise; start the same number on each, or group by world"
        )
    nodes = everyone.size // local
    if nodes == 1 or local == 1:
        return everyone.split("world" if nodes == 1 else "rank")
    table = [[*range(first, first + local)] for first in range(0, everyone.size, local)]
    within, _ = dist.new_subgroups_by_enumeration(table, timeout=_timeout)
    across, _ = dist.new_subgroups_by_enumeration([*map(list, zip(*table, strict=True))], timeout=_timeout)
    node, place = divmod(everyone.rank, local)
    return Grouping(Group(place, local, within), Group(node, nodes, across))


def new_side_group() -> dist.ProcessGroup | None:
    """For the collectives of a thread beside the main one, over CPU tensors; None where there is one rank. All ranks
    call it together."""
    if world_size() == 1:
        return None
    return cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=_timeout))


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


# -- start and stop -----------------------------------------------------------------------------------


def pick_device(name: str) -> torch.device:
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N``; under torchrun each local rank takes its own GPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = None
    with contextlib.suppress(RuntimeError):
        device = torch.device(name)
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"run.device: {name!r} is not supported; use auto, cpu, cuda or cuda:N")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(f"run.device: {name!r} asked for, but PyTorch sees no CUDA GPU; use cpu or auto")
        if device.index is not None and place().size > 1:
            raise UserError(f"run.device: {name!r} names one GPU for all processes; say cuda, and each takes its own")
        index = device.index if device.index is not None else number("LOCAL_RANK", 0)
        if index >= torch.cuda.device_count():
            raise UserError(
                f"run.device: GPU {index} asked for, but this machine shows {torch.cuda.device_count()}; "
                "start as many processes as there are GPUs"
            )
        device = torch.device("cuda", index)
    return device


# A rank that hears of another's end waits so long before it ends too, so that torchrun sees first, and reports, what
# the other one met, and does not end it while it writes that down.
_LET_THE_FIRST_SPEAK_S = 2.0


@contextlib.contextmanager
def started(
    device_name: str = "auto",
    timeout_s: float = 600.0,
    heartbeat_s: float = 0.0,
    facts: Mapping[str, str] | None = None,
) -> Iterator[World]:
    """Join the process group that torchrun describes in the environment, and leave it at the end.

    Outside torchrun no group is made and the world has one rank. gloo serves CPU tensors, nccl CUDA ones. A rank
    waits ``timeout_s`` for the others, at the start and in each collective; LostRankError where they are gone.
    heartbeat_s: see :mod:`megaclass.parallel.heartbeat`. facts: what all ranks must have alike, beside the program and
    the kind of device; UserError on all where it differs, or where one rank cannot start.
    """
    global _timeout
    here = place()
    if here.size == 1 or dist.is_initialized():
        device = _taken(device_name)
        yield World(rank(), world_size(), device)
        return
    _timeout = datetime.timedelta(seconds=timeout_s)
    try:
        device = _taken(device_name)
    except UserError as error:
        decline(error)
        raise
    meeting = join(here, device, _timeout, agreement.facts_of_program(device) | dict(facts or {}))
    try:
        with heartbeat(meeting, heartbeat_s):
            yield World(rank(), world_size(), device)
            dist.barrier()  # leave together: a rank that tears its connections down can take the others along
    except BaseException as error:
        _let_go(error)
        if not isinstance(error, RuntimeError) or not is_loss(error):
            raise
        time.sleep(_LET_THE_FIRST_SPEAK_S)
        raise LostRankError(f"rank {rank()} stops, since another rank has left or hangs") from error
    finally:
        _by_node.cache_clear()
        # DistributedDataParallel is a cycle, and would keep the group, whose threads must not outlive Python.
        gc.collect()
        dist.destroy_process_group()


def _let_go(error: BaseException | None) -> None:
    """Drop what the frames of an error hold, which would keep the group as well."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


def _taken(device_name: str) -> torch.device:
    device = pick_device(device_name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def shard_range(count: int, index: int, parts: int) -> tuple[int, int]:
    """The contiguous ``[start, stop)`` of ``range(count)`` that part ``index`` of ``parts`` owns.

    Sizes differ by at most one and the larger ones come first, as in arcface_torch.
    """
    if not 0 <= index < parts:
        raise ValueError(f"part {index} of {parts} does not exist")
    base, extra = divmod(count, parts)
    start = index * base + min(index, extra)
    return start, start + base + (index < extra)


# -- objects, over all ranks ----------------------------------------------------------------------------


def gather_objects(value: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    """Every rank's picklable value, in rank order, on every rank. group: of :func:`new_side_group`, or all ranks'."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value, group=group)
    return values


def barrier() -> None:
    if world_size() > 1:
        dist.barrier()


def together(work: Callable[[], T], group: dist.ProcessGroup | None = None) -> T:
    """``work()`` on every rank; an error of one rank is raised on all, so that none waits for one that has left.

    A rank's own error that is no UserError (a bug) is raised as it is; the others hear of it. group: as for
    :func:`gather_objects`.
    """
    result, error, told = None, None, None
    try:
        result = work()
    except Exception as caught:
        error = caught
        is_users = isinstance(error, UserError)
        told = str(error) if is_users else f"a rank failed with {type(error).__name__}: {error}"
    messages = [message for message in gather_objects(told, group) if message]
    if error is not None and not isinstance(error, UserError):
        raise error
    if messages:
        raise AgreedError(messages[0]) from error
    return cast(T, result)


def agree(facts: Callable[[], Mapping[str, Any]]) -> None:
    """Raise UserError on every rank where what ``facts()`` gives differs: what, with the values and their ranks.

    Names tell a user where to look, values are short as texts. A rank that is alone has nothing to look at.
    """
    if world_size() == 1:
        return
    told = together(lambda: {name: str(fact) for name, fact in facts().items()})
    if different := agreement.difference(gather_objects(told)):
        raise AgreedError(different)


def on_main_rank(work: Callable[[], T]) -> T:
    """``work()`` on rank 0 alone; all ranks get its (picklable) result or its UserError."""
    return cast(T, gather_objects(together(lambda: work() if rank() == 0 else None))[0])
