"""What a training step computes and keeps, counted on a model without memory: PyTorch's meta device."""

import functools
import json
from dataclasses import dataclass, replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from megaclass.bench.train.cases import TrainCase, config_of
from megaclass.build import build_model
from megaclass.heads.storage import Storage

_META = torch.device("meta")


@dataclass(frozen=True)
class Cost:
    """Of a backbone: floating point operations of one image's forward pass (a product and a sum are two), bytes that
    its backward pass keeps of an image in fp32, its parameters, and the columns of its embedding."""

    flops: float
    kept_bytes: float
    parameters: int
    embedding_dim: int


def backbone_cost(case: TrainCase) -> Cost:
    """Counted once for each backbone and image size."""
    return _counted(
        case.recipe, case.backbone, case.embedding_dim, case.image_size, json.dumps(case.settings)
    )


@functools.cache
def _counted(recipe: str, backbone: str, embedding_dim: int, image_size: int, settings: str) -> Cost:
    # In fp32: autocast knows no meta device.
    case = TrainCase(
        recipe=recipe,
        backbone=backbone,
        embedding_dim=embedding_dim,
        image_size=image_size,
        settings=json.loads(settings),
    )
    config = config_of(case)
    config = replace(config, model=replace(config.model, weights="", sync_norm=False))
    with _META:
        model, _ = build_model(config, _META)
        images = torch.empty(2, 3, config.data.image_size, config.data.image_size)
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[id(tensor.untyped_storage())] = tensor.numel() * tensor.element_size()
        held.append(tensor)  # or its id may be given away
        return tensor

    held: list[torch.Tensor] = []
    keeping = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with keeping, FlopCounterMode(display=False) as counter:
        model(images)
    count = sum(p.numel() for p in model.parameters())
    flops, weights = counter.get_total_flops(), 4 * count
    embedding_dim = int(model.embedding_dim)  # type: ignore[arg-type]
    return Cost(flops / 2, max(0, sum(kept.values()) - weights) / 2, count, embedding_dim)


def step_flops(case: TrainCase) -> float:
    """Operations of a whole step of the job: the backward pass of the backbone takes twice its forward pass. A scored
    class takes four products with the rows that its rank sees in the margin head, three in a linear one."""
    body = backbone_cost(case)
    scored = case.num_classes * case.sample_rate
    products = 3 if is_linear(case) else 4
    return case.global_batch_size * (3 * body.flops + 2 * products * body.embedding_dim * scored)


def head_bytes(case: TrainCase) -> float:
    """Of the centres and their optimizer's state on each rank."""
    dim = backbone_cost(case).embedding_dim
    if is_linear(case):
        return 3 * 4 * case.num_classes * dim  # weight, gradient, momentum
    storage = Storage.named(case.storage)
    held = case.num_classes / (case.ranks if case.parallelism == "model" else 1)
    return held * (2 if storage.momentum else 1) * dim * storage.dtype.itemsize


def is_linear(case: TrainCase) -> bool:
    """Whether its head is the linear one, which is on every rank."""
    return config_of(case).head.kind == "linear"
