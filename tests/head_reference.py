"""The dense fp64 oracle of the head, which everything is held to, and training of both on random embeddings.

Shapes: B = rows of the batch, C = classes, D = embedding columns.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from megaclass.heads.margins import BaseMargin, Margin, Samples
from megaclass.heads.margins.adaface import AdaFace
from megaclass.heads.margins.curricular import CurricularFace
from megaclass.heads.margins.elastic import ElasticArcFace, ElasticCosFace
from megaclass.heads.margins.magface import MagFace
from megaclass.heads.margins.per_class import ClassMargin
from megaclass.heads.partial_fc import PartialFC
from megaclass.heads.sgd import HeadSGD
from megaclass.parallel import groups
from megaclass.parallel.seeding import derive_key

INITIAL_FACTOR = 20.0


class Memory:
    """What margins remember, in their papers' words, and the draws of a step (B,)."""

    def __init__(self, draws: Tensor | None = None) -> None:
        self.mean, self.std, self.t = 20.0, 100.0, 0.0
        self.draws = draws

    def see(self, norms: Tensor, cosines: Tensor, rate: float) -> "Memory":
        """After another batch; AdaFace clips norms."""
        after, norms = Memory(self.draws), norms.clip(1e-3, 100)
        after.mean = rate * float(norms.mean()) + (1 - rate) * self.mean
        after.std = rate * float(norms.std()) + (1 - rate) * self.std
        after.t = rate * float(cosines.mean()) + (1 - rate) * self.t
        return after


def target_cosines(margin: BaseMargin, cos_B: Tensor, norms_B: Tensor, labels_B: Tensor, memory: Memory) -> Tensor:
    """Each margin as its paper writes it."""
    theta_B = torch.acos(cos_B.clamp(-1 + 1e-15, 1 - 1e-15))
    match margin:
        case Margin():
            return torch.cos(margin.m1 * theta_B + margin.m2) - margin.m3
        case AdaFace():
            z_B = ((norms_B.detach().clip(1e-3, 100) - memory.mean) / (memory.std + 1e-3) * margin.h).clip(-1, 1)
            g_angle_B, g_add_B = -margin.m * z_B, margin.m * z_B + margin.m
            return torch.cos((theta_B + g_angle_B).clip(1e-3, math.pi - 1e-3)) - g_add_B
        case ElasticCosFace():
            return cos_B - (margin.m + margin.std * memory.draws)
        case ElasticArcFace():
            return torch.cos(theta_B + margin.m + margin.std * memory.draws)
        case MagFace():
            a_B = norms_B.clip(margin.l_a, margin.u_a)
            m_B = (margin.u_m - margin.l_m) / (margin.u_a - margin.l_a) * (a_B - margin.l_a) + margin.l_m
            return torch.where(cos_B > 0, torch.cos(theta_B + m_B), cos_B)
        case CurricularFace() | ClassMargin():
            m_B = margin.m if isinstance(margin, CurricularFace) else margin.class_margins()[labels_B].double()
            m_B = torch.as_tensor(m_B, dtype=torch.float64)
            return torch.where(theta_B + m_B < math.pi, torch.cos(theta_B + m_B), cos_B - m_B * torch.sin(m_B))
    raise TypeError(margin)


def dense_loss(
    embeddings_BD: Tensor,
    labels_B: Tensor,
    centres_CD: Tensor,
    margin: BaseMargin,
    classes: Tensor | None = None,
    sub_centres: int = 1,
    memory: Memory | None = None,
) -> Tensor:
    """The head in its plainest form: mean cross-entropy over the batch, with the B x C logits in memory.

    classes: the sampled classes of Partial FC (int64, any order, all labels included); None takes all.
    sub_centres: how many consecutive rows are of a class; the nearest gives the logit. memory: before this batch.
    """
    memory, class_B = memory or Memory(), labels_B
    centres_CKD = centres_CD.double().view(-1, sub_centres, centres_CD.shape[1])
    if classes is not None:
        position_C = torch.full((len(centres_CKD),), -1, dtype=torch.int64)
        position_C[classes] = torch.arange(len(classes))
        centres_CKD, labels_B = centres_CKD[classes], position_C[labels_B]
    of_all_BCK = torch.einsum("bd,ckd->bck", normalize(embeddings_BD.double()), normalize(centres_CKD, dim=2))
    cos_BC = of_all_BCK.max(2).values
    is_target_BC = torch.zeros_like(cos_BC, dtype=torch.bool).scatter_(1, labels_B[:, None], True)
    cos_B, norms_B = cos_BC[is_target_BC], embeddings_BD.double().norm(dim=1)
    memory = memory.see(norms_B.detach(), cos_B.detach(), getattr(margin, "t_alpha", 0.0))
    target_B = target_cosines(margin, cos_B, norms_B, class_B, memory)
    if not margin.is_exact:
        target_B = cos_B + (target_B - cos_B).detach()
    negative_BC = cos_BC
    if isinstance(margin, CurricularFace):
        hard_BC = cos_BC > torch.cos(torch.acos(cos_B) + margin.m)[:, None]
        negative_BC = torch.where(hard_BC, cos_BC * (memory.t + cos_BC), cos_BC)
    logits_BC = margin.scale * torch.where(is_target_BC, target_B[:, None], negative_BC)
    if margin.filter_threshold:
        logits_BC = logits_BC.masked_fill(~is_target_BC & (cos_BC > margin.filter_threshold), -torch.inf)
    loss = cross_entropy(logits_BC, labels_B)
    if isinstance(margin, MagFace):
        a_B = norms_B.clip(margin.l_a, margin.u_a)
        loss = loss + margin.lambda_g * (a_B / margin.u_a**2 + 1 / a_B).mean()
    return loss


@dataclass(frozen=True)
class Case:
    margin: BaseMargin = field(default_factory=Margin)
    num_classes: int = 67
    dim: int = 24
    batch: int = 12  # all ranks, all micro-batches
    accumulation: int = 1
    sample_rate: float = 1.0
    parallelism: str = "model"
    shard_group: str = "world"
    steps: int = 20
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-2  # large, so that an error in it shows
    tile_mb: float = 0.0
    precision: str = "fp32"
    storage: str = "fp32"
    kernels: str = "auto"
    recompute: str = "auto"
    sub_centres: int = 1
    device: str = "cpu"


@dataclass
class Trace:
    """Per step: losses, embedding gradients (batch, D), classes sampled; and the centres at the end."""

    losses: list[float]
    gradients: list[Tensor]
    samples: list[Tensor | None]
    centres: Tensor
    momentum: Tensor
    running: list[float] = field(default_factory=list)


def step_input(case: Case, step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 + step)
    embeddings = torch.randn(case.batch, case.dim, generator=generator) * 3
    # Few distinct labels: the same class occurs twice in a batch, and others go untouched for long.
    labels = torch.randint(0, case.num_classes, (case.batch,), generator=generator)
    labels[1] = labels[0]
    return embeddings, labels


def train_ours(case: Case) -> Trace:
    """Every rank takes its rows of each micro-batch; gradients and centres are gathered on all ranks."""
    ranks, rank = groups.world_size(), groups.rank()
    head = PartialFC(
        case.num_classes,
        case.dim,
        margin=case.margin,
        sample_rate=case.sample_rate,
        parallelism=case.parallelism,
        shard_group=case.shard_group,
        tile_mb=case.tile_mb,
        precision=case.precision,
        storage=case.storage,
        kernels=case.kernels,
        recompute=case.recompute,
        sub_centres=case.sub_centres,
        device=case.device,
    )
    # Centres of length about 1: from the initial 0.05 the first steps overshoot, and in a chaotic run fp32
    # rounding grows past 1e-5 in a dense fp32 softmax as well.
    head.shard.centres.put(slice(None), head.centres() * INITIAL_FACTOR)
    optimizer = HeadSGD(head, lr=case.lr, momentum=case.momentum, weight_decay=case.weight_decay)
    trace = Trace([], [], [], torch.empty(0), torch.empty(0))
    for step in range(case.steps):
        optimizer.param_groups[0]["lr"] = case.lr * (1 + step % 3)  # a moving rate, as schedules have
        embeddings, labels = (tensor.to(case.device) for tensor in step_input(case, step))
        mine = torch.arange(case.batch).view(case.accumulation, ranks, -1)[:, rank]
        head.draw(labels[mine.flatten()])
        leaf = embeddings.clone().requires_grad_()
        loss = torch.zeros((), device=case.device)
        for rows in mine:
            micro_loss = head(leaf[rows], labels[rows]) / case.accumulation
            micro_loss.backward()
            loss += micro_loss.detach()
        trace.losses.append(float(loss.detach()))
        # The head multiplies by the number of ranks for DistributedDataParallel's mean: undo it here.
        trace.gradients.append(groups.all_ranks().all_reduce_(leaf.grad.clone()).cpu() / ranks)
        rows_N = head.pending[-1].active.rows_N
        trace.samples.append(None if rows_N is None else _gather(rows_N + head.row_range[0], head))
        optimizer.step()
    trace.running = head.margin_state.tolist()
    optimizer.catch_up()
    trace.centres = _gather(head.centres(), head)
    momentum = head.shard.momentum
    trace.momentum = _gather(torch.empty(0) if momentum is None else momentum.fp32(), head)
    return trace


def _gather(rows: Tensor, head: PartialFC) -> Tensor:
    """Of all classes: the rows of one shard group, which the others hold to the bit."""
    parts, size = groups.gather_objects(rows.cpu()), head.grouping.within.size
    assert all(torch.equal(part, parts[i % size]) for i, part in enumerate(parts))
    return torch.cat(parts[:size])


def train_oracle(case: Case, samples: list[Tensor | None], optimizer: type = torch.optim.SGD) -> Trace:
    """One process, fp64, torch.optim.SGD or another on a dense weight, on the same samples."""
    head = PartialFC(case.num_classes, case.dim, device=case.device, sub_centres=case.sub_centres)
    initial = head.weight.detach().cpu()
    centres = (initial * INITIAL_FACTOR).double().requires_grad_()
    sgd = optimizer([centres], momentum=case.momentum, weight_decay=case.weight_decay, lr=case.lr)
    trace, memory = Trace([], [], samples, torch.empty(0), torch.empty(0)), Memory()
    for step in range(case.steps):
        sgd.param_groups[0]["lr"] = case.lr * (1 + step % 3)
        embeddings, labels = step_input(case, step)
        leaf, before = embeddings.double().requires_grad_(), centres.detach()
        key = derive_key("margin", 0, step)
        draws = Samples(labels, key=key).normals().view(case.accumulation, -1)
        classes = samples[step]
        if classes is not None:  # rows, of whole classes
            classes = classes.view(-1, case.sub_centres)[:, 0] // case.sub_centres
        sgd.zero_grad()
        trace.losses.append(0.0)
        for i, rows in enumerate(torch.arange(case.batch).view(case.accumulation, -1)):
            memory.draws = draws[i]
            micro = leaf[rows], labels[rows], centres, case.margin, classes, case.sub_centres, memory
            loss = dense_loss(*micro) / case.accumulation
            loss.backward()
            trace.losses[-1] += float(loss.detach())
        with torch.no_grad():
            own_BKD = normalize(before.view(-1, case.sub_centres, case.dim)[labels], dim=2)
            cosines = (normalize(leaf)[:, None] * own_BKD).sum(2).amax(1)
            memory = memory.see(leaf.norm(dim=1), cosines, getattr(case.margin, "t_alpha", 0.0))
        sgd.step()
        trace.gradients.append(leaf.grad)
    trace.centres = centres.detach()
    trace.momentum = sgd.state[centres].get("momentum_buffer", torch.empty(0))
    trace.running = {AdaFace: [memory.mean, memory.std], CurricularFace: [memory.t]}.get(type(case.margin), [])
    return trace


def relative_error(ours: Tensor, reference: Tensor) -> float:
    return float((ours.double() - reference).norm() / reference.norm())


def assert_agrees(ours: Trace, oracle: Trace, tolerance: float = 1e-5) -> None:
    """Losses, embedding gradients, centres and momentum within a relative error."""
    losses, reference = torch.tensor(ours.losses), torch.tensor(oracle.losses, dtype=torch.float64)
    assert relative_error(losses, reference) < tolerance
    for step, (a, b) in enumerate(zip(ours.gradients, oracle.gradients, strict=True)):
        assert relative_error(a, b) < tolerance, f"embedding gradient of step {step}"
    assert relative_error(ours.centres, oracle.centres) < tolerance
    assert relative_error(ours.momentum, oracle.momentum) < tolerance
    torch.testing.assert_close(ours.running, oracle.running, rtol=tolerance, atol=tolerance)
