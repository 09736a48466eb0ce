"""The rows that take part in a step, tile by tile as fp32, in reused memory.

Shapes: C = rows of the shard, N = rows that take part, T = rows of a tile, B = rows of the batch,
D = embedding columns.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from megaclass.heads.storage import Rounding, Rows, round_to_bf16, round_to_int8


class Workspace:
    """Named buffers that live as long as the head: no allocation, and no page fault, per tile."""

    def __init__(self, device: torch.device, pinned: bool = False) -> None:
        self.device, self.pinned = device, pinned
        self._flat: dict[str, Tensor] = {}

    def get(self, name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """An uninitialised tensor; the same name gives the same memory."""
        size = 1
        for length in shape:
            size *= length
        flat = self._flat.get(name)
        if flat is None or flat.numel() < size or flat.dtype != dtype:
            flat = self._flat[name] = torch.empty(
                size, dtype=dtype, device=self.device, pin_memory=self.pinned
            )
        return flat[:size].view(shape)


@dataclass(frozen=True)
class ActiveRows:
    """The rows of a shard that take part in a step.

    centres, momentum: the tables that hold them (momentum None: none is kept).
    rows_N: which rows of the shard they are, int64, sorted; None: all of them.
    gathered: whether the tables hold just these rows, in this order, instead of the whole shard.
    owed_N4: what the rows owe for steps that left them out: each row's product of step matrices, fp32 (N, 4), see
        :mod:`megaclass.heads.skipped`. None: they are up to date.
    """

    centres: Rows
    momentum: Rows | None
    rows_N: Tensor | None
    gathered: bool = False
    owed_N4: Tensor | None = None
    version: int = 0  # of the shard when this was made: a later one's rows may owe something else

    def __len__(self) -> int:
        return len(self.centres) if self.rows_N is None else len(self.rows_N)

    def index(self, tile: slice) -> slice | Tensor:
        """Where the tables hold a tile."""
        return tile if self.rows_N is None or self.gathered else self.rows_N[tile]

    def shard_rows(self, tile: slice) -> Tensor:
        """A tile's rows of the shard, int64."""
        if self.rows_N is None:
            return torch.arange(tile.start, tile.stop, device=self.centres.data.device)
        return self.rows_N[tile]

    def positions(self, row_B: Tensor) -> Tensor:
        """Where each shard row sits among the rows that take part, (B,); -1 where it does not."""
        if self.rows_N is None:
            inside_B = (row_B >= 0) & (row_B < len(self))
            return torch.where(inside_B, row_B, -1)
        if len(self) == 0:
            return torch.full_like(row_B, -1)
        position_B = torch.searchsorted(self.rows_N, row_B).clamp(max=len(self) - 1)
        return torch.where(self.rows_N[position_B] == row_B, position_B, -1)

    def centres_at(self, position_N: Tensor) -> Tensor:
        """A copy of the centres at these positions among the active rows, up to date, (N, D) fp32."""
        rows_N = position_N if self.rows_N is None or self.gathered else self.rows_N[position_N]
        w_ND = self.centres.fp32(rows_N)
        if self.owed_N4 is not None:
            _, _, wv_N1, ww_N1 = columns(self.owed_N4[position_N])
            w_ND *= ww_N1
            if self.momentum is not None:
                w_ND.addcmul_(self.momentum.fp32(rows_N), wv_N1)
        return w_ND


def columns(product_N4: Tensor) -> tuple[Tensor, ...]:
    """The entries vv, vw, wv, ww of step matrices, each (N, 1): v <- vv v + vw w, w <- wv v + ww w."""
    return product_N4[:, :, None].unbind(1)


class Tiles:
    """Reads and writes active rows by tiles of ``tile_rows``."""

    def __init__(self, active: ActiveRows, tile_rows: int, workspace: Workspace) -> None:
        self.active = active
        self.tile_rows = tile_rows
        self.workspace = workspace

    def __iter__(self) -> Iterator[slice]:
        count = len(self.active)
        for start in range(0, count, self.tile_rows):
            yield slice(start, min(start + self.tile_rows, count))

    def read(self, table: Rows, tile: slice, name: str) -> Tensor:
        """The tile's rows of ``table`` as fp32 (T, D); store them with :meth:`write` after a change.

        fp32 tables that need no gathering are read as views, so that a change is stored already.
        """
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

    def centres(self, tile: slice) -> Tensor:
        """The tile's centres, up to date, fp32 (T, D)."""
        active = self.active
        w_TD = self.read(active.centres, tile, "centres")
        if active.owed_N4 is None:
            return w_TD
        v_TD = None if active.momentum is None else self.read(active.momentum, tile, "momentum")
        return self._caught_up(w_TD, v_TD, active.owed_N4[tile])

    def centres_and_momentum(self, tile: slice) -> tuple[Tensor, Tensor | None]:
        """Both as fp32 (T, D), up to date, to be changed and written; momentum None where none is kept."""
        active = self.active
        w_TD = self.read(active.centres, tile, "centres")
        v_TD = None if active.momentum is None else self.read(active.momentum, tile, "momentum")
        if active.owed_N4 is None:
            return w_TD, v_TD
        new_TD = self._caught_up(w_TD, v_TD, active.owed_N4[tile])
        if v_TD is not None:
            vv_T1, vw_T1, _, _ = columns(active.owed_N4[tile])
            v_TD.mul_(vv_T1).addcmul_(w_TD, vw_T1)
        return new_TD, v_TD

    def _caught_up(self, w_TD: Tensor, v_TD: Tensor | None, product_T4: Tensor) -> Tensor:
        _, _, wv_T1, ww_T1 = columns(product_T4)
        new_TD = self.workspace.get("caught up", *w_TD.shape)
        if v_TD is None:
            return torch.mul(w_TD, ww_T1, out=new_TD)
        return torch.mul(v_TD, wv_T1, out=new_TD).addcmul_(w_TD, ww_T1)

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
