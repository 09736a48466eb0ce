"""The margin head: a softmax over class centres sharded over ranks, sampled or full.

    head = PartialFC(num_classes, embedding_dim, margin=ArcFace(), sample_rate=0.1)
    optimizer = HeadSGD(head, lr=0.1)
    loss = head(embeddings, labels)
    loss.backward()       # gives the embeddings their gradient
    optimizer.step()      # the second pass over the classes: gives the centres theirs, and applies it

Model parallelism (Partial FC, An et al., CVPR 2022, arXiv:2203.15565): the ranks of a shard group, all or those of a
node, own a contiguous range of classes each and see the batches of the group. Data parallelism: each rank is a
shard group of its own, holds every class and sees its own part of the batch. Ranks of the same range in different
groups are replicas, which sum their gradients. All give the gradients of one process on the global batch.

Shapes: b = rows of this rank's batch, B = rows that the shard sees, G = rows of all ranks, C = rows of the shard,
D = embedding columns.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from megaclass.errors import UserError
from megaclass.heads.margins import BaseMargin, Margin, RunningMargin, Samples, static_shift
from megaclass.heads.sampling import sample_classes
from megaclass.heads.shard import Shard, draw_centres, make_engine
from megaclass.heads.step import NORM_FLOOR, ActiveRows, HeadOptions, MicroBatch, SGDStep, inverse_norms
from megaclass.heads.storage import Rows, Storage
from megaclass.parallel.groups import Group, Grouping, all_ranks
from megaclass.parallel.seeding import derive_key

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
        group: the ranks of the job, which make the same calls; None: all of the world.
        options: the fields of :class:`HeadOptions`, such as ``storage="bf16"``.

    Attributes:
        weight: the centres of this rank as they are stored, (C, D); :meth:`centres` gives them in fp32. It
            never receives a dense ``.grad``: use :class:`megaclass.heads.sgd.HeadSGD`. With K sub-centres those of
            class c are the rows c * K .. c * K + K - 1 of all ranks.
        weight_scale: with 8-bit storage, the fp32 scale of each row (C,).
        margin_state: the running numbers of the margin, fp32 (S,), the same on every rank.
        class_range, row_range: the half-open ranges of classes, and of rows, that this rank owns.
        shard: what owns these rows and computes on them.
    """

    weight_scale: Tensor | None
    margin_state: Tensor
    class_margins: Tensor

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int = 512,
        *,
        margin: BaseMargin | None = None,
        sample_rate: float = 1.0,
        seed: int = 0,
        device: torch.device | str = "cpu",
        group: Group | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if num_classes < 1 or embedding_dim < 1:
            raise ValueError(f"num_classes and embedding_dim must be positive: {num_classes}, {embedding_dim}")
        if not 0.0 < sample_rate <= 1.0:
            raise ValueError(f"sample_rate must lie in (0, 1], got {sample_rate}")
        self.num_classes, self.embedding_dim = num_classes, embedding_dim
        self.margin = margin or Margin()
        self.sample_rate, self.seed = sample_rate, seed
        self.options = HeadOptions(**options)
        self.storage = Storage.named(self.options.storage)
        self._group = group
        self.class_range = self.grouping.within.share(num_classes)
        start, stop = self.row_range
        centres = Rows.zeros(stop - start, embedding_dim, self.storage.dtype, torch.device(device))
        draw_centres(centres, start, seed)
        self.weight = nn.Parameter(centres.data, requires_grad=centres.data.is_floating_point())
        self.register_buffer("weight_scale", centres.scale)
        margins_C, state = self.margin.class_margins(), getattr(self.margin, "state", ())
        if len(margins_C) not in (0, num_classes):
            raise UserError(
                f"head.class_margins: {len(margins_C)} margins for {num_classes} classes; one each is needed"
            )
        self.register_buffer("class_margins", margins_C.to(device), persistent=False)
        self.register_buffer("margin_state", torch.tensor(state, device=device), persistent=bool(state))
        self.register_state_dict_pre_hook(_bring_up_to_date)
        self.register_load_state_dict_pre_hook(_take_any_storage)
        self._begin()

    @property
    def grouping(self) -> Grouping:
        """``within``: the ranks that share the classes; ``across``: the replicas, which hold the same ones."""
        unit = "rank" if self.options.parallelism == "data" else self.options.shard_group
        return (self._group or all_ranks()).split(unit)

    @property
    def num_rows(self) -> int:
        """Of all ranks."""
        return self.num_classes * self.options.sub_centres

    @property
    def row_range(self) -> tuple[int, int]:
        start, stop = self.class_range
        return start * self.options.sub_centres, stop * self.options.sub_centres

    def _begin(self) -> None:
        """Make what owns the rows, and computes on them on the device where they are now; no step is in progress."""
        centres = Rows(self.weight.data, self.weight_scale)
        is_sampled, device = self.sample_rate < 1.0, centres.data.device
        engine = make_engine(self.options, self.storage, self.embedding_dim, device, is_sampled)
        self.shard = Shard(centres, engine, self.row_range[0], self.seed, is_sampled)
        self.pending: list[MicroBatch] = []  # since the last optimizer step
        self._active: ActiveRows | None = None  # the rows of this step, where it has drawn a sample

    def extra_repr(self) -> str:
        return (
            f"num_classes={self.num_classes}, embedding_dim={self.embedding_dim}, sample_rate={self.sample_rate}, "
            f"{self.options}, {self.margin}"
        )

    # -- pass 1 ---------------------------------------------------------------------------------------

    def draw(self, labels_b: Tensor) -> None:
        """Fix this step's sample from all its labels, before the first of several micro-batches.

        With gradient accumulation this makes k micro-batches score the classes that one large batch would;
        without it each micro-batch draws its own sample. Does nothing at ``sample_rate`` 1.
        """
        if self.sample_rate < 1.0:
            self._check_labels(labels_b)
            self._active = self._draw((self._group or all_ranks()).all_gather_rows(labels_b.long()))

    def _draw(self, labels_G: Tensor) -> ActiveRows:
        start, stop = self.class_range
        key = derive_key("partial_fc", self.seed, self.shard.steps, len(self.pending))
        size = round(self.sample_rate * self.num_classes)
        walker = self.shard.engine.walker
        classes_N = sample_classes(labels_G, self.num_classes, size, key, start, stop, walker)
        return self.shard.activate(self._rows_of(classes_N - start))

    def _rows_of(self, classes_N: Tensor) -> Tensor:
        """All rows of these classes of the shard, sorted as they are."""
        if (count := self.options.sub_centres) == 1:
            return classes_N
        return (classes_N[:, None] * count + torch.arange(count, device=classes_N.device)).flatten()

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
                f"{_MAX_PENDING} backward passes without a step of the head's own optimizer, HeadSGD(head, lr=...): "
                "its centres do not move by any other"
            )
        anchor = torch.zeros((), requires_grad=True)
        loss: Tensor = _MarginSoftmax.apply(embeddings_bD.float(), anchor, labels_b, self)
        return loss

    def _check_labels(self, labels_b: Tensor) -> None:
        if len(labels_b) == 0:
            raise UserError("the head was given an empty batch; every rank needs the same number of rows, 1 or more")
        if labels_b.device.type == "cpu":
            low, high = int(labels_b.min()), int(labels_b.max())
            if low < 0 or high >= self.num_classes:
                raise UserError(f"label {low if low < 0 else high} is outside [0, {self.num_classes})")
        else:  # reading would be a host sync: the device stops, with this message, and the next sync raises
            inside_b = labels_b.clamp(0, self.num_classes - 1) == labels_b
            torch._assert_async(inside_b.all(), f"a label is outside [0, {self.num_classes})")

    def score(self, embeddings_bD: Tensor, labels_b: Tensor) -> tuple[Tensor, Tensor, MicroBatch]:
        """The loss, d(loss * ranks) / d(embeddings) of shape (b, D), and what pass 2 needs."""
        sharers, replicas = self.grouping.within, self.grouping.across
        norm_b1 = torch.linalg.vector_norm(embeddings_bD, dim=1, keepdim=True).clamp(min=NORM_FLOOR)
        unit_bD = embeddings_bD / norm_b1
        unit_BD, labels_B = sharers.all_gather_rows(unit_bD), sharers.all_gather_rows(labels_b)
        active = self._rows_of_step(labels_B, replicas)
        row_B = labels_B * self.options.sub_centres - self.row_range[0]
        norms_B = sharers.all_gather_rows(norm_b1[:, 0]) if self.margin.needs_norms else norm_b1

        # The targets, exactly: B rows in fp64 cost nothing and carry the whole margin.
        row_B, target_BD, cos_B = self._nearest_targets(unit_BD, row_B, active)
        margin = self.margin
        if margin.reweighs:  # pass 1 depends on the targets of all
            cos_B = sharers.all_reduce_(cos_B)
            samples, observed_3 = self._samples(labels_B, norms_B, cos_B)
            margin = margin.bound(cos_B, samples)
        shift = static_shift(margin.largest, self.num_classes)
        sum_B, values_BD, kept = self.shard.engine.pass_one(unit_BD, row_B, active, margin, shift)
        if margin.reweighs:
            sum_B = sharers.all_reduce_(sum_B)
        else:
            sum_B, cos_B = sharers.all_reduce_(torch.stack([sum_B, cos_B]))
            samples, observed_3 = self._samples(labels_B, norms_B, cos_B)
        target = margin.target(cos_B, samples)
        log_sum_B = sum_B.clamp(min=1e-300).log() + shift
        gap_B = log_sum_B - target.logit_B
        loss = (softplus(gap_B) + target.penalty_B).mean()
        q_B = torch.sigmoid(gap_B)
        log_share_B = -softplus(-gap_B) - log_sum_B  # log q - log S

        share_B1 = torch.exp(log_share_B + shift).float()[:, None]
        pull_B1 = (q_B * target.slope_B).float()[:, None]
        gradient_BD = values_BD.mul_(share_B1).sub_(target_BD * pull_B1)
        gradient_bD = sharers.reduce_scatter_rows(gradient_BD)
        loss = replicas.all_reduce_(loss, "mean")
        # Only the part across the embedding changes its direction; b rows here stand for b * ranks.
        gradient_bD -= (gradient_bD * unit_bD).sum(1, keepdim=True) * unit_bD
        gradient_bD *= self.margin.scale / (len(labels_b) * norm_b1)
        if margin.needs_norms:  # and that along it its length
            along_B = (target.penalty_slope_B - q_B * target.norm_slope_B).float() / len(labels_b)
            gradient_bD.addcmul_(unit_bD, along_B.view(sharers.size, -1, 1)[sharers.rank])

        weight = torch.full((), 1.0 / (len(labels_B) * replicas.size), device=unit_BD.device)
        batch = MicroBatch(
            unit_BD, row_B, log_share_B.float(), -pull_B1[:, 0], active, weight, shift, kept, margin, observed_3
        )  # fmt: skip
        return loss.float(), gradient_bD, batch

    def _samples(self, labels_B: Tensor, norms_B: Tensor, cos_B: Tensor) -> tuple[Samples, Tensor | None]:
        """What the margin may ask for, and what its running numbers advance by."""
        margin, state_S, observed_3 = self.margin, self.margin_state, None
        replicas, norms_B, margins_B = self.grouping.across, norms_B.double(), self.class_margins
        if isinstance(margin, RunningMargin):
            seen_B = margin.observe(cos_B, norms_B)
            observed_3 = torch.stack([torch.ones_like(seen_B).sum(), seen_B.sum(), seen_B.square().sum()])
            state_S = margin.advance(state_S, replicas.all_reduce_(observed_3))
        if len(margins_B):
            margins_B = margins_B[labels_B].double()
        earlier = sum(len(batch.unit_BD) for batch in self.pending) * replicas.size
        key, first = derive_key("margin", self.seed, self.shard.steps), replicas.rank * len(labels_B)
        return Samples(labels_B, norms_B, margins_B, state_S, key, earlier + first), observed_3

    def _rows_of_step(self, labels_B: Tensor, replicas: Group) -> ActiveRows:
        """Those that were drawn for the step, else those that this micro-batch draws; all at rate 1."""
        if self._active is not None:
            self._active = self.shard.ready(self._active)
            return self._active
        if self.sample_rate < 1.0:
            return self._draw(replicas.all_gather_rows(labels_B))
        return self.shard.activate(None)

    def _nearest_targets(self, unit_BD: Tensor, row_B: Tensor, active: ActiveRows) -> tuple[Tensor, Tensor, Tensor]:
        """Of the targets' classes, whose first rows are given, the rows nearest to the embeddings: which they are,
        normalised (B, D) fp32, and their cosines in fp64; 0 where another rank owns them."""
        target_BD = self._unit_targets(row_B, active)
        cos_B = (unit_BD.double() * target_BD.double()).sum(1)
        nearest_B = row_B
        for k in range(1, self.options.sub_centres):
            other_BD = self._unit_targets(row_B + k, active)
            other_B = (unit_BD.double() * other_BD.double()).sum(1)
            nearer_B = other_B > cos_B
            nearest_B, cos_B = torch.where(nearer_B, row_B + k, nearest_B), cos_B.maximum(other_B)
            target_BD = torch.where(nearer_B[:, None], other_BD, target_BD)
        return nearest_B, target_BD, cos_B

    def _unit_targets(self, row_B: Tensor, active: ActiveRows) -> Tensor:
        """The normalised centres of the labels, (B, D) fp32; 0 where another rank owns them."""
        position_B = active.positions(row_B)
        owned_B = position_B >= 0
        if row_B.device.type == "cpu":  # on a GPU this check would be a host sync
            missing_B = (row_B >= 0) & (row_B < len(self.weight)) & ~owned_B
            if missing_B.any():
                label = (int(row_B[missing_B][0]) + self.row_range[0]) // self.options.sub_centres
                raise UserError(f"label {label} is not in the sample that was drawn: draw with this step's labels")
        if len(active) == 0:  # more ranks than classes: this rank owns none
            return torch.zeros(len(row_B), self.embedding_dim, device=row_B.device)
        target_BD = active.centres_at(position_B.clamp(min=0))
        target_BD = target_BD * inverse_norms(target_BD)[:, None]
        return target_BD.masked_fill_(~owned_B[:, None], 0.0)

    # -- pass 2, which HeadSGD calls ------------------------------------------------------------------

    @torch.no_grad()
    def update(self, sgd: SGDStep, grad_scale: Tensor | None = None, found_inf: Tensor | None = None) -> None:
        """One step of the centres by the micro-batches since the last one, which it consumes.

        grad_scale: what the losses were multiplied by. found_inf: a loss scaler's, above 0 to skip the step. A step
        with micro-batches that are not finite is skipped too, alike on every rank.
        """
        if self.pending:
            batches = self.pending
            if grad_scale is not None:
                batches = [replace(batch, weight=batch.weight / grad_scale) for batch in batches]
            replicas = self.grouping.across
            # The centres have no ``.grad`` in which a scaler could look.
            looked_at = [t for b in batches for t in (b.weight, b.log_share_B, b.target_B)]
            bad = ~torch.stack([torch.isfinite(t).all() for t in looked_at]).all()
            if found_inf is not None:
                bad = bad | (found_inf > 0)  # a scaler that has seen no gradient says the number 0
            # Replicas have looked at different parts of the batch.
            skipped = replicas.all_reduce_(bad.float(), "max") > 0
            self.shard.update(batches, self.margin, sgd, skipped, replicas)
            observed = [b.observed_3 for b in batches if b.observed_3 is not None]
            if isinstance(self.margin, RunningMargin):
                state_S = self.margin.advance(self.margin_state, torch.stack(observed).sum(0))
                self.margin_state.copy_(torch.where(skipped, self.margin_state, state_S))
        self.end_step()

    def end_step(self) -> None:
        """Forget the micro-batches and the sample of this step."""
        self.pending.clear()
        self._active = None

    # -- state ----------------------------------------------------------------------------------------

    def centres(self, rows: slice | Tensor = slice(None)) -> Tensor:
        """A copy of rows of this rank's centres, (N, D) fp32, whatever their storage.

        What sampled steps left out is still owed: ``HeadSGD.catch_up`` brings all rows up to date.
        """
        return self.shard.centres.fp32(rows)

    def _apply(self, fn: Any, recurse: bool = True) -> "PartialFC":
        """Moving to another device (``head.cuda()``) takes the work space along; the storage stays."""
        before = self.weight.device
        probes = [t.new_empty(0) for t in self.shard.centres.tensors.values()]
        if any(fn(probe).dtype != probe.dtype for probe in probes):
            raise TypeError(
                f"the storage of the head's centres is {self.options.storage}: move it by device only, and choose "
                "the type by storage="
            )
        if fn(probes[0]).device != before and (self.shard.momentum is not None or self.shard.steps):
            raise RuntimeError("move the head to its device before HeadSGD is made for it")
        super()._apply(fn, recurse)
        if self.weight.device == before:
            self.shard.centres = Rows(self.weight.data, self.weight_scale)
        else:
            self._begin()
        return self

    def __getstate__(self) -> dict[str, Any]:
        """For ``copy.deepcopy`` and pickle: the centres, up to date, without the step in progress and the momentum,
        which is HeadSGD's."""
        self.shard.catch_up()
        kept = {key: v for key, v in self.__dict__.items() if key not in ("shard", "pending", "_active")}
        return kept | {"steps": self.shard.steps}

    def __setstate__(self, state: dict[str, Any]) -> None:
        steps = state.pop("steps")
        super().__setstate__(state)
        self._begin()
        self.shard.restored(steps)


def _bring_up_to_date(head: PartialFC, *_: Any) -> None:
    """Before a state dict is made."""
    head.shard.catch_up()


def _take_any_storage(head: PartialFC, state_dict: dict[str, Any], prefix: str, metadata: dict, *_: Any) -> None:
    """Before one is loaded: centres of any storage are taken, fp32 ones of arcface_torch too, rounded where theirs is
    another."""
    if metadata.get("assign_to_params_buffers"):
        raise UserError("load_state_dict(assign=True): the head's tables are copied into, not replaced")
    ours, weight = head.shard.centres, state_dict.get(f"{prefix}weight")
    head.shard.catch_up()  # or what rows owe would move the centres that now come
    if weight is not None and weight.shape == ours.data.shape:
        ours.take(Rows(weight, state_dict.pop(f"{prefix}weight_scale", None)))
        state_dict[f"{prefix}weight"] = ours.data
        if ours.scale is not None:
            state_dict[f"{prefix}weight_scale"] = ours.scale
    if len(head.margin_state):
        state_dict.setdefault(f"{prefix}margin_state", head.margin_state)


class _MarginSoftmax(torch.autograd.Function):
    """Ties the two passes into autograd. The gradient of the centres is never made: backward files the
    micro-batch for pass 2. ``anchor`` wants a gradient, so that the loss does even for frozen embeddings."""

    @staticmethod
    def forward(ctx: Any, embeddings_bD: Tensor, anchor: Tensor, labels_b: Tensor, head: PartialFC) -> Tensor:
        loss, gradient_bD, batch = head.score(embeddings_bD, labels_b)
        ctx.save_for_backward(gradient_bD)
        ctx.head, ctx.batch = head, batch
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, None]:
        (gradient_bD,) = ctx.saved_tensors
        batch: MicroBatch = ctx.batch
        ctx.head.pending.append(replace(batch, weight=batch.weight * grads[0]))
        ctx.batch = replace(batch, kept=None)  # a loss that outlives the step must not hold it
        return gradient_bD * grads[0], None, None, None
