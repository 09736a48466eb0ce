"""What every margin is: options, and what becomes of the logit of the true class.

Shapes: B = rows of the batch that the shard sees, S = running numbers, C = classes, T = rows of a tile.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from megaclass.config.checks import check_alone
from megaclass.parallel.seeding import mix32

# Up to here one static shift keeps both ends of exp within fp32, see static_shift.
MAX_SCALE = 75.0

# Keeps sin(theta) away from 0 in the exact gradient; below this angle (0.026 degrees) the slope is held.
_COS_LIMIT = 1.0 - 1e-7
_NONE = torch.empty(0)
_LIMITS = {"scale": (math.ulp(0.0), MAX_SCALE), "filter_threshold": (-1.0, 1.0)}


@dataclass(frozen=True)
class Samples:
    """What a margin may ask of a micro-batch, the same on every rank of the shard group.

    labels_B: int64. norms_B: lengths of the embeddings, fp64, of a margin that ``needs_norms``. margins_B: of their
    classes, fp64, of one with ``class_margins``. state_S: the running numbers, fp64, this micro-batch taken in. key: of
    seed and step. first: the place of the first sample in the global batch of the step.
    """

    labels_B: Tensor
    norms_B: Tensor = _NONE
    margins_B: Tensor = _NONE
    state_S: Tensor = _NONE
    key: int = 0
    first: int = 0

    def normals(self) -> Tensor:
        """A draw of N(0, 1) for each, fp64 (B,), by seed, step and place in the global batch alone (Box and Muller)."""
        place_B = torch.arange(self.first, self.first + len(self.labels_B), device=self.labels_B.device)
        keys = self.key & 0x7FFFFFFF, self.key >> 31 & 0x7FFFFFFF
        u_B, v_B = ((mix32(place_B, key).double() + 0.5) * 2.0**-32 for key in keys)
        return torch.sqrt(-2.0 * torch.log(u_B)) * torch.cos(2.0 * math.pi * v_B)


class Target(NamedTuple):
    """Of each sample, all (B,) fp64: the logit of its class, scale included, and d(logit / scale) / d(cos). Of a margin
    that ``needs_norms``: d(logit) / d(norm), a summand of the loss, and its derivative."""

    logit_B: Tensor
    slope_B: Tensor
    norm_slope_B: Tensor | float = 0.0
    penalty_B: Tensor | float = 0.0
    penalty_slope_B: Tensor | float = 0.0


@dataclass(frozen=True, kw_only=True)
class BaseMargin:
    """The numbers among a subclass's fields are its own options.

    gradient: of the target's logit by the cosine, where an arc cosine lies between: ``straight_through`` takes it as 1,
        ``exact`` as it is, ``auto`` as the margin's published code does.
    filter_threshold: a negative whose cosine is above it leaves the sum (inter-class filtering, against
        mislabelled identities); 0 switches it off.
    """

    scale: float = 64.0
    gradient: str = "auto"
    filter_threshold: float = 0.0

    published: ClassVar[str] = "exact"  # what auto stands for
    limits: ClassVar[dict[str, tuple[float, float]]] = {}  # of options
    needs_norms: ClassVar[bool] = False
    reweighs: ClassVar[bool] = False  # negatives too: has ``bound`` and ``reweigh_``

    def __post_init__(self) -> None:
        check_alone("head.gradient", self.gradient)
        for name, (low, high) in (_LIMITS | self.limits).items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} must lie in [{low:g}, {high:g}], got {getattr(self, name)}")

    @property
    def threshold(self) -> float:
        """The logit above which a negative leaves the sum."""
        return self.scale * self.filter_threshold if self.filter_threshold else math.inf

    @property
    def largest(self) -> float:
        """Of what a |logit| can be."""
        return self.scale

    @property
    def is_exact(self) -> bool:
        return (self.published if self.gradient == "auto" else self.gradient) == "exact"

    def target(self, cos_B: Tensor, samples: Samples) -> Target:
        """By the cosines (fp64). Each rank computes it for the samples of all: a draw comes from ``samples`` alone."""
        raise NotImplementedError

    def class_margins(self) -> Tensor:
        """A margin for each class, fp32 (C,); of nobody where these are none."""
        return _NONE

    def bound(self, cos_B: Tensor, samples: Samples) -> Self:
        """Itself, to reweigh the negatives of samples with these cosines."""
        return self

    def reweigh_(self, logits_TB: Tensor, rise_TB: Tensor, scratch_TB: Tensor) -> None:
        """Change the logits of negatives; ``rise`` takes d(new logit) / d(old logit) - 1."""

    def arc(self, cos_B: Tensor, margin_B: Tensor | float, factor: float = 1.0) -> tuple[Tensor, Tensor]:
        """``cos(factor * theta + margin)``, (B,), and its slope.

        The exact one is ``factor * sin(factor * theta + margin) / sin(theta)``: it grows without bound as theta goes
        to 0 and is negative beyond pi - margin.
        """
        theta_B = torch.acos(cos_B.clamp(-1.0, 1.0))
        moved_B = torch.cos(factor * theta_B + margin_B)
        if not self.is_exact:
            return moved_B, torch.ones_like(cos_B)
        theta_B = torch.acos(cos_B.clamp(-_COS_LIMIT, _COS_LIMIT))
        return moved_B, factor * torch.sin(factor * theta_B + margin_B) / torch.sin(theta_B)

    def falling_arc(self, cos_B: Tensor, margin_B: Tensor) -> tuple[Tensor, Tensor]:
        """The same, but ``cos(theta) - margin * sin(margin)`` beyond pi - margin, as the first ArcFace had it."""
        moved_B, slope_B = self.arc(cos_B, margin_B)
        inside_B = cos_B > -torch.cos(margin_B)
        below_B = cos_B - margin_B * torch.sin(margin_B)
        return torch.where(inside_B, moved_B, below_B), torch.where(inside_B, slope_B, 1.0)


@dataclass(frozen=True, kw_only=True)
class RunningMargin(BaseMargin):
    """One with numbers that run along: ``t_alpha`` of a step's, the rest as it was. They are the mean of what it
    observes of all samples of a step, on all ranks, and the deviation where ``state``, their beginning, has two."""

    t_alpha: float = 0.01

    limits: ClassVar[dict[str, tuple[float, float]]] = {"t_alpha": (0, 1)}
    state: ClassVar[tuple[float, ...]] = (0.0,)

    def observe(self, cos_B: Tensor, norms_B: Tensor) -> Tensor:
        raise NotImplementedError

    def advance(self, state_S: Tensor, sums_3: Tensor) -> Tensor:
        """By the number, the sum and the sum of squares of what it has observed, fp64."""
        count, total, squares = sums_3
        variance = (squares - total.square() / count) / (count - 1).clamp(min=1)
        now_2 = torch.stack([total / count, variance.clamp(min=0).sqrt()])
        return state_S.double().lerp(now_2[: len(state_S)], self.t_alpha)


def static_shift(largest: float, num_classes: int) -> float:
    """What is subtracted from every logit before exp so that fp32 sums cannot overflow.

    |logit| <= largest, so no running maximum is needed: the sum stays below num_classes * e^(largest - shift) =
    e^87. With ``MAX_SCALE`` and 1e8 classes the smallest term is e^-82: nothing underflows either.
    """
    return max(0.0, largest + math.log(num_classes) - 87.0)
