"""How far a process grows that takes and frees blocks: glibc's malloc, which every tensor on a CPU comes from.

PyTorch asks for addresses that are multiples of 64, for which glibc (malloc.c, _int_memalign) needs a hole with 96
bytes more than an equal block leaves when it is freed. It comes where neighbours are freed too, but in the slivers
between blocks lie small objects: a tensor's own, and autograd's nodes, which live until the backward pass ends. So that
pass hardly uses the holes that activations leave: it is given a heap of its own.
"""

import bisect

_HEADER, _ALIGNMENT, _SPARE = 16, 64, 96
_OBJECT = 48  # bytes of a small object, with its header


class Heap:
    """Best fit, with free neighbours joined at once. ``most``: bytes from its begin to the end of its last block."""

    def __init__(self) -> None:
        self.most = self._top = 0
        self._holes: list[tuple[int, int]] = []  # size, begin; sorted
        self._begins: dict[int, int] = {}  # of a hole -> its size
        self._ends: dict[int, int] = {}  # of a hole -> its begin
        self._used: dict[int, int] = {}

    def take(self, count: int) -> int:
        """A block as a tensor has it; by what is returned it is freed."""
        size = -(-(count + 8) // 16) * 16
        begin = self._take(size + _SPARE)
        whole = self._used.pop(begin)
        lead = -(begin + _HEADER) % _ALIGNMENT
        lead += _ALIGNMENT * (0 < lead < 32)
        for start, length in ((begin, lead), (begin + lead + size, whole - lead - size)):
            if length:
                self._used[start] = length
                self.free(start)
        self._used[begin + lead] = size
        return begin + lead

    def take_object(self) -> int:
        return self._take(_OBJECT)

    def _take(self, size: int) -> int:
        place = bisect.bisect_left(self._holes, (size, -1))
        if place == len(self._holes):
            begin = self._top
            self._top += size
            self.most = max(self.most, self._top)
        else:
            length, begin = self._holes[place]
            self._remove(length, begin)
            if length > size:
                self._add(length - size, begin + size)
        self._used[begin] = size
        return begin

    def free(self, begin: int) -> None:
        size = self._used.pop(begin)
        if (before := self._ends.get(begin)) is not None:
            size += begin - before
            self._remove(begin - before, before)
            begin = before
        if after := self._begins.get(begin + size):
            self._remove(after, begin + size)
            size += after
        if begin + size == self._top:
            self._top = begin
        else:
            self._add(size, begin)

    def _add(self, size: int, begin: int) -> None:
        bisect.insort(self._holes, (size, begin))
        self._begins[begin], self._ends[begin + size] = size, begin

    def _remove(self, size: int, begin: int) -> None:
        del self._holes[bisect.bisect_left(self._holes, (size, begin))]
        del self._begins[begin], self._ends[begin + size]
