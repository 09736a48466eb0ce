"""The two passes over the class tiles in plain PyTorch: loss and embedding gradient first, centres and momentum second.

With e = x / |x|, u_j = w_j / |w_j|, z = target logit and S = sum over negatives of exp(s * cos_j):

    loss = softplus(log S - z),   q = 1 - p_target = sigmoid(log S - z)
    d loss / d cos_j      = s * q * exp(s * cos_j) / S
    d loss / d cos_target = -s * q * slope

Leaving the target out of S avoids the cancellation of 1 - p near convergence. Pass 1 is attention with keys
and values both the centres; it yields everything the backbone needs. Pass 2 takes the exponentials that pass 1 kept, or
computes them again, and applies the gradient tile by tile. Neither the fp32 B x C logits nor a gradient of
the shard's size ever exist.

Shapes: B = rows of the batch that the shard sees, N = rows that take part, T = rows of a tile, D = embedding columns.
"""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from megaclass.heads.margins import BaseMargin
from megaclass.heads.products import Products
from megaclass.heads.sampling import TorchWalker
from megaclass.heads.step import MOST_TURN, ActiveRows, MicroBatch, Roundings, SGDStep, inverse_norms
from megaclass.heads.storage import empty_table
from megaclass.heads.tiles import Tiles

_LEAST = torch.finfo(torch.float32).tiny
_OUT = -1e4  # logit of what leaves the sum: its exponential is 0, and products with it are numbers


def tile_rows(batch_rows: int, dim: int, is_sampled: bool, tile_mb: float, on_cuda: bool) -> int:
    """Rows of a tile whose intermediates fit the tile memory, see :class:`TorchEngine`."""
    # Gathered rows are copies of centres and momentum, and of the centres once more, brought up to date.
    columns = 2 * batch_rows + (3 if is_sampled else 2) * dim
    return max(64, int((tile_mb or (256 if on_cuda else 8)) * 1e6 / (4 * columns)))


def most_kept(dim: int) -> float:
    """Bytes of exponentials, of all micro-batches, that are kept for a scored row: a quarter of its fp32 storage."""
    return 0.25 * 8 * dim


class Kept:
    """What pass 1 leaves for pass 2.

    inverse_N: 1 / |w| of each row, and a 1 for positions that are -1. shares_NB: exp(s cos - shift) of each row and
    sample, 0 for targets, in the type of operands, times ``inverse_N`` unless rows are divided by their norms; one more
    row follows. None: pass 2 is to compute them again.
    """

    def __init__(self, count: int, device: torch.device) -> None:
        self.inverse_N = torch.ones(count + 1, device=device)
        self.shares_NB: Tensor | None = None

    @property
    def nbytes(self) -> int:
        return 0 if self.shares_NB is None else self.shares_NB.nbytes


class TorchEngine:
    """What computes on the rows of a shard, on any device. On CUDA kernels give the same results, up to rounding
    (:class:`megaclass.heads.kernels.engine.TritonEngine`).

    tile_mb: memory for one tile's intermediates, MB; 0: 8 on a CPU, 256 on a GPU.
    recompute: whether pass 2 computes the exponentials again, see :class:`megaclass.heads.step.HeadOptions`.
    sub_centres: K consecutive rows are of one class. All that is not the largest of its class leaves the sums, and so
        gets no gradient, as of a maximum.
    """

    name = "torch"

    def __init__(
        self,
        precision: str,
        device: torch.device,
        tile_mb: float = 0.0,
        recompute: str = "auto",
        sub_centres: int = 1,
    ) -> None:
        self.precision, self.device, self.recompute = precision, device, recompute
        self.sub_centres = sub_centres
        self.products = Products(precision, device)
        self.workspace = self.products.workspace
        self.walker = TorchWalker()
        self._tile_mb = tile_mb
        self._spare: list[Tensor] = []
        self._kept: weakref.WeakSet[Kept] = weakref.WeakSet()  # of micro-batches that are not forgotten yet

    def _tiles(self, active: ActiveRows, batch_rows: int) -> Tiles:
        dim, is_sampled = active.centres.data.shape[1], active.rows_N is not None
        rows = tile_rows(batch_rows, dim, is_sampled, self._tile_mb, self.device.type == "cuda")
        return Tiles(active, rows - rows % self.sub_centres, self.workspace)

    def _keep(self, active: ActiveRows, batch_rows: int) -> Kept:
        """What a micro-batch keeps, with memory for its exponentials unless pass 2 is to compute them again."""
        kept, size = Kept(len(active), self.device), (len(active) + 1) * batch_rows
        if self.recompute == "always":
            return kept
        if self.recompute == "auto":  # not by free memory: a resumed run must repeat the bits
            most = len(active) * most_kept(active.centres.data.shape[1])
            if sum(one.nbytes for one in self._kept) + size * self.products.operand.itemsize > most:
                return kept
        flat = self._spare.pop() if self._spare else None
        if flat is None or len(flat) < size:
            flat = empty_table(size, 1, self.products.operand, self.device)[:, 0]
        kept.shares_NB = flat[:size].view(-1, batch_rows)
        # Fresh memory costs as much as a product: what a step has kept is used again.
        weakref.finalize(kept, self._spare.append, flat)
        self._kept.add(kept)
        return kept

    def _rows(self, centres_TD: Tensor, inverse_T: Tensor) -> Tensor:
        """The rows of a tile as operand of logits."""
        if not self.products.of_unit_rows:
            return centres_TD
        unit_TD = self.workspace.get("unit", *centres_TD.shape, dtype=self.products.of_logits)
        return torch.mul(centres_TD, inverse_T[:, None], out=unit_TD)

    def _shares(
        self,
        all_TB: Tensor,
        rows_TD: Tensor,
        inverse_T: Tensor,
        scaled_BD: Tensor,
        margin: BaseMargin,
        shift: float,
        local_B: Tensor,
        target_B: Tensor,
        sum_B: Tensor | None = None,
    ) -> Tensor:
        """``exp(s cos - shift)`` (T, B), the first rows of ``all``, whose last one is for targets of other tiles.

        0 for negatives above the margin's filter threshold; ``target`` for targets, whose row in the tile is ``local``;
        times 1 / |w| unless rows are divided by it. sum_B: where the exponentials are added up. Of a margin that
        reweighs negatives shares are exponentials of the new logits times the derivative of these by the old ones.
        Of sub-centres, 0 for all but the nearest of a class, and for all of the target's class but ``target``.
        """
        exp_TB, inverse_T1 = all_TB[:-1], inverse_T[:, None]
        # Exponentials that nobody adds up are rounded to operands as they are made.
        logits_TB = exp_TB if exp_TB.dtype == torch.float32 else self.workspace.get("exponentials", *exp_TB.shape)
        self.products.mm(logits_TB, rows_TD, scaled_BD.T)
        if not self.products.of_unit_rows:
            logits_TB.mul_(inverse_T1)
        nearest_TB = self._nearest(logits_TB) if self.sub_centres > 1 else None
        if margin.filter_threshold:
            logits_TB.masked_fill_(logits_TB > margin.threshold, _OUT)
        if margin.reweighs:
            rise_TB, scratch_TB = self.workspace.get("rise", 2, *exp_TB.shape)
            margin.reweigh_(logits_TB, rise_TB, scratch_TB)
        if shift:
            logits_TB.sub_(shift)
        torch.exp(logits_TB, out=exp_TB)
        if margin.reweighs and sum_B is None:
            exp_TB.addcmul_(exp_TB, rise_TB)
        if nearest_TB is not None:
            exp_TB.mul_(nearest_TB)
            # Whichever of them is the largest here: rounding may have chosen another one than fp64 did.
            first_B, zero_B = local_B - local_B % self.sub_centres, torch.zeros_like(target_B)
            for k in range(self.sub_centres):
                _put(all_TB, (first_B + k).clamp(-1, len(exp_TB)), zero_B)
        _put(all_TB, local_B.clamp(-1, len(exp_TB)), target_B)
        if sum_B is not None:
            sum_B += exp_TB.sum(0)
            if margin.reweighs:  # targets are 0 here
                exp_TB.addcmul_(exp_TB, rise_TB)
        return exp_TB if self.products.of_unit_rows else exp_TB.mul_(inverse_T1)

    def _nearest(self, logits_TB: Tensor) -> Tensor:
        """1 for the nearest sub-centre of each class, 0 for its others, fp32 (T, B): to be multiplied by, as the exp of
        very small numbers is ten times as slow."""
        of_class_CKB = logits_TB.view(-1, self.sub_centres, logits_TB.shape[1])
        best_CB = self.workspace.get("best", len(of_class_CKB), logits_TB.shape[1])
        torch.amax(of_class_CKB, 1, out=best_CB)
        nearest_CKB = self.workspace.get("nearest", *of_class_CKB.shape)
        return torch.ge(of_class_CKB, best_CB[:, None], out=nearest_CKB).view_as(logits_TB)

    def pass_one(
        self, unit_BD: Tensor, row_B: Tensor, active: ActiveRows, margin: BaseMargin, shift: float
    ) -> tuple[Tensor, Tensor, Any]:
        """The shard's ``S`` (B,) in fp64 and ``U = sum_j exp(s cos_j) u_j`` (B, D), both times exp(-shift); and what
        pass 2 is to find in :attr:`MicroBatch.kept`.

        Targets are left out of both, as are negatives above the margin's filter threshold. row_B: any of their class.
        """
        batch, products = len(unit_BD), self.products
        scaled_BD = (unit_BD * margin.scale).to(products.of_logits)
        position_B = active.positions(row_B)
        zero_B = torch.zeros(batch, device=unit_BD.device)
        sum_B = torch.zeros(batch, dtype=torch.float64, device=unit_BD.device)
        values_BD = torch.zeros_like(unit_BD)
        kept = self._keep(active, batch)
        tiles, shares_NB = self._tiles(active, batch), kept.shares_NB
        with products.active():
            for tile in tiles:
                centres_TD, _ = tiles.read(tile)
                inverse_T = kept.inverse_N[tile].copy_(inverse_norms(centres_TD))
                rows_TD, local_B = self._rows(centres_TD, inverse_T), position_B - tile.start
                if shares_NB is not None and products.operand == torch.float32:
                    # They are made where they stay.
                    all_TB = shares_NB[tile.start : tile.stop + 1]
                else:
                    all_TB = self.workspace.get("exponentials", len(rows_TD) + 1, batch)
                shares_TB = self._shares(all_TB, rows_TD, inverse_T, scaled_BD, margin, shift, local_B, zero_B, sum_B)
                if shares_NB is not None and products.operand != torch.float32:
                    shares_TB = shares_NB[tile].copy_(shares_TB)
                shares_TB = products.cast("shares", shares_TB)
                products.addmm_(values_BD, shares_TB.T, products.cast("rows", rows_TD))
        return sum_B, values_BD, kept

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
        """One SGD step of the active rows. The gradient is the sum over the micro-batches.

        skipped: a bool scalar on the device: a step that must change nothing. reduce_: an in-place sum over the
        ranks that hold copies of these rows (data parallelism).
        """
        if bool(skipped):  # a host sync on CUDA
            return
        tiles = self._tiles(active, max(len(m.unit_BD) for m in micro_batches))
        scored = [_Scored(batch, active, margin, self.products) for batch in micro_batches]
        first = scored[0]
        as_scored = first.own_N is None and micro_batches[0].active.version == active.version
        inverse_N = first.kept.inverse_N if first.kept and as_scored else None
        of_momentum, of_centres = rounding("momentum"), rounding("centres")
        with self.products.active():
            for tile in tiles:
                centres_TD, momentum_TD = tiles.read(tile, momentum=True)
                inverse_T = inverse_norms(centres_TD) if inverse_N is None else inverse_N[tile]
                gradient_TD = self._gradient(scored, tile, centres_TD, inverse_T)
                if reduce_ is not None:
                    reduce_(gradient_TD)
                # Normalisation takes the part along the centre away.
                product_TD = self.workspace.get("product with centres", *centres_TD.shape)
                radial_T = torch.mul(gradient_TD, centres_TD, out=product_TD).sum(1)
                gradient_TD.addcmul_(centres_TD, (radial_T * inverse_T.square())[:, None], value=-1)
                if active.momentum is None or momentum_TD is None:
                    _damped_step(centres_TD, gradient_TD, inverse_T, sgd)
                else:
                    _momentum_step(centres_TD, gradient_TD, momentum_TD, sgd)
                    tiles.write(active.momentum, tile, momentum_TD, of_momentum)
                tiles.write(active.centres, tile, centres_TD, of_centres)

    def _gradient(self, scored: "list[_Scored]", tile: slice, centres_TD: Tensor, inverse_T: Tensor) -> Tensor:
        """The gradient of a tile's rows, (T, D) fp32, with its part along the centre."""
        products, space = self.products, self.workspace
        gradient_TD = space.get("gradient", *centres_TD.shape)
        rows_TD = None
        for one in scored:
            own = tile if one.own_N is None else one.own_N[tile]
            if one.shares_NB is not None:
                shares_TB = one.shares_NB[own]
            else:
                rows_TD = self._rows(centres_TD, inverse_T) if rows_TD is None else rows_TD
                dtype = products.operand if products.of_unit_rows else torch.float32
                name = "exponentials" if dtype == torch.float32 else "shares"
                all_TB = space.get(name, len(rows_TD) + 1, len(one.scaled_BD), dtype=dtype)
                local_B = one.position_B - tile.start
                shares_TB = self._shares(
                    all_TB, rows_TD, inverse_T, one.scaled_BD, one.margin, one.shift, local_B, one.target_B
                )
                if isinstance(own, Tensor):
                    shares_TB.masked_fill_((own < 0)[:, None], 0.0)
                shares_TB = products.cast("shares", shares_TB)
            add = products.mm if one is scored[0] else products.addmm_
            add(gradient_TD, shares_TB, one.weighted_BD)
        return gradient_TD.mul_(inverse_T[:, None]) if products.of_unit_rows else gradient_TD

    def catch_up(self, active: ActiveRows, rounding: Roundings) -> None:
        """Pay what the active rows owe, and store them."""
        tiles = self._tiles(active, 0)
        of_momentum, of_centres = rounding("momentum"), rounding("centres")
        for tile in tiles:
            w_TD, v_TD = tiles.read(tile, momentum=True)
            if active.momentum is not None and v_TD is not None:
                tiles.write(active.momentum, tile, v_TD, of_momentum)
            tiles.write(active.centres, tile, w_TD, of_centres)


class _Scored:
    """A micro-batch, as every tile of pass 2 needs it."""

    def __init__(self, batch: MicroBatch, active: ActiveRows, margin: BaseMargin, products: Products) -> None:
        self.kept: Kept | None = batch.kept
        self.shares_NB = shares_NB = self.kept.shares_NB if self.kept else None
        self.shift, self.margin = batch.shift, batch.margin or margin
        # Where the rows sit in the sample of this micro-batch, if others drew their own; -1: nowhere.
        own_N, all_N = batch.active.rows_N, active.rows_N
        self.own_N = None if all_N is None or own_N is all_N else batch.active.positions(all_N)
        self.position_B = active.positions(batch.row_B)
        # Each sample's own factor is taken into the other operand, so that nothing is left to do per tile.
        # Below e^-82 a sum is empty, see static_shift; where a target is far above it, the factor is 0.
        factor_B = torch.exp((batch.log_share_B + batch.shift).clamp(max=82.0))
        self.target_B = batch.target_B / factor_B.clamp(min=_LEAST)
        scaled_BD = batch.unit_BD * margin.scale
        self.scaled_BD = scaled_BD.to(products.of_logits)
        self.weighted_BD = (scaled_BD * (factor_B[:, None] * batch.weight)).to(products.operand)
        if self.kept and shares_NB is not None:
            position_B = batch.active.positions(batch.row_B)
            inverse_B = 1.0 if products.of_unit_rows else self.kept.inverse_N[position_B]
            _put(shares_NB, position_B, self.target_B * inverse_B)
            shares_NB[-1] = 0.0


def _put(values_TB: Tensor, row_B: Tensor, value_B: Tensor) -> None:
    """``values[row_i, i] = value_i``, finite."""
    most = torch.finfo(values_TB.dtype).max
    column_B = torch.arange(len(row_B), device=row_B.device)
    values_TB.index_put_((row_B, column_B), value_B.clamp(-most, most).to(values_TB.dtype))


def _momentum_step(centres_TD: Tensor, gradient_TD: Tensor, momentum_TD: Tensor, sgd: SGDStep) -> None:
    """A step with momentum, in place: what torch.optim.SGD(fused=True) calls, one pass over the three. That takes no
    buffer where ``momentum`` is 0: a first step, which does not read the buffer, is the same."""
    torch._fused_sgd_(
        [centres_TD],
        [gradient_TD],
        [momentum_TD],
        weight_decay=sgd.weight_decay,
        momentum=sgd.momentum or 1.0,
        lr=sgd.lr,
        dampening=0.0,
        nesterov=False,
        maximize=False,
        is_first_step=sgd.momentum == 0,
    )


def _damped_step(centres_TD: Tensor, gradient_TD: Tensor, inverse_T: Tensor, sgd: SGDStep) -> None:
    """A step without momentum, in place; see :class:`megaclass.heads.step.SGDStep`."""
    turn_T = sgd.lr * torch.linalg.vector_norm(gradient_TD, dim=1) * inverse_T
    lr_T = sgd.lr / (1.0 + turn_T / MOST_TURN)
    centres_TD.mul_(1.0 - sgd.lr * sgd.weight_decay).addcmul_(gradient_TD, lr_T[:, None], value=-1)
