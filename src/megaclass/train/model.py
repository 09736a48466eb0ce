"""From a configuration to the backbone on its device: weights, arithmetic, compilation."""

import dataclasses
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from megaclass.checkpoint.torchfile import read_torch_file
from megaclass.config import Config, Model
from megaclass.data.loader import IMAGENET_MEAN, IMAGENET_STD, to_model_input
from megaclass.errors import UserError
from megaclass.models.registry import backbone_options, build_backbone, load_backbone_weights
from megaclass.parallel import groups
from megaclass.parallel.seeding import derive_key
from megaclass.train.arithmetic import Arithmetic, pick_arithmetic

logger = logging.getLogger(__name__)


def build_model(config: Config, device: torch.device) -> tuple[nn.Module, Arithmetic]:
    """The backbone on its device, with the weights that ``run.seed`` or ``model.weights`` says, and how it computes."""
    model = config.model
    taken, defaults = backbone_options(model.name), Model()
    options: dict[str, Any] = {"image_size": config.data.image_size}
    for f in dataclasses.fields(Model):
        value = getattr(model, f.name)
        # An option that this backbone lacks is refused only where somebody has set it.
        if f.name not in ("name", "sync_norm", "weights") and (
            f.name in taken or value != getattr(defaults, f.name)
        ):
            options[f.name] = value
    torch.manual_seed(derive_key("weights", config.run.seed))
    backbone = build_backbone(model.name, norm="sync" if model.sync_norm else "batch", **options)
    _check_sizes(config, backbone)
    if model.weights:
        load_backbone_weights(backbone, read_state_dict(Path(model.weights)), model.weights)
    channels_last = config.precision.channels_last
    if channels_last and device.type == "cpu" and _breaks_channels_last(backbone):
        if groups.rank() == 0:
            logger.warning(
                "precision.channels_last is off: PyTorch's convolutions crash in it on a CPU below 16 channels"
            )
        channels_last = False
    arithmetic = pick_arithmetic(config.precision.compute, channels_last, device, config.precision.tf32)
    moved: nn.Module = backbone.to(device, memory_format=arithmetic.memory_format)  # type: ignore[call-overload]
    return moved, arithmetic


def _check_sizes(config: Config, backbone: nn.Module) -> None:
    """UserError where images of another size than the backbone's own are asked for, and it takes no other."""
    size = config.data.image_size
    for key, value in (
        ("data.start_size", config.data.start_size),
        ("evaluate.image_size", config.evaluate.image_size),
    ):
        if value not in (0, size) and not getattr(backbone, "takes_any_size", False):
            raise UserError(
                f"{key}: {value}, but {config.model.name} is made for images of {size} pixels alone; "
                "leave it 0, or take a resnet"
            )


def _breaks_channels_last(backbone: nn.Module) -> bool:
    """Whether there is a 1x1 convolution of stride 2 from fewer than 16 channels: its backward pass writes beyond its
    memory, as seen with PyTorch 2.13 and AVX-512."""
    found = (m for m in backbone.modules() if isinstance(m, nn.Conv2d))
    return any(m.kernel_size == (1, 1) and m.stride != (1, 1) and m.in_channels < 16 for m in found)


def read_state_dict(path: Path) -> Any:
    """A PyTorch weight file, opened without running anything in it."""
    if not path.is_file():
        raise UserError(f"{path}: no such weight file")
    return read_torch_file(path)


def input_function(config: Config, arithmetic: Arithmetic) -> Callable[[Tensor], Tensor]:
    """uint8 (B, S, S, 3) on any device -> normalised fp32 (B, 3, S, S) on the run's device."""
    by_imagenet = config.data.normalise == "imagenet"
    return partial(
        to_model_input,
        device=arithmetic.device,
        dtype=torch.float32,
        channels_last=arithmetic.channels_last,
        mean=IMAGENET_MEAN if by_imagenet else None,
        std=IMAGENET_STD if by_imagenet else None,
    )
