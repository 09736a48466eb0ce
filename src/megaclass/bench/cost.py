"""What a backbone computes and keeps, counted on a model without memory: PyTorch's meta device."""

import functools
import json
from dataclasses import asdict, dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from megaclass.config import Config, from_mapping
from megaclass.train.model import build_model

START_FLOPS = 2e12  # what could be computed while a process starts: only for the time left

_META = torch.device("meta")


@dataclass(frozen=True)
class Cost:
    """Of a backbone: floating point operations of one image's forward pass (a product and a sum are two), bytes that
    its backward pass keeps of an image in fp32, its parameters, and the columns of its embedding."""

    flops: float
    kept_bytes: float
    parameters: int
    embedding_dim: int


def backbone_cost(config: Config) -> Cost:
    """Counted once for each model and image size."""
    return _counted(json.dumps(asdict(config.model)), config.data.image_size)


def meta_model(model_options: str, image_size: int) -> nn.Module:
    """The backbone of these options, a JSON object, without memory."""
    # In fp32: autocast knows no meta device.
    config = from_mapping(
        {
            "data": {"image_size": image_size},
            "model": json.loads(model_options) | {"weights": "", "sync_norm": False},
            "precision": {"compute": "fp32"},
        }
    )
    with _META:
        model, _ = build_model(config, _META)
    return model


@functools.cache
def _counted(model_options: str, image_size: int) -> Cost:
    model = meta_model(model_options, image_size)
    images = torch.empty(2, 3, image_size, image_size, device=_META)
    kept: dict[int, int] = {}
    held: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[id(tensor.untyped_storage())] = tensor.numel() * tensor.element_size()
        held.append(tensor)  # or its id may be given away
        return tensor

    keeping = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with keeping, FlopCounterMode(display=False) as counter:
        model(images)
    count = sum(p.numel() for p in model.parameters())
    flops, weights = counter.get_total_flops(), 4 * count
    embedding_dim = int(model.embedding_dim)  # type: ignore[arg-type]
    return Cost(flops / 2, max(0, sum(kept.values()) - weights) / 2, count, embedding_dim)
