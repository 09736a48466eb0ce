"""A ranks' share of much work, block by block, and how far it is."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from megaclass.parallel.groups import all_ranks, rank, shard_range, world_size

_BLOCK_SCORES = 1 << 22
_show: ContextVar[Callable[[int, int], None]] = ContextVar("show", default=lambda done, total: None)


@contextmanager
def showing(show: Callable[[int, int], None]) -> Iterator[None]:
    """Within, ``show`` is told how many of how many images or rows are done."""
    token = _show.set(show)
    try:
        yield
    finally:
        _show.reset(token)


def shown(done: int, total: int) -> None:
    """This rank has done so many; the others about as many."""
    _show.get()(min(done * world_size(), total), total)


def my_blocks(rows: int, columns: int) -> Iterator[slice]:
    """This rank's share of the blocks of rows in which a matrix of scores is made, 4 M scores a block."""
    size = max(1, _BLOCK_SCORES // max(1, columns))
    for start in range(rank() * size, rows, world_size() * size):
        yield slice(start, min(start + size, rows))
        shown(start // world_size() + size, rows)


def gathered(rows_L: Tensor, count: int) -> Tensor:
    """The rows of all ranks, (count, ..), of which each gives its :func:`shard_range`."""
    ranges = [shard_range(count, part, world_size()) for part in range(world_size())]
    longest = ranges[0][1]  # the collective wants equal shapes, and rank 0 holds the longest range
    padded = torch.cat([rows_L, rows_L.new_zeros((longest - len(rows_L), *rows_L.shape[1:]))])
    rows = all_ranks().all_gather_rows(padded)
    if len(rows) == count:
        return rows
    return torch.cat([rows[part * longest :][: stop - start] for part, (start, stop) in enumerate(ranges)])
