"""The two passes over the class tiles: loss and embedding gradient first, centres and momentum second.

With e = x / |x|, u_j = w_j / |w_j|, z = target logit and S = sum over negatives of exp(s * cos_j):

    loss = softplus(log S - z),   q = 1 - p_target = sigmoid(log S - z)
    d loss / d cos_j      = s * q * exp(s * cos_j) / S
    d loss / d cos_target = -s * q * slope

Leaving the target out of S avoids the cancellation of 1 - p near convergence. Pass 1 is attention with keys
and values both the centres; it yields everything the backbone needs. Pass 2 recomputes each tile's
probabilities and folds the gradient into momentum and centres. Neither the B x C logits nor a gradient of
the shard's size ever exist.

Shapes: B = rows of the batch that the shard sees, T = rows of a tile, D = embedding columns.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from megaclass.heads.margins import Margin
from megaclass.heads.products import Products
from megaclass.heads.storage import Rounding
from megaclass.heads.tiles import ActiveRows, Tiles

# Like torch.nn.functional.normalize: a vector shorter than this is divided by it.
NORM_FLOOR = 1e-12


@dataclass
class MicroBatch:
    """What pass 2 needs of one forward pass.

    unit_BD: normalised embeddings. row_B: the target's row in this shard, or outside [0, C).
    log_share_B: log q - log S, so that q * exp(z) / S = exp(z + log_share). target_B: -q * slope.
    active: the rows that were scored. weight: d(final loss) / d(this loss) / B, a scalar tensor.
    """

    unit_BD: Tensor
    row_B: Tensor
    log_share_B: Tensor
    target_B: Tensor
    active: ActiveRows
    weight: Tensor


# Without momentum a step turns a centre by less than this, radians.
MOST_TURN = 0.5


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


def _tile_logits(
    scaled_BD: Tensor, centres_TD: Tensor, inverse_T: Tensor, tiles: Tiles, products: Products
) -> Tensor:
    logits_BT = tiles.workspace.get("logits", len(scaled_BD), len(centres_TD))
    products.mm(scaled_BD, centres_TD.T, out=logits_BT)
    return logits_BT.mul_(inverse_T)  # normalising the product costs B * T, normalising the tile T * D


def _put_targets(values_BT: Tensor, position_B: Tensor, tile: slice, target_B: Tensor) -> None:
    """``values[i, position_i] = target_i`` where the position lies in the tile (no host sync)."""
    inside_B = (position_B >= tile.start) & (position_B < tile.stop)
    column_B1 = (position_B - tile.start).clamp(0, values_BT.shape[1] - 1)[:, None]
    kept_B1 = values_BT.gather(1, column_B1)
    values_BT.scatter_(1, column_B1, torch.where(inside_B[:, None], target_B[:, None], kept_B1))


def pass_one(
    unit_BD: Tensor, row_B: Tensor, tiles: Tiles, margin: Margin, products: Products, shift: float
) -> tuple[Tensor, Tensor]:
    """The shard's ``S`` (B,) in fp64 and ``U = sum_j exp(s cos_j) u_j`` (B, D), both times exp(-shift).

    Targets are left out of both, as are negatives above the margin's filter threshold.
    """
    scaled_BD = unit_BD * margin.scale
    position_B = tiles.active.positions(row_B)
    zero_B = torch.zeros(len(unit_BD), device=unit_BD.device)
    sum_B = torch.zeros(len(unit_BD), dtype=torch.float64, device=unit_BD.device)
    values_BD = torch.zeros_like(unit_BD)
    with products.active():
        for tile in tiles:
            centres_TD = tiles.centres(tile)
            inverse_T = inverse_norms(centres_TD)
            exp_BT = _tile_logits(scaled_BD, centres_TD, inverse_T, tiles, products)
            if margin.filter_threshold:
                exp_BT.masked_fill_(exp_BT > margin.scale * margin.filter_threshold, -torch.inf)
            if shift:
                exp_BT.sub_(shift)
            exp_BT.exp_()
            _put_targets(exp_BT, position_B, tile, zero_B)
            sum_B += exp_BT.sum(1)
            products.addmm_(values_BD, exp_BT.mul_(inverse_T), centres_TD, beta=1.0)
    return sum_B, values_BD


def pass_two(
    micro_batches: list[MicroBatch],
    tiles: Tiles,
    margin: Margin,
    products: Products,
    sgd: SGDStep,
    rounding: Callable[[str], Rounding],
    reduce_: Callable[[Tensor], object] | None = None,
) -> None:
    """One SGD step of the rows in ``tiles``. The gradient is the sum over the micro-batches.

    rounding: the random numbers of a write, for "momentum" and "centres". reduce_: an in-place sum over the
    ranks that hold copies of these rows (data parallelism).
    """
    active = tiles.active
    centres, momentum = active.centres, active.momentum
    positions = [active.positions(m.row_B) for m in micro_batches]
    scaled = [m.unit_BD * margin.scale for m in micro_batches]
    weighted = [s * m.weight for s, m in zip(scaled, micro_batches, strict=True)]
    left_out = [_left_out(m.active, active) for m in micro_batches]
    of_momentum, of_centres = rounding("momentum"), rounding("centres")
    with products.active():
        for tile in tiles:
            centres_TD, momentum_TD = tiles.centres_and_momentum(tile)
            # The gradient is folded into the momentum by the product itself, unless it is summed over ranks
            # first, or no momentum is kept: then it exists, one tile at a time.
            if momentum_TD is not None and reduce_ is None:
                gradient_TD, beta = momentum_TD, sgd.momentum
            else:
                gradient_TD, beta = tiles.workspace.get("gradient", *centres_TD.shape), 0.0
            inverse_T = inverse_norms(centres_TD)
            radial_T = torch.zeros_like(inverse_T)  # the gradient's component along the centre, times |w|
            for i, batch in enumerate(micro_batches):
                logits_BT = _tile_logits(scaled[i], centres_TD, inverse_T, tiles, products)
                slope_BT = tiles.workspace.get("slopes", *logits_BT.shape)
                torch.add(logits_BT, batch.log_share_B[:, None], out=slope_BT).exp_()
                if margin.filter_threshold:
                    slope_BT.masked_fill_(logits_BT > margin.scale * margin.filter_threshold, 0.0)
                if (out_N := left_out[i]) is not None:
                    slope_BT.masked_fill_(out_N[tile], 0.0)
                _put_targets(slope_BT, positions[i], tile, batch.target_B)
                radial_T += batch.weight * logits_BT.mul_(slope_BT).sum(0)
                products.addmm_(gradient_TD, slope_BT.mul_(inverse_T).T, weighted[i], beta=beta)
                beta = 1.0
            if reduce_ is not None:
                reduce_(gradient_TD)
                reduce_(radial_T)
            # Normalisation acts along the centre, as weight decay does: one scalar a row.
            along_T = -radial_T * inverse_T.square()
            if momentum is None or momentum_TD is None:
                gradient_TD.addcmul_(centres_TD, along_T[:, None])
                turn_T = sgd.lr * torch.linalg.vector_norm(gradient_TD, dim=1) * inverse_T
                lr_T = sgd.lr / (1.0 + turn_T / MOST_TURN)
                centres_TD.mul_(1.0 - sgd.lr * sgd.weight_decay).addcmul_(
                    gradient_TD, lr_T[:, None], value=-1
                )
            else:
                if reduce_ is not None:
                    momentum_TD.mul_(sgd.momentum).add_(gradient_TD)
                momentum_TD.addcmul_(centres_TD, (along_T + sgd.weight_decay)[:, None])
                centres_TD.add_(momentum_TD, alpha=-sgd.lr)
                tiles.write(momentum, tile, momentum_TD, of_momentum)
            tiles.write(centres, tile, centres_TD, of_centres)


def _left_out(scored: ActiveRows, active: ActiveRows) -> Tensor | None:
    """Which active rows one micro-batch did not score, when the micro-batches drew different samples."""
    if scored.rows_N is active.rows_N or scored.rows_N is None or active.rows_N is None:
        return None
    return ~torch.isin(active.rows_N, scored.rows_N)
