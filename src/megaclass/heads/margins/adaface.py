"""AdaFace: the margin by the quality of an image, for which the length of its embedding stands."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from megaclass.heads.margins.base import RunningMargin, Samples, Target

_EPS = 1e-3  # of cosines, angles and deviations, as published


@dataclass(frozen=True, kw_only=True)
class AdaFace(RunningMargin):
    """Quality-adaptive margin (Kim, Jain and Liu, CVPR 2022, arXiv:2204.00964, section 3.3; mk-minchul/AdaFace).

    The target is ``cos(theta - m * z) - (m + m * z)``, with ``z = clip((|x| - mean) / (std / h), -1, 1)``: long
    embeddings have a margin like CosFace's, short ones like ArcFace's with its sign turned. ``|x|`` takes part without
    gradient. mean and std of the lengths run along: ``t_alpha`` of the batch over all ranks, the rest as it was.

    Differs: negatives are not clipped at a cosine of 0.999; a batch is that of all ranks and micro-batches.
    """

    m: float = 0.4
    h: float = 0.333

    limits: ClassVar[dict[str, tuple[float, float]]] = RunningMargin.limits | {"m": (0, 2), "h": (0, 10)}
    needs_norms: ClassVar[bool] = True
    state: ClassVar[tuple[float, ...]] = (20.0, 100.0)

    def observe(self, cos_B: Tensor, norms_B: Tensor) -> Tensor:
        return norms_B.clamp(1e-3, 100.0)

    def target(self, cos_B: Tensor, samples: Samples) -> Target:
        mean, std = samples.state_S
        z_B = self.h * (self.observe(cos_B, samples.norms_B) - mean) / (std + _EPS)
        moved_B = self.m * z_B.clamp(-1, 1)
        held_B = cos_B.clamp(_EPS - 1, 1 - _EPS)
        theta_B = torch.acos(held_B)
        angle_B = (theta_B - moved_B).clamp(_EPS, math.pi - _EPS)
        logit_B = self.scale * (torch.cos(angle_B) - self.m - moved_B)
        if not self.is_exact:
            return Target(logit_B, torch.ones_like(cos_B))
        moves_B = (held_B == cos_B) & (angle_B == theta_B - moved_B)  # no gradient where it is clipped
        return Target(logit_B, torch.where(moves_B, torch.sin(angle_B) / torch.sin(theta_B), 0.0))
