"""Exact catch-up of rows that the optimizer left out.

Under SGD with momentum mu, weight decay wd and learning rate lr, a row without a loss gradient follows

    v <- mu * v + wd * w          (v, w) <- M (v, w),   M = [[mu,          wd        ],
    w <- w - lr * v                                          [-lr * mu, 1 - lr * wd]]

which is linear. A row left out for k steps is brought up to date by the product of the last k matrices:
one integer a row and one table of products give the dense optimizer's result at the sampled cost.

Shapes: K = ages in the table.
"""

import torch
from torch import Tensor


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

    def append(self, lr: float, momentum: float, weight_decay: float) -> None:
        """A step was taken: age 0 is "up to date" again and every older product grows by one factor."""
        step = torch.tensor(
            [[momentum, weight_decay], [-lr * momentum, 1.0 - lr * weight_decay]], dtype=torch.float64
        )
        older = self.table_K4[:-1].view(-1, 2, 2).clone()
        self.table_K4[1:] = torch.matmul(step.to(older.device), older).flatten(1)

    def of_ages(self, age_T: Tensor) -> Tensor:
        """The products for these ages (int, at most ``limit``), fp32 of shape (T, 4)."""
        return self.table_K4[age_T.long()].float()
