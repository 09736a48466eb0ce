"""Whether the kernels compile, start and compute on a device: asked once, before a head relies on them.

Shapes: B = rows of the batch, C = rows of the table, N = rows that take part, D = embedding columns.
"""

from typing import Any

import torch
from torch import Tensor

from megaclass.heads.kernels.launch import Blocks
from megaclass.heads.margins import Margin
from megaclass.heads.softmax import TorchEngine
from megaclass.heads.step import ActiveRows, MicroBatch, SGDStep
from megaclass.heads.storage import Rounding, Rows, Storage
from megaclass.parallel.seeding import KeyedPermutation

_TOLERANCE = {"fp32": 1e-3, "tf32": 2e-2, "bf16": 1e-1}
_BATCH = 5


def choose_blocks(engine: Any, candidates: list[Blocks], storage: Storage, is_sampled: bool) -> Blocks:
    """The first blocks with which ``engine``, a TritonEngine, agrees with plain PyTorch.

    Raises:
        RuntimeError: none do; it names the last reason.
    """
    _check_walker(engine)
    reason: Exception | None = None
    for blocks in candidates:
        engine.blocks = blocks
        try:
            _check_passes(engine, storage, is_sampled)
        except Exception as error:  # out of shared memory, a compiler's failure, a wrong result, ...
            reason = error
            continue
        return blocks
    raise RuntimeError(f"no blocks work for {engine.dim} columns in {engine.precision}: {reason}")


def _check_walker(engine: TorchEngine) -> None:
    permutation = KeyedPermutation(101, 1)
    place_N = torch.arange(101, device=engine.device)
    if not torch.equal(engine.walker.inverse(permutation, permutation(place_N)), place_N):
        raise RuntimeError("the keyed permutation is wrong")


def _check_passes(engine: Any, storage: Storage, is_sampled: bool) -> None:
    """Each kernel once, on two tiles, against plain PyTorch: loosely, against a wrong result, not a rounded one."""
    generator = torch.Generator().manual_seed(0)
    device, dim, count = engine.device, engine.dim, engine.blocks.turn + engine.blocks.rows + 1
    values_CD = torch.randn(count + 2, dim, generator=generator).to(device)
    unit_BD = torch.nn.functional.normalize(torch.randn(_BATCH, dim, generator=generator)).to(device)
    row_B = torch.arange(_BATCH, device=device) * 3
    rows_N = torch.arange(1, count + 1, device=device)
    owed_N4 = torch.tensor([0.9, 0.01, -0.05, 0.99], device=device).repeat(count, 1) if is_sampled else None
    margin, sgd = Margin(scale=16.0), SGDStep(0.5, 0.9, 0.01)

    def rounding(table: str) -> Rounding:
        return Rounding(0, 0, table, 0, dim, device)

    def run(which: TorchEngine) -> list[Tensor]:
        tables = [Rows.zeros(count + 2, dim, storage.dtype, device) for _ in range(1 + storage.momentum)]
        for table in tables:
            table.put(slice(None), values_CD)
        active = ActiveRows(tables[0], tables[1] if storage.momentum else None, rows_N, owed_N4)
        sum_B, values_BD, kept = which.pass_one(unit_BD, row_B, active, margin, 0.0)
        batch = MicroBatch(
            unit_BD,
            row_B,
            -sum_B.log().float(),
            torch.full((_BATCH,), -0.5, device=device),
            active,
            torch.tensor(0.2, device=device),
            kept=kept,
        )
        skipped = torch.zeros((), dtype=torch.bool, device=device)
        which.pass_two([batch], active, margin, sgd, rounding, skipped)
        return [sum_B, values_BD, *(table.fp32() for table in tables)]

    engine.dry = True  # what a device cannot hold is refused before it starts
    try:
        run(engine)
    finally:
        engine.dry = False
    _compare(engine, run(engine), run(TorchEngine(engine.precision, device)), storage)


def _compare(engine: TorchEngine, ours: list[Tensor], reference: list[Tensor], storage: Storage) -> None:
    tolerance = max(_TOLERANCE[engine.precision], 1e-3 if storage.dtype == torch.float32 else 2e-2)
    names = ("sums", "values", "centres", "momentum")
    for name, our, plain in zip(names, ours, reference, strict=False):
        error = float((our - plain).norm() / plain.norm())
        if not error < tolerance:
            raise RuntimeError(f"{name} differ from plain PyTorch's by {error:.1e}")
