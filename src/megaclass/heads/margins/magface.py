"""MagFace: the length of an embedding learns to tell the quality of its image."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from megaclass.heads.margins.base import BaseMargin, Samples, Target


@dataclass(frozen=True, kw_only=True)
class MagFace(BaseMargin):
    """Magnitude-aware margin (Meng et al., CVPR 2021, arXiv:2103.06627, section 3.2; IrvingMeng/MagFace).

    With the length ``a`` held in [l_a, u_a] the target is ``cos(theta + m(a))``, ``m(a)`` linear from l_m to u_m, where
    theta is below 90 degrees, else cos(theta) (its code's easy margin), and the loss has the summand
    ``lambda_g * (a / u_a^2 + 1 / a)``. Both give the length a gradient. ``lambda_g`` has to be above
    ``scale * (u_m - l_m) / (u_a - l_a) * (u_a * l_a)^2 / (u_a^2 - l_a^2)`` for one best length (its equation 6).
    """

    l_a: float = 10.0
    u_a: float = 110.0
    l_m: float = 0.45
    u_m: float = 0.8
    lambda_g: float = 35.0

    limits: ClassVar[dict[str, tuple[float, float]]] = {"l_m": (0, 2), "u_m": (0, 2), "lambda_g": (0, 1e6)}
    needs_norms: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.l_a < self.u_a:
            raise ValueError(f"l_a must lie between 0 and u_a, got {self.l_a} and {self.u_a}")

    def target(self, cos_B: Tensor, samples: Samples) -> Target:
        a_B, rise = samples.norms_B.clamp(self.l_a, self.u_a), (self.u_m - self.l_m) / (self.u_a - self.l_a)
        margin_B, moves_B, near_B = self.l_m + rise * (a_B - self.l_a), a_B == samples.norms_B, cos_B > 0
        moved_B, slope_B = self.arc(cos_B, margin_B)
        by_margin_B = -torch.sin(torch.acos(cos_B.clamp(-1, 1)) + margin_B)
        return Target(
            self.scale * torch.where(near_B, moved_B, cos_B),
            torch.where(near_B, slope_B, 1.0),
            self.scale * rise * torch.where(near_B & moves_B, by_margin_B, 0.0),
            self.lambda_g * (a_B / self.u_a**2 + 1 / a_B),
            self.lambda_g * torch.where(moves_B, self.u_a**-2 - a_B**-2, 0.0),
        )
