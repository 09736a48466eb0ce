"""CurricularFace: hard negatives count more as training goes on."""

from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from megaclass.heads.margins.base import RunningMargin, Samples, Target


@dataclass(frozen=True, kw_only=True)
class CurricularFace(RunningMargin):
    """Adaptive curriculum (Huang et al., CVPR 2020, arXiv:2004.00288, section 3.2; HuangYG123/CurricularFace).

    The target is ``cos(theta + m)``; a negative with ``c > cos(theta + m)`` counts as ``c * (t + c)``, where ``t`` runs
    along: ``t_alpha`` of the targets' mean cosine over the batch, the rest as it was, from 0 on; without gradient.

    Differs: a batch is that of all ranks and micro-batches. Where Triton kernels are used they leave this margin to
    plain PyTorch, which is slower, and waits for the device once a micro-batch.
    """

    m: float = 0.5
    hard: tuple[Tensor, float] = field(default=(torch.empty(0), 0.0), repr=False, compare=False)  # limits, t

    limits: ClassVar[dict[str, tuple[float, float]]] = RunningMargin.limits | {"m": (0, 2)}
    reweighs: ClassVar[bool] = True

    @property
    def largest(self) -> float:
        return self.scale * (1 + abs(self.hard[1]))

    def observe(self, cos_B: Tensor, norms_B: Tensor) -> Tensor:
        return cos_B.clamp(-1, 1)

    def target(self, cos_B: Tensor, samples: Samples) -> Target:
        moved_B, slope_B = self.falling_arc(cos_B, torch.full_like(cos_B, self.m))
        return Target(self.scale * moved_B, slope_B)

    def bound(self, cos_B: Tensor, samples: Samples) -> Self:
        limit_B = self.scale * self.arc(cos_B, self.m)[0]
        return replace(self, hard=(limit_B.float(), float(samples.state_S)))

    def reweigh_(self, logits_TB: Tensor, rise_TB: Tensor, scratch_TB: Tensor) -> None:
        # By sums of products, each one vectorised pass: a fill under a mask takes as long as all of them.
        limit_B, t = self.hard
        hard_TB = torch.gt(logits_TB, limit_B, out=scratch_TB)
        torch.add(torch.full_like(limit_B, t - 1), logits_TB, alpha=2 / self.scale, out=rise_TB).mul_(hard_TB)
        twice_TB = torch.add(rise_TB, hard_TB, alpha=t - 1, out=scratch_TB)  # 2 (c + t - 1)
        logits_TB.addcmul_(logits_TB, twice_TB, value=0.5)
