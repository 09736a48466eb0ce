"""Backbone and head as one module that computes what an evaluation does.

Shapes: B = images of a batch, C = classes, D = embedding columns, HW = image.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from megaclass.config import Config
from megaclass.heads.linear import LinearHead
from megaclass.parallel.seeding import derive_key
from megaclass.train.arithmetic import Arithmetic
from megaclass.train.model import build_model

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_BRANCH_GAIN = 0.2


class Scorer(nn.Module):
    """images_BCHW, normalised -> logits_BC of a linear head, in fp32 as in training, or embeddings_BD in fp32."""

    def __init__(
        self,
        backbone: nn.Module,
        head: LinearHead | None,
        autocast: Callable[[], AbstractContextManager],
    ) -> None:
        super().__init__()
        self.backbone, self.head, self._autocast = backbone, head, autocast

    def forward(self, images_BCHW: Tensor) -> Tensor:
        with self._autocast():
            features_BD = self.backbone(images_BCHW)
        if self.head is None:
            return features_BD.float()
        return self.head.logits(features_BD.float())


def build_scorer(config: Config, device: torch.device) -> tuple[Scorer, Arithmetic]:
    """The model of a configuration, ready for inference; see :func:`cast_weights` for its 16-bit weights."""
    backbone, arithmetic = build_model(config, device)
    head = None
    if config.head.kind == "linear":
        torch.manual_seed(derive_key("head", config.run.seed))
        head = LinearHead(config.data.num_classes, int(backbone.embedding_dim)).to(device)  # type: ignore[arg-type]
    if not config.model.weights:
        wake_branches(backbone)
    return Scorer(backbone, head, arithmetic.autocast).eval().requires_grad_(False), arithmetic


def wake_branches(backbone: nn.Module) -> None:
    """Give norms that begin as zero, as the last of a ResNet's branches does, a weight that trained ones may have.

    Else most of the network would compute zeros, for which a GPU takes less power and clocks higher.
    """
    for module in backbone.modules():
        if isinstance(module, _NORMS) and not module.weight.any():
            nn.init.constant_(module.weight, _BRANCH_GAIN)


def cast_weights(scorer: Scorer, images_BCHW: Tensor) -> None:
    """Store the weights of convolutions as autocast casts them in every step: the same numbers, sooner.

    Which ones it casts, a step on ``images_BCHW`` shows. The first convolution is left as it is: by the type of its
    weights ResNet knows in which one to deliver its features.
    """
    convolutions = [module for module in scorer.backbone.modules() if isinstance(module, nn.Conv2d)]
    cast: dict[nn.Module, torch.dtype] = {}

    def look(module: nn.Module, _: Any, output: Tensor) -> None:
        cast[module] = output.dtype

    hooks = [convolution.register_forward_hook(look) for convolution in convolutions[1:]]
    scorer(images_BCHW)
    for hook in hooks:
        hook.remove()
    for module, dtype in cast.items():
        module.to(dtype)
