"""The rows that a rank owns: centres, momentum, and when each row was last touched.

A sampled step touches few rows. Those it leaves out owe it their momentum and weight decay, and pay when they
are next touched (:mod:`megaclass.heads.skipped`): ``activate`` says what the rows of a step owe, or has it paid, and
``settle`` notes that they took part.

Shapes: C = rows of the shard, N = rows that take part, D = embedding columns.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from megaclass.heads.engine import Engine
from megaclass.heads.skipped import StepProducts
from megaclass.heads.softmax import SGDStep
from megaclass.heads.storage import Rounding, Rows
from megaclass.heads.tiles import ActiveRows
from megaclass.parallel import groups

_CHUNK = 1 << 18  # rows caught up at a time: what they owe takes some 60 bytes each meanwhile

# Rows skipped for longer than this are brought up to date in passing, 1 / LIMIT of the shard a step.
AGE_LIMIT = 1024


class Shard:
    """Rows in the memory of the device that computes.

    Args:
        first_class: the class of row 0.
        tracks_age: whether steps leave rows out.

    Attributes:
        steps: optimizer steps taken, skipped ones too.
    """

    def __init__(self, centres: Rows, engine: Engine, first_class: int, seed: int, tracks_age: bool) -> None:
        self.centres = centres
        self.momentum: Rows | None = None
        self.engine = self._table_engine = engine
        self.first_class, self.seed = first_class, seed
        self.steps = 0
        self.version = 0  # rises with every change of the tables, so that no debt is paid twice
        self.device = centres.data.device
        self._touched_C = self._products = None
        if tracks_age:
            self._touched_C = torch.zeros(len(centres), dtype=torch.int32, device=self.device)
            self._products = StepProducts(AGE_LIMIT, self.device)

    # -- a step ---------------------------------------------------------------------------------------

    def activate(self, rows_N: Tensor | None) -> ActiveRows:
        """The rows of a step (int64, sorted; None: all), to be used through :meth:`ready`."""
        active = ActiveRows(self.centres, self.momentum, rows_N, version=self.version)
        if rows_N is None or self._touched_C is None or self._products is None:
            return active
        if self.engine.reads_owed:
            return replace(active, owed_N4=self._products.of_ages(self.steps - self._touched_C[rows_N]))
        self._catch_up(rows_N, self.steps, "catch up")
        return replace(active, version=self.version)

    def ready(self, active: ActiveRows) -> ActiveRows:
        """The same rows, there and fit for use; called before each use.

        Whoever saves, copies or steps between the draw and the use changes what rows owe: they are activated anew.
        """
        return active if active.version == self.version else self.ready(self.activate(active.rows_N))

    def settle(self, active: ActiveRows, sgd: SGDStep, skipped: Tensor) -> None:
        """The active rows took part in a step, which ``skipped`` (a bool scalar) made one of no effect."""
        self.steps += 1
        self.version += 1
        if self._touched_C is None or self._products is None:
            return
        self._products.append(sgd, skipped)
        self._touch(active.shard_rows(slice(0, len(active))), self.steps, skipped)
        self._sweep(self.steps)

    def _touch(self, rows_N: Tensor, steps: int, skipped: Tensor) -> None:
        """The rows are up to date, unless the step was skipped: then they still owe what they owed."""
        assert self._touched_C is not None
        self._touched_C[rows_N] = torch.where(skipped, self._touched_C[rows_N], steps)

    def forget(self) -> None:
        """Active rows that were not settled are not needed any more."""

    def rounding(
        self, purpose: str, steps: int | None = None, device: torch.device | None = None
    ) -> Callable[[str], Rounding]:
        """The random numbers of a write in this step, by the table that is written."""
        steps, dim = self.steps if steps is None else steps, self.centres.data.shape[1]

        def of_table(table: str) -> Rounding:
            words = f"{purpose} {table}"
            return Rounding(self.seed, steps, words, self.first_class, dim, device or self.device)

        return of_table

    # -- rows that steps left out ---------------------------------------------------------------------

    def catch_up(self) -> None:
        """Bring all rows to what dense SGD would have made of them by now."""
        if self._touched_C is not None and self.steps > 0:
            for start in range(0, len(self.centres), _CHUNK):
                stop = min(start + _CHUNK, len(self.centres))
                self._catch_up(
                    torch.arange(start, stop, device=self._touched_C.device), self.steps, "catch up"
                )

    def _sweep(self, steps: int) -> None:
        """Bound the ages: bring the next 1 / AGE_LIMIT of the shard up to date."""
        assert self._touched_C is not None
        start, stop = groups.shard_range(len(self.centres), steps % AGE_LIMIT, AGE_LIMIT)
        self._catch_up(torch.arange(start, stop, device=self._touched_C.device), steps, "sweep")

    def _catch_up(self, rows_N: Tensor, steps: int, purpose: str) -> None:
        if self._touched_C is None or self._products is None:
            return
        self.version += 1
        rounding = self.rounding(purpose, steps, self.centres.data.device)
        for chunk_N in rows_N.split(_CHUNK):
            product_N4 = self._products.of_ages(steps - self._touched_C[chunk_N])
            self._table_engine.catch_up(
                ActiveRows(self.centres, self.momentum, chunk_N), product_N4, rounding
            )
            self._touched_C[chunk_N] = steps

    def read(self, rows: slice | Tensor) -> Tensor:
        """A copy of rows of the centres as they stand in the table, (N, D) fp32."""
        return self.centres.fp32(rows)

    # -- state ----------------------------------------------------------------------------------------

    def restored(self, steps: int) -> None:
        """The tables now hold the state after this many steps, with every row up to date."""
        self.steps = steps
        self.version += 1
        if self._touched_C is not None and self._products is not None:
            self._touched_C.fill_(steps)
            self._products.clear()
