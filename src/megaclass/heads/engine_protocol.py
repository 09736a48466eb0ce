"""What computes the passes over the rows of a shard.

An engine has a ``walker``, which draws samples (:mod:`megaclass.heads.sampling`), and three methods. All engines
take the same arguments and give the same results, up to rounding:

    pass_one(unit_BD, row_B, active, margin, shift)          -> S (B,) fp64 and U (B, D) fp32
    pass_two(micro_batches, active, margin, sgd, rounding, skipped, reduce_)
    catch_up(active, product_N4, rounding)

Shapes: B = rows of the batch, N = rows that take part, D = embedding columns.
"""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from megaclass.heads.margins import Margin
from megaclass.heads.sampling import Walker
from megaclass.heads.softmax import MicroBatch, SGDStep
from megaclass.heads.storage import Rounding
from megaclass.heads.tiles import ActiveRows


class Engine(Protocol):
    """See the module's text. ``skipped`` is a bool scalar on the device: a step that must change nothing."""

    walker: Walker
    reads_owed: bool  # whether the passes pay what active rows owe as they read them

    def pass_one(
        self, unit_BD: Tensor, row_B: Tensor, active: ActiveRows, margin: Margin, shift: float
    ) -> tuple[Tensor, Tensor]: ...

    def pass_two(
        self,
        micro_batches: list[MicroBatch],
        active: ActiveRows,
        margin: Margin,
        sgd: SGDStep,
        rounding: Callable[[str], Rounding],
        skipped: Tensor,
        reduce_: Callable[[Tensor], object] | None = None,
    ) -> None: ...

    def catch_up(
        self, active: ActiveRows, product_N4: Tensor, rounding: Callable[[str], Rounding]
    ) -> None: ...
