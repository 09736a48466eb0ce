"""What one rank sends: volume, messages and rounds of collectives, as rings carry them.

A ring of N ranks carries an all-gather or a reduce-scatter of S bytes in N - 1 rounds of S / N from each rank, and an
all-reduce as one after the other (Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms"). Counted alike
for ranks that exist and for simulated ones.
"""

import contextlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

_PASSES = {"all_gather": 1, "reduce_scatter": 1, "all_reduce": 2}


@dataclass
class Sent:
    """By one rank. calls: collectives. rounds: messages one after the other, each of which waits for a latency."""

    bytes: float = 0.0
    calls: int = 0
    rounds: int = 0

    def add(self, op: str, whole_bytes: float, ranks: int) -> None:
        """A collective ``op`` on a tensor of ``whole_bytes``: of an all-gather its result, of a reduce-scatter its
        input."""
        self.bytes += _PASSES[op] * (ranks - 1) / ranks * whole_bytes
        self.rounds += _PASSES[op] * (ranks - 1)
        self.calls += 1


Traffic = dict[str, Sent]

_counting: Traffic | None = None
_kind = ""


@contextlib.contextmanager
def counted() -> Iterator[Traffic]:
    """While it lasts, what this process sends is added up, by kind."""
    global _counting
    before, _counting = _counting, defaultdict(Sent)
    try:
        yield _counting
    finally:
        _counting = before


@contextlib.contextmanager
def named(kind: str) -> Iterator[None]:
    """While it lasts, collectives are counted as this kind, and not by their operation."""
    global _kind
    before, _kind = _kind, kind
    try:
        yield
    finally:
        _kind = before


def count(op: str, whole_bytes: float, ranks: int) -> None:
    """Tell of a collective; see :meth:`Sent.add`."""
    if _counting is not None and ranks > 1:
        _counting[_kind or op].add(op, whole_bytes, ranks)
