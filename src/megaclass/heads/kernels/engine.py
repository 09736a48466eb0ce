"""The engine whose passes are Triton kernels.

Shapes: B = rows of the batch, N = rows that take part, D = embedding columns.
"""

from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor

from megaclass.heads.kernels.launch import MAX_DIM, Blocks, block_dim, candidates, on_device, signed
from megaclass.heads.kernels.passes import pass_one_kernel, pass_two_kernel
from megaclass.heads.kernels.rows import catch_up_kernel, unit_kernel
from megaclass.heads.kernels.sample import TritonWalker
from megaclass.heads.kernels.self_check import choose_blocks
from megaclass.heads.margins import Margin
from megaclass.heads.softmax import TorchEngine
from megaclass.heads.step import MOST_TURN, NORM_FLOOR, ActiveRows, MicroBatch, Roundings, SGDStep
from megaclass.heads.storage import Rows, Storage

# TRITON_INTERPRET=1 was set when Triton was imported: the kernels run on a CPU, for tests.
INTERPRETED = not isinstance(unit_kernel, triton.runtime.JITFunction)

FORMATS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.int8: "int8"}
OPERANDS = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}

_CHUNK_BYTES = 32 << 20  # of unit rows: they stay in the L2 cache of an H100 (50 MB)


class TritonEngine(TorchEngine):
    """The passes as kernels, for tables on ``device`` with ``dim`` columns.

    Plain PyTorch computes what the kernels do not, sums over ranks within a pass and micro-batches that scored
    different samples, and judges the kernels before they are used.

    Raises:
        RuntimeError: there is no GPU, or no blocks work on it.
    """

    name = "triton"
    reads_owed = False  # a kernel of its own pays, in one pass

    def __init__(
        self, precision: str, device: torch.device, tile_mb: float, dim: int, storage: Storage
    ) -> None:
        if device.type != "cuda" and not INTERPRETED:
            raise RuntimeError(
                f"Triton kernels need a CUDA device, not {device}; to test them on a CPU set TRITON_INTERPRET=1"
            )
        if dim > MAX_DIM:
            raise RuntimeError(f"the Triton kernels hold at most {MAX_DIM} columns, not {dim}")
        super().__init__(precision, device, tile_mb)
        self.walker, self.dim, self.block_dim = TritonWalker(), dim, block_dim(dim)
        self.operand = torch.float32 if INTERPRETED else OPERANDS[precision]
        self.chunk_rows = _CHUNK_BYTES // (self.block_dim * self.operand.itemsize)
        self.multiprocessors = 2
        if device.type == "cuda":
            self.multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
        self.blocks = candidates(dim, precision)[0]
        self.blocks = choose_blocks(self, candidates(dim, precision), storage)

    # -- pass 1 ---------------------------------------------------------------------------------------

    def pass_one(
        self, unit_BD: Tensor, row_B: Tensor, active: ActiveRows, margin: Margin, shift: float
    ) -> tuple[Tensor, Tensor, Any]:
        blocks, space = self.blocks, self.workspace
        batch = triton.cdiv(len(unit_BD), blocks.rows) * blocks.rows
        scaled_BD = self._scaled([unit_BD], margin, batch)
        position_B = _filled(batch, -1, [active.positions(row_B)], torch.int32)
        chunk_rows = max(blocks.turn, self.chunk_rows // blocks.turn * blocks.turn)
        batch_blocks = batch // blocks.rows
        tiles = triton.cdiv(min(len(active), chunk_rows), blocks.turn)
        splits = max(1, min(tiles, self.multiprocessors * blocks.resident // max(1, batch_blocks)))
        sums = space.get("partial sums", splits, batch, dtype=torch.float64).zero_()
        values = space.get("partial values", splits, batch, self.block_dim).zero_()
        unit_ND = space.get("unit rows", chunk_rows, self.block_dim, dtype=self.operand)
        with on_device(self.device):
            for start in range(0, len(active), chunk_rows):
                count = min(chunk_rows, len(active) - start)
                self._unit_rows(active, start, count, unit_ND, blocks.turn)
                pass_one_kernel[(batch_blocks, splits)](
                    scaled_BD, unit_ND, position_B, sums, values,
                    batch, start, count, shift, margin.threshold, 1,
                    BLOCK_D=self.block_dim, BLOCK_B=blocks.rows, BLOCK_T=blocks.turn, **self._products(blocks),
                )  # fmt: skip
        rows = len(unit_BD)
        return sums.sum(0)[:rows], values.sum(0)[:rows, : self.dim], None

    def _unit_rows(self, active: ActiveRows, start: int, count: int, unit_ND: Tensor, turn: int) -> None:
        block = self._moved_rows(turn)
        unit_kernel[(triton.cdiv(count, turn) * turn // block,)](
            *_pointers(active.centres), *_listed(active), unit_ND, start, count, NORM_FLOOR,
            D=self.dim, BLOCK_D=self.block_dim, BLOCK_T=block,
            FORMAT=FORMATS[active.centres.data.dtype], **self._rounded(),
        )  # fmt: skip

    # -- pass 2 ---------------------------------------------------------------------------------------

    def pass_two(
        self,
        micro_batches: list[MicroBatch],
        active: ActiveRows,
        margin: Margin,
        sgd: SGDStep,
        rounding: Roundings,
        skipped: Tensor,
        reduce_: Callable[[Tensor], object] | None = None,
    ) -> None:
        if reduce_ is not None or any(m.active.rows_N is not active.rows_N for m in micro_batches):
            super().pass_two(micro_batches, active, margin, sgd, rounding, skipped, reduce_)
            return
        if len(active) == 0:
            return
        blocks, space = self.blocks, self.workspace
        batch = triton.cdiv(sum(len(m.unit_BD) for m in micro_batches), blocks.turn) * blocks.turn
        weights = [m.weight.expand(len(m.unit_BD)) for m in micro_batches]
        programs = min(triton.cdiv(len(active), blocks.rows), self.multiprocessors * blocks.resident)
        scratch_rows = programs * blocks.rows
        with on_device(self.device):
            pass_two_kernel[(programs,)](
                *_tables(active, rounding),
                *_listed(active),
                self._scaled([m.unit_BD for m in micro_batches], margin, batch),
                _filled(batch, -1, [active.positions(m.row_B) for m in micro_batches], torch.int32),
                _filled(batch, -torch.inf, [m.log_share_B for m in micro_batches]),
                _filled(batch, 0.0, [m.target_B for m in micro_batches]),
                _filled(batch, 0.0, weights),
                skipped.to(torch.int32),
                space.get("unit rows", scratch_rows, self.block_dim, dtype=self.operand),
                space.get("gradients", scratch_rows, self.block_dim),
                space.get("inverse norms", scratch_rows),
                space.get("radial", scratch_rows),
                len(active), batch, rounding("centres").first_class,
                sgd.lr, sgd.momentum, sgd.weight_decay, MOST_TURN, margin.threshold, NORM_FLOOR, 1,
                D=self.dim, BLOCK_D=self.block_dim, BLOCK_B=blocks.turn, BLOCK_T=blocks.rows,
                BLOCK_R=self._moved_rows(blocks.rows, blocks.warps),
                FORMAT=FORMATS[active.centres.data.dtype], HAS_MOMENTUM=active.momentum is not None,
                **self._products(blocks),
            )  # fmt: skip

    # -- rows that steps left out ---------------------------------------------------------------------

    def catch_up(self, active: ActiveRows, product_N4: Tensor, rounding: Roundings) -> None:
        if len(active) == 0:
            return
        block = self._moved_rows(self.blocks.turn)
        with on_device(self.device):
            catch_up_kernel[(triton.cdiv(len(active), block),)](
                *_tables(active, rounding), *_listed(active), product_N4,
                len(active), rounding("centres").first_class,
                D=self.dim, BLOCK_D=self.block_dim, BLOCK_T=block,
                FORMAT=FORMATS[active.centres.data.dtype], HAS_MOMENTUM=active.momentum is not None,
            )  # fmt: skip

    # -- arguments ------------------------------------------------------------------------------------

    def _products(self, blocks: Blocks) -> dict[str, Any]:
        return {
            # A warp group computes 64 rows: with fewer than two such for eight warps, warps divide the columns too.
            "SPLIT_COLUMNS": blocks.rows < 16 * blocks.warps,
            **self._rounded(),
            "num_warps": blocks.warps,
            "num_stages": blocks.stages,
        }

    def _rounded(self) -> dict[str, Any]:
        return {"PRECISION": self.precision, "EMULATE": INTERPRETED}

    def _moved_rows(self, most: int, warps: int = 4) -> int:
        """How many whole rows a program moves at a time: 32 elements a thread."""
        return min(most, max(1, warps * 1024 // self.block_dim))

    def _scaled(self, units: list[Tensor], margin: Margin, batch: int) -> Tensor:
        """``s * e`` of all rows as operands, (batch, block_dim), 0 in the padding."""
        scaled_BD = torch.zeros(batch, self.block_dim, device=self.device)
        torch.mul(torch.cat(units), margin.scale, out=scaled_BD[: sum(map(len, units)), : self.dim])
        return scaled_BD.to(OPERANDS[self.precision]).to(self.operand)


def _pointers(table: Rows) -> tuple[Tensor, Tensor]:
    """The table and its scales, as the kernels take them; without scales any pointer serves."""
    data = table.data.view(torch.int16) if table.data.dtype == torch.bfloat16 else table.data
    assert data.is_contiguous()
    return data, data if table.scale is None else table.scale


def _tables(active: ActiveRows, rounding: Roundings) -> list[Any]:
    """Pointers and rounding of centres and momentum, as the kernels take them; without momentum any table serves."""
    arguments: list[Any] = []
    for name, table in (("centres", active.centres), ("momentum", active.momentum or active.centres)):
        random = rounding(name)
        arguments += [*_pointers(table), random.column_D, signed(random.key)]
    return arguments


def _listed(active: ActiveRows) -> tuple[Tensor, int]:
    """``rows_ptr`` (any pointer where all rows take part) and ``listed`` of ``rows_at``."""
    if active.rows_N is None:
        return torch.empty(1, dtype=torch.int64, device=active.centres.data.device), 0
    return active.rows_N, len(active)


def _filled(size: int, value: float, parts: list[Tensor], dtype: torch.dtype = torch.float32) -> Tensor:
    """The parts one after the other, and ``value`` up to ``size``."""
    rest = torch.full((size - sum(map(len, parts)),), value, dtype=dtype, device=parts[0].device)
    return torch.cat([*(part.to(dtype) for part in parts), rest])
