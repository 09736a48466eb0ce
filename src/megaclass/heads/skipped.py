"""Exact catch-up of rows that the optimizer left out.

Under SGD with momentum mu, weight decay wd and learning rate lr, a row without a loss gradient follows

    v <- mu * v + wd * w          (v, w) <- M (v, w),   M = [[mu,          wd        ],
    w <- w - lr * v                                          [-lr * mu, 1 - lr * wd ]]

which is linear. A row left out for k steps is brought up to date by the product of the last k matrices:
one integer a row and one table of products give the dense optimizer's result at the sampled cost.

Shapes: K = ages in the table, N = rows.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from megaclass.heads.softmax import SGDStep
from megaclass.heads.storage import Rounding
from megaclass.heads.tiles import Tiles


class StepProducts:
    """``table_K4[k]`` is the product of the matrices of the last k steps, row-major, fp64.

    The table is bounded: ages go to ``limit``, and whoever uses it must see every row at least once in
    ``limit`` steps.
    """

    def __init__(self, limit: int, device: torch.device) -> None:
        self.limit = limit
        self.table_K4 = torch.zeros(limit + 1, 4, dtype=torch.float64, device=device)
        self.clear()

    def clear(self) -> None:
        """Forget the past: right when every row is up to date."""
        self.table_K4.copy_(torch.eye(2, dtype=torch.float64).flatten())

    def append(self, sgd: SGDStep, skipped: Tensor) -> None:
        """A step was taken: age 0 is "up to date" again and every older product grows by one factor.

        skipped: a bool scalar on any device; a step that was skipped moved nothing (no host sync).
        """
        lr, mu, decay = sgd.lr, sgd.momentum, sgd.weight_decay
        older_K4 = self.table_K4[:-1].clone()
        v_K2, w_K2 = older_K4[:, :2], older_K4[:, 2:]
        grown_K4 = torch.cat([mu * v_K2 + decay * w_K2, (1 - lr * decay) * w_K2 - lr * mu * v_K2], 1)
        self.table_K4[1:] = torch.where(skipped.to(older_K4.device), older_K4, grown_K4)

    def of_ages(self, age_N: Tensor) -> Tensor:
        """The products for these ages (int, at most ``limit``), fp32 of shape (N, 4)."""
        return self.table_K4[age_N.long()].float()


def catch_up(tiles: Tiles, rounding: Callable[[str], Rounding]) -> None:
    """Pay what the active rows owe, and store them."""
    centres, momentum = tiles.active.centres, tiles.active.momentum
    of_momentum, of_centres = rounding("momentum"), rounding("centres")
    for tile in tiles:
        w_TD, v_TD = tiles.centres_and_momentum(tile)
        if momentum is not None and v_TD is not None:
            tiles.write(momentum, tile, v_TD, of_momentum)
        tiles.write(centres, tile, w_TD, of_centres)
