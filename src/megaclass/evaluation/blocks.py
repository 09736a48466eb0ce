"""This rank's share of much work, block by block, and how far it is."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from megaclass.parallel.groups import rank, world_size

_BLOCK_SCORES = 1 << 22
_show: ContextVar[Callable[[int, int], None]] = ContextVar("show", default=lambda done, total: None)


@contextmanager
def showing(show: Callable[[int, int], None]) -> Iterator[None]:
    """Within, ``show`` is told how many of how many images or rows are done."""
    token = _show.set(show)
    yield
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
