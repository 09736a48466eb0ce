"""The engine whose passes are Triton kernels.

Shapes: B = rows of the batch, N = rows that take part, D = embedding columns.
"""

from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor

from megaclass.heads.kernels.launch import (
    MAX_DIM,
    Blocks,
    block_dim,
    candidates,
    check_spills,
    on_device,
    signed,
)
from megaclass.heads.kernels.passes import pass_one_kernel, pass_two_kernel
from megaclass.heads.kernels.rows import unit_kernel
from megaclass.heads.kernels.sample import TritonWalker
from megaclass.heads.kernels.self_check import choose_blocks
from megaclass.heads.margins import BaseMargin
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

    Plain PyTorch computes what the kernels do not, sums over ranks within a pass, micro-batches that scored
    different samples and margins that reweigh negatives, and judges the kernels before they are used.

    Raises:
        RuntimeError: there is no GPU, or no blocks work on it.
    """

    name = "triton"
    device_types = ("cuda", "cpu") if INTERPRETED else ("cuda",)
    dry = False  # kernels are compiled and loaded, and not started

    def __init__(
        self,
        precision: str,
        device: torch.device,
        tile_mb: float,
        dim: int,
        storage: Storage,
        is_sampled: bool = False,
    ) -> None:
        if device.type not in self.device_types:
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
        if not INTERPRETED:
            limits = self.limits()
            if limits.major < 8:
                raise RuntimeError(
                    f"the Triton kernels need compute capability 8.0, this GPU has {limits.major}.{limits.minor}"
                )
            self.multiprocessors = limits.multi_processor_count
        self.blocks = candidates(dim, precision)[0]
        self.blocks = choose_blocks(self, candidates(dim, precision), storage, is_sampled)

    def limits(self) -> Any:
        """The properties of the device."""
        return torch.cuda.get_device_properties(self.device)

    # -- pass 1 ---------------------------------------------------------------------------------------

    def pass_one(
        self, unit_BD: Tensor, row_B: Tensor, active: ActiveRows, margin: BaseMargin, shift: float
    ) -> tuple[Tensor, Tensor, Any]:
        if margin.reweighs:
            return super().pass_one(unit_BD, row_B, active, margin, shift)
        blocks, space = self.blocks, self.workspace
        batch = triton.cdiv(len(unit_BD), blocks.rows) * blocks.rows
        scaled_BD = self._scaled([unit_BD], margin, batch)
        position_B = _filled(batch, -1, [active.positions(row_B)], torch.int32)
        chunk_rows = max(blocks.turn, self.chunk_rows // blocks.turn * blocks.turn)
        batch_blocks = batch // blocks.rows
        tiles = triton.cdiv(min(len(active), chunk_rows), blocks.turn)
        splits = max(1, min(tiles, self.multiprocessors // max(1, batch_blocks)))
        sums = space.get("partial sums", splits, batch, dtype=torch.float64).zero_()
        values = space.get("partial values", splits, batch, self.block_dim).zero_()
        unit_ND = space.get("unit rows", chunk_rows, self.block_dim, dtype=self.operand)
        for start in range(0, len(active), chunk_rows):
            count = min(chunk_rows, len(active) - start)
            self._unit_rows(active, start, count, unit_ND, blocks.turn)
            self._start(
                pass_one_kernel, (batch_blocks, splits),
                scaled_BD, unit_ND, position_B, sums, values,
                batch, start, count, float(shift), float(margin.threshold), 1,
                BLOCK_B=blocks.rows, BLOCK_T=blocks.turn, **self._products(blocks, margin),
            )  # fmt: skip
        rows = len(unit_BD)
        return sums.sum(0)[:rows], values.sum(0)[:rows, : self.dim], None

    def _unit_rows(self, active: ActiveRows, start: int, count: int, unit_ND: Tensor, turn: int) -> None:
        block = self._moved_rows(turn)
        self._start(
            unit_kernel, (triton.cdiv(count, turn) * turn // block,),
            *_pointers(active.centres), *_pointers(active.momentum or active.centres), *_listed(active),
            unit_ND, start, count, NORM_FLOOR,
            BLOCK_T=block, **_table_options(active), **self._rounded(),
        )  # fmt: skip

    # -- pass 2 ---------------------------------------------------------------------------------------

    def pass_two(
        self,
        micro_batches: list[MicroBatch],
        active: ActiveRows,
        margin: BaseMargin,
        sgd: SGDStep,
        rounding: Roundings,
        skipped: Tensor,
        reduce_: Callable[[Tensor], object] | None = None,
    ) -> None:
        own = any(m.active.rows_N is not active.rows_N for m in micro_batches)
        if own or margin.reweighs or reduce_ is not None:
            super().pass_two(micro_batches, active, margin, sgd, rounding, skipped, reduce_)
            return
        if len(active) == 0:
            return
        blocks, space = self.blocks, self.workspace
        batch = triton.cdiv(sum(len(m.unit_BD) for m in micro_batches), blocks.turn) * blocks.turn
        weights = [m.weight.expand(len(m.unit_BD)) for m in micro_batches]
        programs = min(triton.cdiv(len(active), blocks.rows), self.multiprocessors)
        scratch_rows = programs * blocks.rows
        self._start(
            pass_two_kernel, (programs,),
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
            # A whole number would be another type, and compile another kernel.
            float(sgd.lr), float(sgd.momentum), float(sgd.weight_decay), MOST_TURN,
            float(margin.threshold), NORM_FLOOR, 1,
            BLOCK_B=blocks.turn, BLOCK_T=blocks.rows, BLOCK_R=self._moved_rows(blocks.rows, blocks.warps),
            **_table_options(active), **self._products(blocks, margin),
        )  # fmt: skip

    def catch_up(self, active: ActiveRows, rounding: Roundings) -> None:
        """A step over no rows of a batch, which moves nothing but what is owed."""
        nothing = torch.empty(0, self.dim, device=self.device)
        none_B = nothing[:, 0]
        batch = MicroBatch(nothing, none_B.long(), none_B, none_B, active, torch.ones((), device=self.device))
        self.pass_two([batch], active, BaseMargin(), SGDStep(0.0, 1.0, 0.0), rounding, torch.zeros_like(batch.weight))

    # -- launches -------------------------------------------------------------------------------------

    def _start(self, kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
        with on_device(self.device):
            if not self.dry:
                kernel[grid](*arguments, **options)
            elif not INTERPRETED:
                check_spills(kernel.warmup(*arguments, grid=grid, **options))

    def _products(self, blocks: Blocks, margin: BaseMargin) -> dict[str, Any]:
        return {
            "FILTER": bool(margin.filter_threshold),
            **self._rounded(),
            "num_warps": blocks.warps,
            "num_stages": blocks.stages,
        }

    def _rounded(self) -> dict[str, Any]:
        return {"BLOCK_D": self.block_dim, "PRECISION": self.precision, "EMULATE": INTERPRETED}

    def _moved_rows(self, most: int, warps: int = 4) -> int:
        """How many whole rows a program moves at a time: 32 elements a thread."""
        return min(most, max(1, warps * 1024 // self.block_dim))

    def _scaled(self, units: list[Tensor], margin: BaseMargin, batch: int) -> Tensor:
        """``s * e`` of all rows as operands, (batch, block_dim), 0 in the padding."""
        scaled_BD = torch.zeros(batch, self.block_dim, device=self.device)
        torch.mul(torch.cat(units), margin.scale, out=scaled_BD[: sum(map(len, units)), : self.dim])
        return scaled_BD.to(OPERANDS[self.precision]).to(self.operand)


def _pointers(table: Rows) -> tuple[Tensor, Tensor]:
    """The table and its scales, as the kernels take them; without scales any pointer serves."""
    data = table.data.view(torch.int16) if table.data.dtype == torch.bfloat16 else table.data
    return data, data if table.scale is None else table.scale


def _tables(active: ActiveRows, rounding: Roundings) -> list[Any]:
    """Pointers and rounding of centres and momentum, as the kernels take them; without momentum any table serves."""
    arguments: list[Any] = []
    for name, table in (("centres", active.centres), ("momentum", active.momentum or active.centres)):
        random = rounding(name)
        arguments += [*_pointers(table), random.column_D, signed(random.key)]
    return arguments


def _table_options(active: ActiveRows) -> dict[str, Any]:
    """What kernels that read the tables are compiled for, the same in every step of a head."""
    data, momentum = active.centres.data, active.momentum
    strides = {data.stride(), data.stride() if momentum is None else momentum.data.stride()}
    assert strides == {(data.stride(0), 1)}, "centres and momentum are laid out alike, each row in one piece"
    return {
        "D": data.shape[1],
        "STRIDE": data.stride(0),
        "FORMAT": FORMATS[data.dtype],
        "HAS_MOMENTUM": momentum is not None,
        "OWED": active.owed_N4 is not None,
    }


def _listed(active: ActiveRows) -> tuple[Tensor, int, Tensor]:
    """``rows_ptr`` and ``listed`` of ``rows_at``, and ``owed_ptr``; any pointer serves for what there is not."""
    rows_N, owed_N4 = active.rows_N, active.owed_N4
    if rows_N is None:
        rows_N = torch.empty(1, dtype=torch.int64, device=active.centres.data.device)
    listed = 0 if active.rows_N is None else len(active)
    return rows_N, listed, active.centres.data if owed_N4 is None else owed_N4.contiguous()


def _filled(size: int, value: float, parts: list[Tensor], dtype: torch.dtype = torch.float32) -> Tensor:
    """The parts one after the other, and ``value`` up to ``size``."""
    rest = torch.full((size - sum(map(len, parts)),), value, dtype=dtype, device=parts[0].device)
    return torch.cat([*(part.to(dtype) for part in parts), rest])
