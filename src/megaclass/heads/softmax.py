"""The two passes over the class tiles in plain PyTorch: loss and embedding gradient first, centres and momentum second.

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

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from megaclass.heads.margins import Margin
from megaclass.heads.precision import fp32_products
from megaclass.heads.sampling import TorchWalker
from megaclass.heads.step import MOST_TURN, ActiveRows, MicroBatch, Roundings, SGDStep, inverse_norms
from megaclass.heads.tiles import Tiles, Workspace


class Products:
    """Matrix products, fp32 in and fp32 out; ``precision`` says how the operands are rounded inside.

    Products may be rounded, logits may not: at scale 64 a bf16 logit is off by up to 0.1.
    fp32: not at all. tf32: on CUDA; elsewhere the same as fp32. bf16: on CUDA by casting the operands; on
    a CPU by oneDNN, which uses bf16 where the processor has matrix units for it and fp32 elsewhere.
    """

    def __init__(self, precision: str, device: torch.device) -> None:
        on_cuda = device.type == "cuda"
        self._cast = precision == "bf16" and on_cuda
        backends: Any = torch.backends
        self._backend = backends.cuda.matmul if on_cuda else backends.mkldnn.matmul
        self._flag = precision if precision == ("tf32" if on_cuda else "bf16") else "ieee"

    def active(self) -> contextlib.AbstractContextManager[None]:
        """Set the backend's flag for the products inside, and put it back."""
        return fp32_products(self._flag, self._backend)

    def mm(self, a: Tensor, b: Tensor, out: Tensor) -> Tensor:
        """``out = a @ b``."""
        return out.copy_(_bf16_product(a, b)) if self._cast else torch.mm(a, b, out=out)

    def addmm_(self, target: Tensor, a: Tensor, b: Tensor, beta: float) -> Tensor:
        """``target = beta * target + a @ b``."""
        if self._cast:
            product = _bf16_product(a, b)
            return target.copy_(product) if beta == 0 else target.mul_(beta).add_(product)
        return target.addmm_(a, b, beta=beta)


def _bf16_product(a: Tensor, b: Tensor) -> Tensor:
    return torch.mm(a.bfloat16(), b.bfloat16(), out_dtype=torch.float32)


class TorchEngine:
    """What computes on the rows of a shard, on any device. On CUDA kernels give the same results, up to rounding
    (:class:`megaclass.heads.kernels.engine.TritonEngine`).

    tile_mb: memory for one tile's intermediates, MB; 0: 16 on a CPU, 256 on a GPU.
    """

    name = "torch"

    def __init__(self, precision: str, device: torch.device, tile_mb: float = 0.0) -> None:
        self.precision, self.device = precision, device
        self.products = Products(precision, device)
        self.walker = TorchWalker()
        self.workspace = Workspace(device)
        self._tile_bytes = (tile_mb or (16 if device.type == "cpu" else 256)) * 1e6

    def _tiles(self, active: ActiveRows, batch_rows: int) -> Tiles:
        """Tiles whose intermediates fit the tile memory."""
        # Gathered rows are copies of centres and momentum, and of the centres once more, brought up to date.
        copies = 2 if active.rows_N is None else 3
        bytes_a_row = 4 * (2 * batch_rows + copies * active.centres.data.shape[1])
        return Tiles(active, max(64, int(self._tile_bytes / bytes_a_row)), self.workspace)

    def _logits(self, scaled_BD: Tensor, centres_TD: Tensor, inverse_T: Tensor) -> Tensor:
        logits_BT = self.workspace.get("logits", len(scaled_BD), len(centres_TD))
        self.products.mm(scaled_BD, centres_TD.T, out=logits_BT)
        return logits_BT.mul_(inverse_T)  # normalising the product costs B * T, normalising the tile T * D

    def pass_one(
        self, unit_BD: Tensor, row_B: Tensor, active: ActiveRows, margin: Margin, shift: float
    ) -> tuple[Tensor, Tensor, Any]:
        """The shard's ``S`` (B,) in fp64 and ``U = sum_j exp(s cos_j) u_j`` (B, D), both times exp(-shift); and what
        pass 2 is to find in :attr:`MicroBatch.kept`.

        Targets are left out of both, as are negatives above the margin's filter threshold.
        """
        tiles, scaled_BD = self._tiles(active, len(unit_BD)), unit_BD * margin.scale
        position_B = active.positions(row_B)
        zero_B = torch.zeros(len(unit_BD), device=unit_BD.device)
        sum_B = torch.zeros(len(unit_BD), dtype=torch.float64, device=unit_BD.device)
        values_BD = torch.zeros_like(unit_BD)
        with self.products.active():
            for tile in tiles:
                centres_TD, _ = tiles.read(tile)
                inverse_T = inverse_norms(centres_TD)
                exp_BT = self._logits(scaled_BD, centres_TD, inverse_T)
                if margin.filter_threshold:
                    exp_BT.masked_fill_(exp_BT > margin.threshold, -torch.inf)
                if shift:
                    exp_BT.sub_(shift)
                exp_BT.exp_()
                _put_targets(exp_BT, position_B, tile, zero_B)
                sum_B += exp_BT.sum(1)
                self.products.addmm_(values_BD, exp_BT.mul_(inverse_T), centres_TD, beta=1.0)
        return sum_B, values_BD, None

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
        """One SGD step of the active rows. The gradient is the sum over the micro-batches.

        skipped: a bool scalar on the device: a step that must change nothing. reduce_: an in-place sum over the
        ranks that hold copies of these rows (data parallelism).
        """
        if bool(skipped):  # a host sync on CUDA
            return
        tiles = self._tiles(active, max(len(m.unit_BD) for m in micro_batches))
        scored = [_Scored(batch, active, margin) for batch in micro_batches]
        of_momentum, of_centres = rounding("momentum"), rounding("centres")
        with self.products.active():
            for tile in tiles:
                centres_TD, momentum_TD = tiles.read(tile, momentum=True)
                # The gradient is folded into the momentum by the product itself, unless it is summed over ranks
                # first, or no momentum is kept: then it exists, one tile at a time.
                folded = reduce_ is None and momentum_TD is not None
                gradient_TD = momentum_TD if folded else self.workspace.get("gradient", *centres_TD.shape)
                assert gradient_TD is not None
                inverse_T = inverse_norms(centres_TD)
                radial_T = self._add_gradients(
                    gradient_TD, sgd.momentum if folded else 0.0, scored, margin, tile, centres_TD, inverse_T
                )
                if reduce_ is not None:
                    reduce_(gradient_TD)
                    reduce_(radial_T)
                # Normalisation acts along the centre, as weight decay does: one scalar a row.
                along_T = -radial_T * inverse_T.square()
                if active.momentum is None or momentum_TD is None:
                    _damped_step(centres_TD, gradient_TD, along_T, inverse_T, sgd)
                else:
                    if reduce_ is not None:
                        momentum_TD.mul_(sgd.momentum).add_(gradient_TD)
                    momentum_TD.addcmul_(centres_TD, (along_T + sgd.weight_decay)[:, None])
                    centres_TD.add_(momentum_TD, alpha=-sgd.lr)
                    tiles.write(active.momentum, tile, momentum_TD, of_momentum)
                tiles.write(active.centres, tile, centres_TD, of_centres)

    def _add_gradients(
        self,
        gradient_TD: Tensor,
        beta: float,
        scored: "list[_Scored]",
        margin: Margin,
        tile: slice,
        centres_TD: Tensor,
        inverse_T: Tensor,
    ) -> Tensor:
        """``gradient = beta * gradient +`` that of a tile, without the part that normalisation takes away.

        Returns that part, (T,): the gradient's component along the centre, times |w|.
        """
        radial_T = torch.zeros_like(inverse_T)
        for one in scored:
            logits_BT = self._logits(one.scaled_BD, centres_TD, inverse_T)
            slope_BT = self.workspace.get("slopes", *logits_BT.shape)
            torch.add(logits_BT, one.batch.log_share_B[:, None], out=slope_BT).exp_()
            if margin.filter_threshold:
                slope_BT.masked_fill_(logits_BT > margin.threshold, 0.0)
            if one.left_out_N is not None:
                slope_BT.masked_fill_(one.left_out_N[tile], 0.0)
            _put_targets(slope_BT, one.position_B, tile, one.batch.target_B)
            radial_T += one.batch.weight * logits_BT.mul_(slope_BT).sum(0)
            self.products.addmm_(gradient_TD, slope_BT.mul_(inverse_T).T, one.weighted_BD, beta=beta)
            beta = 1.0
        return radial_T

    def catch_up(self, active: ActiveRows, product_N4: Tensor, rounding: Roundings) -> None:
        """Pay what the active rows owe, and store them."""
        tiles = self._tiles(replace(active, owed_N4=product_N4), 0)
        of_momentum, of_centres = rounding("momentum"), rounding("centres")
        for tile in tiles:
            w_TD, v_TD = tiles.read(tile, momentum=True)
            if active.momentum is not None and v_TD is not None:
                tiles.write(active.momentum, tile, v_TD, of_momentum)
            tiles.write(active.centres, tile, w_TD, of_centres)


class _Scored:
    """A micro-batch, as every tile of pass 2 needs it."""

    def __init__(self, batch: MicroBatch, active: ActiveRows, margin: Margin) -> None:
        self.batch = batch
        self.position_B = active.positions(batch.row_B)
        self.scaled_BD = batch.unit_BD * margin.scale
        self.weighted_BD = self.scaled_BD * batch.weight
        # The rows that others drew in a sample of their own.
        own_N, all_N = batch.active.rows_N, active.rows_N
        differs = own_N is not None and all_N is not None and own_N is not all_N
        self.left_out_N = ~torch.isin(all_N, own_N) if differs else None  # type: ignore[arg-type]


def _put_targets(values_BT: Tensor, position_B: Tensor, tile: slice, target_B: Tensor) -> None:
    """``values[i, position_i] = target_i`` where the position lies in the tile (no host sync)."""
    inside_B = (position_B >= tile.start) & (position_B < tile.stop)
    column_B1 = (position_B - tile.start).clamp(0, values_BT.shape[1] - 1)[:, None]
    kept_B1 = values_BT.gather(1, column_B1)
    values_BT.scatter_(1, column_B1, torch.where(inside_B[:, None], target_B[:, None], kept_B1))


def _damped_step(
    centres_TD: Tensor, gradient_TD: Tensor, along_T: Tensor, inverse_T: Tensor, sgd: SGDStep
) -> None:
    """A step without momentum, in place; see :class:`megaclass.heads.step.SGDStep`."""
    gradient_TD.addcmul_(centres_TD, along_T[:, None])
    turn_T = sgd.lr * torch.linalg.vector_norm(gradient_TD, dim=1) * inverse_T
    lr_T = sgd.lr / (1.0 + turn_T / MOST_TURN)
    centres_TD.mul_(1.0 - sgd.lr * sgd.weight_decay).addcmul_(gradient_TD, lr_T[:, None], value=-1)
