"""Inputs for the kernels, and the engines they are compared with, on any device.

Shapes: B = rows of the batch, C = rows of the table, N = rows that take part, D = embedding columns.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from megaclass.heads.kernels.engine import TritonEngine
from megaclass.heads.margins import Margin
from megaclass.heads.softmax import TorchEngine
from megaclass.heads.step import ActiveRows, MicroBatch, SGDStep
from megaclass.heads.storage import STORAGES, Rounding, Rows


@dataclass(frozen=True)
class Step:
    """A table and a batch. listed: half of the rows take part, or else all of them."""

    dim: int = 24
    batch: int = 5
    rows: int = 33
    storage: str = "fp32"
    listed: bool = True
    margin: Margin = Margin(scale=20.0)
    shift: float = 0.0
    precision: str = "fp32"
    seed: int = 0
    device: str = "cpu"

    def engines(self) -> tuple[TritonEngine, TorchEngine]:
        device = torch.device(self.device)
        plain = TorchEngine(self.precision, device)
        return TritonEngine(self.precision, device, 0.0, self.dim, STORAGES[self.storage]), plain

    def _random(self, *shape: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed + shape[0])
        return torch.randn(*shape, generator=generator).to(self.device)

    def active(self) -> ActiveRows:
        """Fresh tables, alike at each call."""
        storage, count = STORAGES[self.storage], 2 * self.rows + 3 if self.listed else self.rows
        tables = []
        for factor in (1.0, 0.1)[: 1 + storage.momentum]:
            table = Rows.zeros(count, self.dim, storage.dtype, torch.device(self.device))
            table.put(slice(None), self._random(count, self.dim) * factor)
            tables.append(table)
        rows_N = None
        if self.listed:
            generator = torch.Generator().manual_seed(self.seed)
            rows_N = torch.randperm(count, generator=generator)[: self.rows].sort().values.to(self.device)
        return ActiveRows(tables[0], tables[1] if storage.momentum else None, rows_N)

    def units(self) -> Tensor:
        return normalize(self._random(self.batch, self.dim))

    def targets(self, active: ActiveRows) -> Tensor:
        """Targets: most are active rows, every third is of another shard or was not sampled."""
        at_B = torch.arange(self.batch, device=self.device)
        if len(active) == 0:
            return at_B - self.batch
        rows_N = active.shard_rows(slice(0, len(active)))
        return torch.where(at_B % 3 == 2, -1 - at_B, rows_N[(at_B * 7) % len(active)])

    def rounding(self, table: str) -> Rounding:
        return Rounding(3, 4, table, 1000, self.dim, torch.device(self.device))

    def pass_one(self, engine: TorchEngine) -> tuple[Tensor, Tensor]:
        active = self.active()
        return engine.pass_one(self.units(), self.targets(active), active, self.margin, self.shift)[:2]

    def micro_batches(self, active: ActiveRows, count: int = 2) -> list[MicroBatch]:
        """Micro-batches of unequal weights, with shares as a pass 1 over this many rows would leave them."""
        batches = []
        for i in range(count):
            part = Step(self.dim, self.batch, seed=self.seed + i, device=self.device)
            log_share_B = part._random(self.batch) - 2 - torch.tensor(max(2, self.rows)).log()
            target_B = -torch.rand(self.batch, generator=torch.Generator().manual_seed(i)).to(self.device)
            weight = torch.tensor((0.5, -0.25)[i % 2] / self.batch, device=self.device)
            batches.append(
                MicroBatch(part.units(), self.targets(active), log_share_B, target_B, active, weight, self.shift)
            )
        return batches

    def pass_two(self, engine: TorchEngine, skipped: bool = False, sgd: SGDStep | None = None) -> ActiveRows:
        active = self.active()
        engine.pass_two(
            self.micro_batches(active),
            active,
            self.margin,
            sgd or SGDStep(lr=0.5, momentum=0.9, weight_decay=0.05),
            self.rounding,
            torch.tensor(skipped, device=self.device),
        )
        return active

    def catch_up(self, engine: TorchEngine, product_N4: Tensor) -> ActiveRows:
        active = self.active()
        engine.catch_up(replace(active, owed_N4=product_N4.to(self.device)), self.rounding)
        return active


def tensors(active: ActiveRows) -> list[Tensor]:
    """What the tables hold, bit for bit."""
    tables = [active.centres] if active.momentum is None else [active.centres, active.momentum]
    return [tensor for table in tables for tensor in table.tensors.values()]


def error(ours: Tensor, reference: Tensor) -> float:
    return float((ours.double() - reference).norm() / reference.double().norm().clamp(min=1e-30))


def most_error(ours: ActiveRows, reference: ActiveRows) -> float:
    """The larger relative error of the two tables."""
    pairs = [(ours.centres, reference.centres)]
    if ours.momentum is not None and reference.momentum is not None:
        pairs.append((ours.momentum, reference.momentum))
    return max(error(a.fp32(), b.fp32()) for a, b in pairs)


def steps_apart(ours: ActiveRows, reference: ActiveRows) -> tuple[float, float]:
    """Stored numbers in bf16 or 8 bits: the fraction that differs, and the largest difference in last places.

    A number that is left over when others cancel is no more exact in bf16 than its summands were in fp32: what
    differs by less than 1e-6 of the table's largest number is alike, however small its last place.
    """
    apart = []
    largest = max(float(t.abs().max()) for t in tensors(reference) if t.is_floating_point())
    for a, b in zip(tensors(ours), tensors(reference), strict=True):
        alike = torch.zeros_like(a, dtype=torch.bool)
        if a.dtype == torch.bfloat16:
            alike = (a.float() - b.float()).abs() < 1e-6 * largest
            a, b = a.view(torch.int16), b.view(torch.int16)
        if not a.is_floating_point():
            apart.append((a.int() - b.int()).abs().masked_fill(alike, 0).flatten())
    all_apart = torch.cat(apart)
    return float((all_apart > 0).float().mean()), float(all_apart.max())
