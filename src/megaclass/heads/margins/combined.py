"""Margins that are the same for all: those of arcface_torch."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from megaclass.heads.margins.base import BaseMargin, Samples, Target


@dataclass(frozen=True, kw_only=True)
class Margin(BaseMargin):
    """The combined margin of ArcFace, section 2.2 (Deng et al., CVPR 2019, arXiv:1801.07698).

    The target logit is ``scale * (cos(m1 * theta + m2) - m3)``, every other logit ``scale * cos(theta)``. ``auto`` is
    the ``straight_through`` gradient, which arcface_torch takes since December 2022 (its arc cosine runs under
    no_grad). With m1 = 1 and m2 = 0 (CosFace) both are 1.
    """

    m1: float = 1.0
    m2: float = 0.5
    m3: float = 0.0

    published: ClassVar[str] = "straight_through"
    limits: ClassVar[dict[str, tuple[float, float]]] = {"m1": (0.1, 4), "m2": (0, 2), "m3": (0, 1)}

    def target(self, cos_B: Tensor, samples: Samples) -> Target:
        if self.m1 == 1.0 and self.m2 == 0.0:
            return Target(self.scale * (cos_B - self.m3), torch.ones_like(cos_B))
        moved_B, slope_B = self.arc(cos_B, self.m2, self.m1)
        return Target(self.scale * (moved_B - self.m3), slope_B)


def ArcFace(margin: float = 0.5, scale: float = 64.0, **options) -> Margin:  # noqa: N802 - the field's name
    """Additive angular margin (arXiv:1801.07698): cos(theta + margin)."""
    return Margin(m2=margin, scale=scale, **options)


def CosFace(margin: float = 0.4, scale: float = 64.0, **options) -> Margin:  # noqa: N802
    """Additive cosine margin (Wang et al., CVPR 2018, arXiv:1801.09414): cos(theta) - margin."""
    return Margin(m2=0.0, m3=margin, scale=scale, **options)


def SphereFace(margin: float = 1.35, scale: float = 64.0, **options) -> Margin:  # noqa: N802
    """Multiplicative angular margin (Liu et al., CVPR 2017, arXiv:1704.08063), as in the combined margin.

    cos(margin * theta) itself, without the paper's piecewise continuation: keep margin * pi below 2 * pi.
    """
    return Margin(m1=margin, m2=0.0, scale=scale, **options)
