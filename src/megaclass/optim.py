"""The backbone's optimizer. The margin head brings its own (see :mod:`megaclass.heads.sgd`)."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from megaclass.errors import lookup


def parameter_groups(modules: Iterable[nn.Module], weight_decay: float, decay_norms: bool) -> list[dict]:
    """Trainable parameters in two groups: with weight decay, and without.

    Vectors (norm scales, biases, PReLU slopes) go without unless ``decay_norms`` (Goyal et al.,
    arXiv:1706.02677, section 5.3); arcface_torch decays them too.
    """
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    decayed = [p for p in parameters if decay_norms or p.ndim > 1]
    others = [p for p in parameters if not (decay_norms or p.ndim > 1)]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


# Fused: one kernel for all parameters, and a step that is skipped on the device where found_inf says so.
OPTIMIZERS = {
    "sgd": lambda groups, lr, momentum: torch.optim.SGD(groups, lr=lr, momentum=momentum, fused=True),
    "adamw": lambda groups, lr, momentum: torch.optim.AdamW(
        groups, lr=lr, betas=(momentum, 0.999), fused=True
    ),
}


def build_optimizer(
    name: str,
    modules: Iterable[nn.Module],
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    decay_norms: bool,
) -> torch.optim.Optimizer:
    """``sgd`` or ``adamw`` over the modules' trainable parameters."""
    groups = parameter_groups(modules, weight_decay, decay_norms)
    optimizer: torch.optim.Optimizer = lookup(OPTIMIZERS, name, "optimizer")(groups, lr, momentum)
    if name == "sgd" and momentum:
        # Fused SGD makes its momentum in the first step, and leaves it uninitialised where found_inf skips it.
        for parameter in (p for group in groups for p in group["params"]):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """``load_state_dict`` that keeps the memory layout of the parameters.

    Fused optimizers walk parameter, gradient and momentum side by side in memory: the momentum of a
    channels_last weight, read back row by row, would go to the wrong elements without a word.
    """
    optimizer.load_state_dict(state)
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if torch.is_tensor(value) and value.shape == parameter.shape:
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
