"""The rows of a shard that take part in a step, tile by tile, in reused memory.

Shapes: C = rows of the shard, N = rows that take part, T = rows of a tile, B = rows of the batch,
D = embedding columns.
"""

from collections.abc import Iterator

import torch
from torch import Tensor


class Workspace:
    """Named buffers that live as long as the head: no allocation, and no page fault, per tile."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._flat: dict[str, Tensor] = {}

    def get(self, name: str, *shape: int) -> Tensor:
        """An uninitialised fp32 tensor; the same name gives the same memory."""
        size = 1
        for length in shape:
            size *= length
        flat = self._flat.get(name)
        if flat is None or flat.numel() < size:
            flat = self._flat[name] = torch.empty(size, device=self.device)
        return flat[:size].view(shape)


class Tiles:
    """Tiles over all rows of the shard (``rows_N`` None: views, no copy) or over sampled ones (copies)."""

    def __init__(self, num_rows: int, rows_N: Tensor | None, tile_rows: int, workspace: Workspace) -> None:
        self.rows_N = rows_N
        self.count = num_rows if rows_N is None else len(rows_N)
        self.tile_rows = tile_rows
        self.workspace = workspace

    def __iter__(self) -> Iterator[slice]:
        for start in range(0, self.count, self.tile_rows):
            yield slice(start, min(start + self.tile_rows, self.count))

    def read(self, source_CD: Tensor, tile: slice, name: str) -> Tensor:
        """The tile's rows of ``source_CD``; write them back with :meth:`write` after a change."""
        if self.rows_N is None:
            return source_CD[tile]
        out_TD = self.workspace.get(name, tile.stop - tile.start, source_CD.shape[1])
        return torch.index_select(source_CD, 0, self.rows_N[tile], out=out_TD)

    def write(self, target_CD: Tensor, tile: slice, tile_TD: Tensor) -> None:
        if self.rows_N is not None:  # without a sample the tile is a view: already written
            target_CD.index_copy_(0, self.rows_N[tile], tile_TD)

    def positions(self, row_B: Tensor) -> Tensor:
        """Where each shard row sits among the rows that take part, (B,); -1 for rows outside the shard."""
        if self.rows_N is None:
            inside_B = (row_B >= 0) & (row_B < self.count)
            return torch.where(inside_B, row_B, -1)
        if self.count == 0:
            return torch.full_like(row_B, -1)
        position_B = torch.searchsorted(self.rows_N, row_B).clamp(max=self.count - 1)
        return torch.where(self.rows_N[position_B] == row_B, position_B, -1)
