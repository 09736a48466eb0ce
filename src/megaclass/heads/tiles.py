"""The rows that take part in a step, tile by tile as fp32, in reused memory.

Shapes: T = rows of a tile, D = embedding columns.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from megaclass.heads.step import ActiveRows, columns
from megaclass.heads.storage import Rounding, Rows, round_to_bf16, round_to_int8


class Workspace:
    """Named buffers that live as long as the head: no allocation, and no page fault, per tile."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._flat: dict[str, Tensor] = {}

    def get(self, name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """An uninitialised tensor; the same name gives the same memory."""
        size = math.prod(shape)
        flat = self._flat.get(name)
        if flat is None or flat.numel() < size or flat.dtype != dtype:
            flat = self._flat[name] = torch.empty(size, dtype=dtype, device=self.device)
        return flat[:size].view(shape)


class Tiles:
    """Reads and writes active rows by tiles of ``tile_rows``."""

    def __init__(self, active: ActiveRows, tile_rows: int, workspace: Workspace) -> None:
        self.active, self.tile_rows, self.workspace = active, tile_rows, workspace

    def __iter__(self) -> Iterator[slice]:
        count = len(self.active)
        for start in range(0, count, self.tile_rows):
            yield slice(start, min(start + self.tile_rows, count))

    def read(self, tile: slice, momentum: bool = False) -> tuple[Tensor, Tensor | None]:
        """The tile's centres, and momentum if asked for and kept, up to date, fp32 (T, D).

        To be changed, and stored by :meth:`write`.
        """
        active = self.active
        w_TD, v_TD = self._as_stored(active.centres, tile, "centres"), None
        if active.momentum is not None and (momentum or active.owed_N4 is not None):
            v_TD = self._as_stored(active.momentum, tile, "momentum")
        if active.owed_N4 is None:
            return w_TD, v_TD
        vv_T1, vw_T1, wv_T1, ww_T1 = columns(active.owed_N4[tile])
        new_TD = self.workspace.get("caught up", *w_TD.shape)
        if v_TD is None:
            return torch.mul(w_TD, ww_T1, out=new_TD), None
        torch.mul(v_TD, wv_T1, out=new_TD).addcmul_(w_TD, ww_T1)
        return new_TD, v_TD.mul_(vv_T1).addcmul_(w_TD, vw_T1) if momentum else None

    def _as_stored(self, table: Rows, tile: slice, name: str) -> Tensor:
        """Rows of a table as fp32: a view of fp32 ones that need no gathering, so that a change is stored already."""
        index = self.active.index(tile)
        shape, space = (tile.stop - tile.start, table.data.shape[1]), self.workspace
        if isinstance(index, slice):
            raw_TD = table.data[index]
        else:
            raw_TD = space.get(f"{name} raw", *shape, dtype=table.data.dtype)
            torch.index_select(table.data, 0, index, out=raw_TD)
        if raw_TD.dtype == torch.float32:
            return raw_TD
        tile_TD = space.get(name, *shape).copy_(raw_TD)
        return tile_TD if table.scale is None else tile_TD.mul_(table.scale[index][:, None])

    def write(self, table: Rows, tile: slice, tile_TD: Tensor, rounding: Rounding) -> None:
        """Store a tile that was read from ``table``; its memory may be used as scratch."""
        index, dtype = self.active.index(tile), table.data.dtype
        if dtype == torch.float32:
            if not isinstance(index, slice):
                table.data.index_copy_(0, index, tile_TD)
            elif tile_TD.data_ptr() != table.data[index].data_ptr():
                table.data[index] = tile_TD
            return
        if isinstance(index, slice):
            raw_TD = table.data[index]
        else:
            raw_TD = self.workspace.get("written", *tile_TD.shape, dtype=dtype)
        row_T = rounding.of_rows(self.active.shard_rows(tile))
        if table.scale is None:
            scratch_TD = self.workspace.get("rounding", *tile_TD.shape, dtype=torch.int32)
            round_to_bf16(tile_TD, rounding.column_D, row_T, scratch_TD, raw_TD)
        else:
            scratch_TD = self.workspace.get("rounding", *tile_TD.shape)
            table.scale[index] = round_to_int8(
                tile_TD, rounding.column_D, row_T, scratch_TD, table.scale[index], raw_TD
            )
        if not isinstance(index, slice):
            table.data.index_copy_(0, index, raw_TD)
