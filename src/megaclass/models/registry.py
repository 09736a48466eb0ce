"""Backbones by name, and foreign weights into them."""

import inspect
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from megaclass.config import Model
from megaclass.errors import UserError, lookup
from megaclass.models import iresnet, resnet, vit
from megaclass.models.convnet import ConvNet
from megaclass.models.mobilefacenet import MobileFaceNet
from megaclass.models.norm import SynchronisedBatchNorm, exact_norms
from megaclass.models.of_timm import PREFIX, TimmBackbone

BACKBONES: dict[str, Callable[..., nn.Module]] = {
    "convnet": ConvNet,
    **{f"iresnet{depth}": partial(iresnet.IResNet, blocks) for depth, blocks in iresnet.BLOCKS.items()},
    "mobilefacenet": partial(MobileFaceNet, (1, 4, 6, 2), 2),
    "mobilefacenet_large": partial(MobileFaceNet, (2, 8, 12, 4), 4),
    **{f"resnet{depth}": partial(resnet.ResNet, *parts) for depth, parts in resnet.DEPTHS.items()},
    **{name: partial(vit.VisionTransformer, *size) for name, size in vit.SIZES.items()},
}
# arcface_torch's short names of the same networks.
BACKBONES |= {f"r{depth}": BACKBONES[f"iresnet{depth}"] for depth in iresnet.BLOCKS}
BACKBONES |= {"mbf": BACKBONES["mobilefacenet"], "mbf_large": BACKBONES["mobilefacenet_large"]}


def _builder(name: str) -> Any:
    if name.startswith(PREFIX):
        return partial(TimmBackbone, name.removeprefix(PREFIX))
    return lookup({**BACKBONES, f"{PREFIX}NAME": TimmBackbone}, name, "backbone")


def backbone_options(name: str) -> list[str]:
    """The options that :func:`build_backbone` takes for this backbone."""
    return [*inspect.signature(_builder(name)).parameters]


def build_backbone(name: str, *, sync_norm: bool = False, **options: Any) -> nn.Module:
    """A new backbone with random weights from the global generator.

    ``sync_norm``: batch norms have the statistics of all ranks' samples. ``options``: the keyword arguments of the
    class behind the name (of ``timm/NAME``: :class:`TimmBackbone`). Raises :class:`UserError` for an unknown name.
    """
    backbone = exact_norms(_builder(name)(**options), over_ranks=sync_norm)
    norms = [m for m in backbone.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if sync_norm and not all(isinstance(m, SynchronisedBatchNorm) for m in norms):
        raise UserError(f"model.sync_norm: {name} has batch norms of its own; leave it out")
    return backbone


def load_backbone_weights(module: nn.Module, state_dict: Any, where: str) -> None:
    """Copy a checkpoint's weights into ``module``: all of them, or none and one :class:`UserError`.

    Accepts the state dict itself or a dict that holds it under ``state_dict_backbone`` (arcface_torch),
    ``state_dict`` or ``model``, with or without the prefixes of wrappers (``module.``, ``_orig_mod.``). The
    ``fc`` of a torchvision ResNet and timm's classifiers are left aside: they belong to the head, see
    :func:`last_layer`. ``where`` names the checkpoint in the message. A missing ``num_batches_tracked`` is no error:
    old checkpoints have none. Weights must be dense, of floating point and finite.
    """
    given = _parted(module, state_dict, where)[0]
    own = module.state_dict()
    faults: dict[str, list[str]] = defaultdict(list)
    for key, tensor in own.items():
        if key not in given:
            if not key.endswith("num_batches_tracked"):
                faults["missing"].append(key)
        elif not _is_usable(key, given[key]):
            faults["not a dense tensor of floating point"].append(key)
        elif given[key].shape != tensor.shape:
            shapes = f"{tuple(given[key].shape)}, the model has {tuple(tensor.shape)}"
            faults["of another shape"].append(f"{key} {shapes}")
        # In the model's precision, in which a large fp64 number is infinite too; integers know no NaN.
        elif not given[key].to(tensor.dtype if tensor.is_floating_point() else torch.float64).isfinite().all():
            faults["not finite"].append(key)
    faults["unexpected"] = [key for key in given if key not in own]
    told = [
        f"{len(keys)} {what} ({', '.join(keys[:3])}{', ..' if len(keys) > 3 else ''})"
        for what, keys in faults.items()
        if keys
    ]
    if told:
        raise UserError(
            f"{where}: checkpoint of another model or damaged, nothing was loaded: parameters {'; '.join(told)}; "
            "choose the backbone and options that it was trained with"
        )
    module.load_state_dict(given, strict=False)


def last_layer(module: nn.Module, state_dict: Any, where: str) -> dict[str, Tensor]:
    """Weight and bias of the layer behind this backbone in a state dict of torchvision or timm; empty without one."""
    return _parted(module, state_dict, where)[1]


def _parted(module: nn.Module, state_dict: Any, where: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights of a backbone, and of the layer behind it."""
    given = _unwrapped(state_dict, where)
    if isinstance(module, TimmBackbone):
        return module.parted(given, where)
    names = ("weight", "bias") if isinstance(module, resnet.ResNet) else ()
    return given, {name: given.pop(f"fc.{name}") for name in names if f"fc.{name}" in given}


_HOLDERS = ("state_dict_backbone", "state_dict", "model")


def _unwrapped(state_dict: Any, where: str) -> dict[str, Tensor]:
    for key in _HOLDERS:
        if isinstance(state_dict, Mapping) and isinstance(state_dict.get(key), Mapping):
            state_dict = state_dict[key]
    if not isinstance(state_dict, Mapping) or not all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in state_dict.items()
    ):
        keys = sorted(map(str, state_dict)) if isinstance(state_dict, Mapping) else []
        found = f"; its keys are {', '.join(keys[:5])}{', ..' if len(keys) > 5 else ''}" if keys else ""
        raise UserError(
            f"{where}: holds no state dict (a dict from parameter name to tensor), itself or under one of "
            f"{', '.join(_HOLDERS)}{found:.300}; save what you want loaded alone"
        )
    for prefix in ("module.", "_orig_mod.", "module."):  # DDP of a compiled module, and the other way round
        if all(key.startswith(prefix) for key in state_dict):
            state_dict = {key.removeprefix(prefix): value for key, value in state_dict.items()}
    return dict(state_dict)


def _is_usable(key: str, tensor: Tensor) -> bool:
    if tensor.layout != torch.strided or tensor.is_nested or tensor.is_meta or tensor.is_quantized:
        return False
    is_count = key.endswith("num_batches_tracked")
    return tensor.is_floating_point() or (is_count and not tensor.is_complex())


def configured_backbone(model: Model, image_size: int, head: str) -> nn.Module:
    """What the section ``[model]`` asks for, with weights drawn anew, for a head of this kind."""
    taken, defaults = backbone_options(model.name), vars(Model())
    # An option that this backbone lacks is refused only where somebody has set it.
    options: dict[str, Any] = {
        name: value
        for name, value in vars(model).items()
        if name not in ("name", "sync_norm", "weights") and (name in taken or value != defaults[name])
    }
    if others := [name for name in options if name not in taken]:
        left_out = " ".join(f"--model.{name} {defaults[name]}" for name in others)
        raise UserError(
            f"model.{others[0]}: backbone {model.name!r} takes no option {others[0]!r}; where a recipe of another "
            f"backbone has it, give its default: {left_out}"
        )
    if model.name.startswith(PREFIX) and head == "linear":
        options["embedding_dim"] = 0
    return build_backbone(model.name, sync_norm=model.sync_norm, image_size=image_size, **options)
