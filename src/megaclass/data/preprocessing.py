"""What becomes of an image before a network sees it, as numbers that travel with a model.

Shapes: B = images of a batch, H, W = height and width that the network takes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from megaclass.data.augment import EvalTransform
from megaclass.data.loader import IMAGENET_MEAN, IMAGENET_STD, SYMMETRIC, to_model_input
from megaclass.errors import UserError

Channels = tuple[float, float, float]
# data.normalise -> mean and standard deviation of a channel, of values in 0..1
NORMALISATIONS: dict[str, tuple[Channels, Channels]] = {
    "symmetric": (SYMMETRIC, SYMMETRIC),
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
}
_SIDES = range(4097)


@dataclass(frozen=True)
class Preprocessing:
    """RGB images become ``height`` x ``width`` pixels, then ``(pixel / 255 - mean) / std`` a channel.

    resize: the shorter side is scaled to it and the middle cut out; 0: the image is stretched to the size.
    """

    height: int
    width: int
    resize: int = 0
    mean: Channels = SYMMETRIC
    std: Channels = SYMMETRIC

    def transform(self) -> EvalTransform:
        """Decoded images of any size -> uint8 (H, W, 3)."""
        return EvalTransform((self.height, self.width), self.resize)

    def to_input(self, images_BHWC: Tensor, device: torch.device | str = "cpu", channels_last: bool = False) -> Tensor:
        """uint8 (B, H, W, 3) -> normalised fp32 (B, 3, H, W) on the device."""
        return to_model_input(images_BHWC, device, channels_last, self.mean, self.std)

    @classmethod
    def from_json(cls, found: Mapping[str, Any], where: str) -> "Preprocessing":
        """What ``asdict`` gave; UserError, which names ``where`` it was found, for anything else."""
        try:
            sides = [found["height"], found["width"], found.get("resize", 0)]
            mean, std = ([float(value) for value in found[name]] for name in ("mean", "std"))
            right = all(type(side) is int and side in _SIDES for side in sides) and 0 not in sides[:2]
            right &= len(mean) == len(std) == 3 and all(map(math.isfinite, mean + std)) and min(std) > 0
        except (KeyError, TypeError, ValueError):
            right = False
        if not right:
            raise UserError(f"{where}: no preprocessing of a network there (height, width, resize, mean, std)")
        height, width, resize = sides
        return cls(height, width, resize, (mean[0], mean[1], mean[2]), (std[0], std[1], std[2]))
