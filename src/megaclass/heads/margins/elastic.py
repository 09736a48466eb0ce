"""ElasticFace: a margin drawn anew for each sample in each step."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from megaclass.heads.margins.base import BaseMargin, Samples, Target


@dataclass(frozen=True, kw_only=True)
class ElasticArcFace(BaseMargin):
    """``cos(theta + e)``, e of N(m, std) (Boutros et al., CVPRW 2022, arXiv:2109.09416, section 3; fdbtrs/ElasticFace).

    Differs: a draw depends on seed, step and the sample's place in the global batch alone; without the variant
    ElasticFace+, which deals the draws out by cosine.
    """

    m: float = 0.5
    std: float = 0.05

    limits: ClassVar[dict[str, tuple[float, float]]] = {"m": (0, 2), "std": (0, 1)}

    def target(self, cos_B: Tensor, samples: Samples) -> Target:
        moved_B, slope_B = self.arc(cos_B, self.m + self.std * samples.normals())
        return Target(self.scale * moved_B, slope_B)


@dataclass(frozen=True, kw_only=True)
class ElasticCosFace(ElasticArcFace):
    """``cos(theta) - e``: the same of CosFace."""

    m: float = 0.35

    def target(self, cos_B: Tensor, samples: Samples) -> Target:
        margin_B = self.m + self.std * samples.normals()
        return Target(self.scale * (cos_B - margin_B), torch.ones_like(cos_B))
