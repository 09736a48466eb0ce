"""A step over the rows of a shard: its options, and what the two passes are given.

Shapes: C = rows of the shard, N = rows that take part, T = rows of a tile, B = rows of the batch that the shard sees,
D = embedding columns.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from megaclass.config.checks import check_alone
from megaclass.heads.storage import Rounding, Rows

# Like torch.nn.functional.normalize: a vector shorter than this is divided by it.
NORM_FLOOR = 1e-12
# Without momentum a step turns a centre by less than this, radians.
MOST_TURN = 0.5

Roundings = Callable[[str], Rounding]  # of the writes of a step, by the table: "centres" or "momentum"


@dataclass(frozen=True, kw_only=True)
class HeadOptions:
    """Where the classes lie, and how they are stored and computed on: within the limits of a recipe's ``[head]``.

    parallelism: ``model`` (classes sharded over ranks) or ``data`` (every rank holds them all).
    shard_group: with ``model``: sharded over the ranks of the ``world``, or of a ``node``, each node with all.
    precision: rounding of the operands of products, ``fp32``, ``tf32`` or ``bf16``; logits stay fp32.
    storage: of centres and momentum, see :mod:`megaclass.heads.storage`.
    recompute: in plain PyTorch, whether pass 2 computes the exponentials of pass 1 ``always`` again or ``never``, for
        which they are kept, 4 bytes a scored class and row of the batch, or 2 where products are of bf16 operands;
        ``auto`` keeps them where they take at most a quarter of the scored rows' fp32 storage.
    kernels: ``triton``, ``torch``, or ``auto``: Triton on CUDA where it works.
    tile_mb: memory for one tile's intermediates in plain PyTorch, MB; 0 picks 8 on a CPU, 256 on a GPU.
    sub_centres: K centres of each class, of which the nearest gives the logit (sub-centre ArcFace, Deng et al., ECCV
        2020; arXiv:1801.07698v4, section 3.2, equation 7). Above 1 plain PyTorch computes, on CUDA too.
    """

    parallelism: str = "model"
    shard_group: str = "world"
    precision: str = "fp32"
    storage: str = "fp32"
    recompute: str = "auto"
    kernels: str = "auto"
    tile_mb: float = 0.0
    sub_centres: int = 1

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            check_alone(f"head.{name}", value)


@dataclass(frozen=True)
class ActiveRows:
    """The rows of a shard that take part in a step.

    centres, momentum: the shard's tables (momentum None: none is kept).
    rows_N: which rows of the shard they are, int64, sorted; None: all of them.
    owed_N4: what the rows owe for steps that left them out: each row's product of step matrices, fp32 (N, 4), see
        :mod:`megaclass.heads.shard`. None: they are up to date.
    version: of the shard when this was made; the rows of a later one may owe something else.
    """

    centres: Rows
    momentum: Rows | None
    rows_N: Tensor | None
    owed_N4: Tensor | None = None
    version: int = 0

    def __len__(self) -> int:
        return len(self.centres) if self.rows_N is None else len(self.rows_N)

    def index(self, tile: slice) -> slice | Tensor:
        """Where the tables hold a tile."""
        return tile if self.rows_N is None else self.rows_N[tile]

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
        rows_N = position_N if self.rows_N is None else self.rows_N[position_N]
        w_ND = self.centres.fp32(rows_N)
        if self.owed_N4 is not None:
            _, _, wv_N1, ww_N1 = columns(self.owed_N4[position_N])
            w_ND *= ww_N1
            if self.momentum is not None:
                w_ND.addcmul_(self.momentum.fp32(rows_N), wv_N1)
        return w_ND


@dataclass(frozen=True)
class MicroBatch:
    """What pass 2 needs of one forward pass.

    unit_BD: normalised embeddings. row_B: the target's row in this shard (of sub-centres that of the nearest), or
        outside [0, C).
    log_share_B: log q - log S, so that q * exp(z) / S = exp(z + log_share). target_B: -q * slope.
    active: the rows that were scored. weight: d(final loss) / d(this loss) / B, a scalar tensor.
    shift: what pass 1 subtracted from logits. kept: what the engine keeps of its pass 1 for its pass 2, its own affair.
    margin: as it reweighs these negatives. observed_3: what its running numbers advance by.
    """

    unit_BD: Tensor
    row_B: Tensor
    log_share_B: Tensor
    target_B: Tensor
    active: ActiveRows
    weight: Tensor
    shift: float = 0.0
    kept: Any = None
    margin: Any = None
    observed_3: Tensor | None = None


@dataclass(frozen=True)
class SGDStep:
    """With momentum kept: ``v = momentum * v + gradient + weight_decay * w``, ``w = w - lr * v``.

    Without: ``w = (1 - lr * weight_decay) * w - lr / (1 + turn / MOST_TURN) * gradient``, where
    ``turn = lr * |gradient| / |w|`` is the angle by which the plain step would turn the centre.
    """

    lr: float
    momentum: float
    weight_decay: float


def inverse_norms(rows_TD: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows_TD, dim=1).clamp_(min=NORM_FLOOR).reciprocal_()


def columns(product_N4: Tensor) -> tuple[Tensor, ...]:
    """The entries vv, vw, wv, ww of step matrices, each (N, 1): v <- vv v + vw w, w <- wv v + ww w."""
    return product_N4[:, :, None].unbind(1)
