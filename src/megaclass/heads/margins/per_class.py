"""A margin for each class: given, or by how many images it has."""

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from megaclass.heads.margins.base import BaseMargin, Samples, Target


@dataclass(frozen=True, kw_only=True)
class ClassMargin(BaseMargin):
    """``cos(theta + m)``, falling beyond pi - m too, with an m of the class.

    numbers_C: of each class, in the order of labels, its margin; the number of its images for what derives from this.
    """

    numbers_C: Tensor = field(repr=False, compare=False)

    def class_margins(self) -> Tensor:
        return self.numbers_C.float()

    def target(self, cos_B: Tensor, samples: Samples) -> Target:
        moved_B, slope_B = self.falling_arc(cos_B, samples.margins_B)
        return Target(self.scale * moved_B, slope_B)


@dataclass(frozen=True, kw_only=True)
class FrequencyMargin(ClassMargin):
    """``m = a * n^-power + b`` of a class with n images, a and b such that the rarest class has ``high`` and the most
    frequent ``low`` (Ha et al., "Google Landmark Recognition 2020 Competition Third Place Solution", arXiv:2010.05350,
    dynamic margins; its train.py). Where all have as many, the mean of the two."""

    low: float = 0.05
    high: float = 0.5
    power: float = 0.25

    limits: ClassVar[dict[str, tuple[float, float]]] = {"low": (0, 2), "high": (0, 2), "power": (0, 4)}

    def class_margins(self) -> Tensor:
        n_C = self.numbers_C.double()
        fewest = torch.where(n_C > 0, n_C, n_C.max()).min()  # a class without images is as rare as the rarest
        rarity_C = n_C.clamp(min=max(1.0, float(fewest))) ** -self.power
        least, most = rarity_C.aminmax()
        share_C = (rarity_C - least) / (most - least) if most > least else torch.full_like(rarity_C, 0.5)
        return (self.low + (self.high - self.low) * share_C).float()


@dataclass(frozen=True, kw_only=True)
class PopulationMargin(ClassMargin):
    """``m * (gamma / 2 + (1 - gamma) * (1 + cos(pi * n / K)) / 2)``, K 1.05 times the most images of a class: KappaFace
    (Oinar et al., IEEE Access 2023, arXiv:2201.07394; Leminhbinh0209/KappaFace) by counts. Its other half, a weight by
    the concentration of the class's embeddings, is held at its mean of 1/2."""

    m: float = 0.8
    gamma: float = 0.7

    limits: ClassVar[dict[str, tuple[float, float]]] = {"m": (0, 2), "gamma": (0, 1)}

    def class_margins(self) -> Tensor:
        n_C = self.numbers_C.double()
        weight_C = (
            self.gamma / 2 + (1 - self.gamma) * (1 + torch.cos(math.pi * n_C / (1.05 * n_C.max().clamp(min=1)))) / 2
        )
        return (self.m * weight_C).float()
