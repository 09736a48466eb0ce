"""The margin head: a softmax over class centres sharded over ranks, sampled or full.

    head = PartialFC(num_classes, embedding_dim, margin=ArcFace(), sample_rate=0.1)
    optimizer = HeadSGD(head, lr=0.1)
    loss = head(embeddings, labels)
    loss.backward()       # gives the embeddings their gradient
    optimizer.step()      # the second pass over the classes: gives the centres theirs, and applies it

Model parallelism (Partial FC, An et al., CVPR 2022, arXiv:2203.15565): each rank owns a contiguous range of
classes and sees the whole global batch. Data parallelism: each rank holds every class and sees its own part
of the batch. Both give the gradients of one process on the global batch.

Shapes: b = rows of this rank's batch, B = rows that the shard sees (the global batch, or b), C = rows of the
shard, D = embedding columns.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from megaclass import distributed
from megaclass.errors import UserError
from megaclass.heads.margins import Margin, static_shift
from megaclass.heads.products import Products
from megaclass.heads.sampling import sample_classes
from megaclass.heads.softmax import NORM_FLOOR, MicroBatch, inverse_norms, pass_one
from megaclass.heads.tiles import Tiles, Workspace
from megaclass.permutation import derive_key

PARALLELISMS = ("model", "data")

INIT_STD = 0.01  # as arcface_torch draws its centres
_INIT_ROWS = 4096  # centres are drawn in chunks of this many, each from its own seed
_MAX_PENDING = 256  # micro-batches without an optimizer step: nobody accumulates that many by intention


class PartialFC(nn.Module):
    """Margin softmax over ``num_classes`` identities.

    Calling it with this rank's embeddings (b, D) and labels (b,) int64 in ``[0, num_classes)`` gives the mean
    cross-entropy over the global batch, the same on every rank. b must be the same on every rank.

    The embedding gradient is multiplied by the number of ranks, because DistributedDataParallel averages
    gradients over ranks where the gradient of a global mean asks for their sum (as arcface_torch does).

    Args:
        sample_rate: the fraction of all classes scored in a step: the classes of the batch and a uniform
            sample of the others. The sample depends on ``seed`` and the number of optimizer steps taken,
            not on the number of ranks.
        parallelism: ``model`` (classes sharded over ranks) or ``data`` (every rank holds them all).
        precision: rounding of the operands of products, ``fp32``, ``tf32`` or ``bf16``; logits stay fp32.
        tile_mb: memory for one tile's intermediates, MB; 0 picks 16 on a CPU, 256 on a GPU.

    Attributes:
        weight: the centres of this rank, fp32 (C, D). It never receives a dense ``.grad``: use
            :class:`megaclass.heads.sgd.HeadSGD`.
        class_range: the half-open range of classes that this rank owns.
    """

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int = 512,
        *,
        margin: Margin | None = None,
        sample_rate: float = 1.0,
        parallelism: str = "model",
        precision: str = "fp32",
        seed: int = 0,
        tile_mb: float = 0.0,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        if num_classes < 1 or embedding_dim < 1:
            raise ValueError(
                f"num_classes and embedding_dim must be positive: {num_classes}, {embedding_dim}"
            )
        if not 0.0 < sample_rate <= 1.0:
            raise ValueError(f"sample_rate must lie in (0, 1], got {sample_rate}")
        if parallelism not in PARALLELISMS:
            raise ValueError(f"parallelism must be one of {PARALLELISMS}, got {parallelism!r}")
        device = torch.device(device)
        self.num_classes, self.embedding_dim = num_classes, embedding_dim
        self.margin = margin or Margin()
        self.sample_rate, self.parallelism, self.seed = sample_rate, parallelism, seed
        sharded = parallelism == "model"
        parts, part = (distributed.world_size(), distributed.rank()) if sharded else (1, 0)
        self.class_range = distributed.shard_range(num_classes, part, parts)
        self.products = Products(precision, device)
        self.workspace = Workspace(device)
        self._tile_bytes = (tile_mb or (16 if device.type == "cpu" else 256)) * 1e6
        self.weight = nn.Parameter(initial_centres(self.class_range, embedding_dim, seed, device))
        self.pending: list[MicroBatch] = []
        self.optimizer_steps = 0
        self._sample_N: Tensor | None = None
        self._optimizer: Any = None

    def extra_repr(self) -> str:
        start, stop = self.class_range
        return (
            f"num_classes={self.num_classes}, embedding_dim={self.embedding_dim}, classes=[{start}, {stop}), "
            f"sample_rate={self.sample_rate}, parallelism={self.parallelism!r}, {self.margin}"
        )

    # -- one step -------------------------------------------------------------------------------------

    def draw(self, labels_b: Tensor) -> None:
        """Fix this step's sample from all its labels, before the first of several micro-batches.

        With gradient accumulation this makes k micro-batches score the classes that one large batch would;
        without it each micro-batch draws its own sample. Does nothing at ``sample_rate`` 1.
        """
        if self.sample_rate < 1.0:
            self._check_labels(labels_b)
            self._sample_N = self._draw(distributed.all_gather_rows(labels_b.long()))

    def _draw(self, labels_G: Tensor) -> Tensor:
        start, stop = self.class_range
        key = derive_key("partial_fc", self.seed, self.optimizer_steps, len(self.pending))
        size = round(self.sample_rate * self.num_classes)
        rows_N = sample_classes(labels_G, self.num_classes, size, key, start, stop) - start
        if self._optimizer is not None:
            self._optimizer.catch_up(rows_N)
        return rows_N

    def forward(self, embeddings_bD: Tensor, labels_b: Tensor) -> Tensor:
        labels_b = labels_b.reshape(-1).long()
        if embeddings_bD.shape != (len(labels_b), self.embedding_dim):
            raise UserError(
                f"the head takes embeddings of shape ({len(labels_b)}, {self.embedding_dim}) for "
                f"{len(labels_b)} labels, got {tuple(embeddings_bD.shape)}"
            )
        self._check_labels(labels_b)
        if len(self.pending) >= _MAX_PENDING:
            raise UserError(
                f"{_MAX_PENDING} backward passes without an optimizer step: HeadSGD.step was not called"
            )
        loss: Tensor = _MarginSoftmax.apply(embeddings_bD.float(), self.weight, labels_b, self)
        return loss

    def _check_labels(self, labels_b: Tensor) -> None:
        if len(labels_b) == 0:
            raise UserError(
                "the head was given an empty batch; every rank needs the same number of rows, 1 or more"
            )
        if labels_b.device.type == "cpu":  # on a GPU this check would be a host sync
            low, high = int(labels_b.min()), int(labels_b.max())
            if low < 0 or high >= self.num_classes:
                raise UserError(f"label {low if low < 0 else high} is outside [0, {self.num_classes})")

    def _apply(self, fn: Any, recurse: bool = True) -> "PartialFC":
        """Moving to another device (``head.cuda()``) takes the work space along; the centres stay fp32."""
        super()._apply(fn, recurse)
        if self.weight.dtype != torch.float32:
            raise TypeError(
                f"the head's centres are fp32, {self.weight.dtype} is not supported; move it by device only"
            )
        if self.weight.device != self.workspace.device:
            if self._optimizer is not None:
                raise RuntimeError("move the head to its device before HeadSGD is made for it")
            self.workspace = Workspace(self.weight.device)
            self.products = Products(self.products.precision, self.weight.device)
        return self

    def tiles(self, rows_N: Tensor | None, batch_rows: int) -> Tiles:
        """Tiles over sampled rows, or all: sized so that a tile's intermediates fit the tile memory."""
        bytes_a_row = 4 * (2 * batch_rows + 2 * self.embedding_dim)
        tile_rows = max(64, int(self._tile_bytes / bytes_a_row))
        return Tiles(len(self.weight), rows_N, tile_rows, self.workspace)

    @property
    def shares_batch(self) -> bool:
        """Whether the shard sees the batches of all ranks."""
        return self.parallelism == "model" and distributed.world_size() > 1

    def score(self, embeddings_bD: Tensor, labels_b: Tensor) -> tuple[Tensor, Tensor, MicroBatch]:
        """Pass 1: the loss, d(loss * ranks) / d(embeddings) of shape (b, D), and what pass 2 needs."""
        ranks = distributed.world_size()
        norm_b1 = torch.linalg.vector_norm(embeddings_bD, dim=1, keepdim=True).clamp(min=NORM_FLOOR)
        unit_bD = embeddings_bD / norm_b1
        unit_BD, labels_B = unit_bD, labels_b
        if self.shares_batch:
            unit_BD, labels_B = distributed.all_gather_rows(unit_bD), distributed.all_gather_rows(labels_b)
        rows_N = None
        if self.sample_rate < 1.0:
            labels_G = labels_B if self.shares_batch else distributed.all_gather_rows(labels_b)
            rows_N = self._sample_N if self._sample_N is not None else self._draw(labels_G)
        row_B = labels_B - self.class_range[0]
        shift = static_shift(self.margin.scale, self.num_classes)
        sum_B, values_BD = pass_one(
            unit_BD, row_B, self.weight, self.tiles(rows_N, len(unit_BD)), self.margin, self.products, shift
        )

        # The targets, exactly: B rows in fp64 cost nothing and carry the whole margin.
        owned_B = (row_B >= 0) & (row_B < len(self.weight))
        if len(self.weight):
            target_BD = self.weight[row_B.clamp(0, len(self.weight) - 1)]
        else:  # more ranks than classes: this rank owns none
            target_BD = torch.zeros_like(unit_BD)
        target_BD = target_BD * inverse_norms(target_BD)[:, None]
        target_BD.masked_fill_(~owned_B[:, None], 0.0)
        cos_B = (unit_BD.double() * target_BD.double()).sum(1)
        if self.shares_batch:
            sum_B, cos_B = distributed.all_reduce_(torch.stack([sum_B, cos_B]))

        logit_B, slope_B = self.margin.target(cos_B)
        log_sum_B = sum_B.clamp(min=1e-300).log() + shift
        gap_B = log_sum_B - logit_B
        loss = softplus(gap_B).mean()
        q_B = torch.sigmoid(gap_B)
        log_share_B = -softplus(-gap_B) - log_sum_B  # log q - log S

        share_B1 = torch.exp(log_share_B + shift).float()[:, None]
        pull_B1 = (q_B * slope_B).float()[:, None]
        gradient_BD = values_BD.mul_(share_B1).sub_(target_BD * pull_B1)
        if self.shares_batch:
            gradient_bD = distributed.reduce_scatter_rows(gradient_BD)
        else:
            gradient_bD = gradient_BD
            loss = distributed.all_reduce_(loss, "mean")
        # Only the part across the embedding changes its direction; b rows here stand for b * ranks.
        gradient_bD -= (gradient_bD * unit_bD).sum(1, keepdim=True) * unit_bD
        gradient_bD *= self.margin.scale / (len(labels_b) * norm_b1)

        rows_of_all_ranks = len(labels_b) * ranks
        weight = torch.full((), 1.0 / rows_of_all_ranks, device=self.weight.device)
        batch = MicroBatch(unit_BD, row_B, log_share_B.float(), -pull_B1[:, 0], rows_N, weight)
        return loss.float(), gradient_bD, batch

    def end_step(self) -> None:
        """Forget the micro-batches and the sample of this step."""
        self.pending.clear()
        self._sample_N = None


class _MarginSoftmax(torch.autograd.Function):
    """Ties the two passes into autograd. The centres are an input, so that the loss asks for a gradient even
    of frozen embeddings, but their gradient is never made: backward files the micro-batch for pass 2."""

    @staticmethod
    def forward(
        ctx: Any, embeddings_bD: Tensor, weight_CD: Tensor, labels_b: Tensor, head: PartialFC
    ) -> Tensor:
        loss, gradient_bD, batch = head.score(embeddings_bD, labels_b)
        ctx.save_for_backward(gradient_bD)
        ctx.head, ctx.batch = head, batch
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, None]:
        (gradient_bD,) = ctx.saved_tensors
        batch: MicroBatch = ctx.batch
        ctx.head.pending.append(
            MicroBatch(
                batch.unit_BD,
                batch.row_B,
                batch.log_share_B,
                batch.target_B,
                batch.rows_N,
                batch.weight * grads[0],
            )
        )
        return gradient_bD * grads[0], None, None, None


def initial_centres(
    class_range: tuple[int, int], embedding_dim: int, seed: int, device: torch.device
) -> Tensor:
    """Rows ``class_range`` of the initial centres, N(0, 0.01), whatever the number of ranks: (C, D) fp32."""
    start, stop = class_range
    centres_CD = torch.empty(stop - start, embedding_dim, device=device)
    generator = torch.Generator(device)
    for chunk in range(start // _INIT_ROWS, -(-stop // _INIT_ROWS)):
        generator.manual_seed(derive_key("centres", seed, chunk))
        rows = torch.empty(_INIT_ROWS, embedding_dim, device=device).normal_(0, INIT_STD, generator=generator)
        first = chunk * _INIT_ROWS
        low, high = max(start, first), min(stop, first + _INIT_ROWS)
        centres_CD[low - start : high - start] = rows[low - first : high - first]
    return centres_CD
