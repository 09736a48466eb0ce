"""Angular margins: what happens to the logit of the true class.

Shapes: B = rows of the batch.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

GRADIENTS = ("straight_through", "exact")

# Up to here one static shift keeps both ends of exp within fp32, see static_shift.
MAX_SCALE = 75.0

# Keeps sin(theta) away from 0 in the exact gradient; below this angle (0.026 degrees) the slope is held.
_COS_LIMIT = 1.0 - 1e-7


@dataclass(frozen=True, kw_only=True)
class Margin:
    """The combined margin of ArcFace, section 2.2 (Deng et al., CVPR 2019, arXiv:1801.07698).

    The target logit is ``scale * (cos(m1 * theta + m2) - m3)``, every other logit ``scale * cos(theta)``.

    gradient: ``straight_through`` takes the derivative of the target term with respect to cos(theta) as 1,
        which is what arcface_torch does since December 2022 (its arc cosine runs under no_grad). ``exact``
        is ``m1 * sin(m1 * theta + m2) / sin(theta)``: it grows without bound as theta goes to 0 and is
        negative beyond pi - m2. With m1 = 1 and m2 = 0 (CosFace) both are 1.
    filter_threshold: a negative whose cosine is above it leaves the sum (inter-class filtering, against
        mislabelled identities); 0 switches it off.
    """

    m1: float = 1.0
    m2: float = 0.5
    m3: float = 0.0
    scale: float = 64.0
    gradient: str = "straight_through"
    filter_threshold: float = 0.0

    def __post_init__(self) -> None:
        if self.gradient not in GRADIENTS:
            raise ValueError(f"gradient must be one of {GRADIENTS}, got {self.gradient!r}")
        if not 0 < self.scale <= MAX_SCALE:
            raise ValueError(f"scale must lie in (0, {MAX_SCALE:g}], got {self.scale}")
        if not self.m1 > 0:
            raise ValueError(f"m1 must be positive, got {self.m1}")
        if not -1 <= self.filter_threshold <= 1:
            raise ValueError(f"filter_threshold must lie in [-1, 1], got {self.filter_threshold}")

    @property
    def threshold(self) -> float:
        """The logit above which a negative leaves the sum."""
        return self.scale * self.filter_threshold if self.filter_threshold else math.inf

    def target(self, cos_B: Tensor) -> tuple[Tensor, Tensor]:
        """The target logits (B,), scale included, and d(logit / scale) / d(cos), (B,).

        A function of the cosines alone: each rank computes it for the samples of all, so it draws nothing.
        """
        if self.m1 == 1.0 and self.m2 == 0.0:
            return self.scale * (cos_B - self.m3), torch.ones_like(cos_B)
        theta_B = torch.acos(cos_B.clamp(-1.0, 1.0))
        logit_B = self.scale * (torch.cos(self.m1 * theta_B + self.m2) - self.m3)
        if self.gradient == "straight_through":
            return logit_B, torch.ones_like(cos_B)
        theta_B = torch.acos(cos_B.clamp(-_COS_LIMIT, _COS_LIMIT))
        return logit_B, self.m1 * torch.sin(self.m1 * theta_B + self.m2) / torch.sin(theta_B)


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


# What ``head.margin`` chooses from. Another loss is another class with ``target``, and its line here.
MARGINS: dict[str, Callable[..., Margin]] = {
    "combined": Margin,
    "arcface": ArcFace,
    "cosface": CosFace,
    "sphereface": SphereFace,
}


def static_shift(scale: float, num_classes: int) -> float:
    """What is subtracted from every logit before exp so that fp32 sums cannot overflow.

    |logit| <= scale, so no running maximum is needed: the sum stays below num_classes * e^(scale - shift) =
    e^87. With ``MAX_SCALE`` and 1e8 classes the smallest term is e^-82: nothing underflows either.
    """
    return max(0.0, scale + math.log(num_classes) - 87.0)
