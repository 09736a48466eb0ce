"""The backbone's optimizer. The margin head brings its own (see :mod:`megaclass.heads.sgd`)."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from megaclass.config import Optim


def parameter_groups(
    modules: Iterable[nn.Module], weight_decay: float, decay_norms: bool, by_layer: bool = False
) -> list[dict]:
    """Trainable parameters in two groups: with weight decay, and without; ``by_layer``: in two for each layer.

    Vectors (norm scales, biases, PReLU slopes) go without unless ``decay_norms`` (Goyal et al.,
    arXiv:1706.02677, section 5.3); arcface_torch decays them too. ``layers_behind`` of a group: between its layer and
    the end of the module.
    """
    layers: dict[int, list[nn.Parameter]] = defaultdict(list)
    for module in modules:
        parts = layers_of(module) if by_layer else [[*module.parameters()]]
        for behind, part in enumerate(reversed(parts)):
            layers[behind] += [p for p in part if p.requires_grad]
    groups = [
        {
            "params": [p for p in part if (decay_norms or p.ndim > 1) == decayed],
            "weight_decay": weight_decay if decayed else 0.0,
            "layers_behind": behind,
        }
        for behind, part in layers.items()
        for decayed in (True, False)
    ]
    return [group for group in groups if group["params"]]


def layers_of(module: nn.Module) -> list[list[nn.Parameter]]:
    """Its parameters from the first layer to the last. A block of a stage is a layer, as timm and BEiT
    (arXiv:2106.08254, appendix) count for layer-wise rates; a norm or an activation goes with the layer before it, a
    position embedding with the first one."""
    layers: list[list[nn.Parameter]] = [[]]
    own: list[nn.Parameter] = []

    def walk(part: nn.Module) -> None:
        own.extend(part.parameters(recurse=False))
        for name, child in part.named_children():
            if isinstance(child, nn.Sequential | nn.ModuleList) or name == "body":  # a network of timm's
                walk(child)
                continue
            if layers[-1] and any(p.ndim > 1 for p in child.parameters()):
                layers.append([])
            layers[-1].extend(child.parameters())

    walk(module)
    layers[0].extend(own)
    return layers


def build_optimizer(optim: Optim, modules: Iterable[nn.Module], lr: float) -> torch.optim.Optimizer:
    """``optim.name`` over the modules' trainable parameters: a step of it that ``found_inf`` marks changes nothing."""
    groups = parameter_groups(modules, optim.weight_decay, optim.decay_norms, optim.layer_decay < 1)
    if optim.name == "lars":
        return Lars(groups, lr, optim.momentum, optim.trust)
    if optim.name == "lamb":
        return Lamb(groups, lr, optim.momentum)
    # Fused: one kernel for all parameters, and a step that is skipped on the device where found_inf says so.
    if optim.name == "adamw":
        return torch.optim.AdamW(groups, lr, (optim.momentum, 0.999), fused=True)
    optimizer = torch.optim.SGD(groups, lr, optim.momentum, fused=True)
    if optim.momentum:
        # Fused SGD makes its momentum in the first step, and leaves it uninitialised where found_inf skips it.
        for parameter in (p for group in groups for p in group["params"]):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


class _ByLayer(torch.optim.Optimizer):
    """An optimizer whose ``_step`` moves the weights of one group. A step with a ``found_inf`` of 1 changes nothing;
    nothing waits for the host. As in PyTorch's fused optimizers weight, gradient and moments lie alike in memory."""

    found_inf: Tensor  # set before each step

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if weights:
                self._step(weights, group)

    def _step(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        raise NotImplementedError


class Lars(_ByLayer):
    """Layer-wise adaptive rate scaling, for large batches (You et al. 2017, arXiv:1708.03888, algorithm 1).

    ``v = momentum * v + lr * rate * (gradient + weight_decay * w)``, ``w = w - v``, where ``rate`` of a matrix or a
    filter bank is ``trust * |w| / (|gradient| + weight_decay * |w|)``; vectors (norms, biases) have the rate 1, as in
    MLPerf's reference.
    """

    def __init__(self, params: Any, lr: float, momentum: float, trust: float) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": 0.0, "trust": trust})
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    def _step(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        # PyTorch's kernel takes no buffers where there is no momentum.
        momenta = [self.state[p]["momentum_buffer"] for p in weights if group["momentum"]]
        gradients = [p.grad for p in weights if p.grad is not None]
        decay, trust = group["weight_decay"], group["trust"]
        w_norm, g_norm = (torch.stack(torch._foreach_norm(tensors)) for tensors in (weights, gradients))
        rate = trust * w_norm / (g_norm + decay * w_norm)
        # A layer of zeros, or without gradient, has no scale of its own, nor has a vector.
        rate = group["lr"] * torch.where((w_norm == 0) | (g_norm == 0), 1.0, rate)
        own = rate.new_full((), group["lr"])
        moves = torch._foreach_add(gradients, weights, alpha=decay)
        torch._foreach_mul_(moves, [r if w.ndim > 1 else own for r, w in zip(rate, weights, strict=True)])
        torch._fused_sgd_(
            weights, moves, momenta, weight_decay=0.0, momentum=group["momentum"], lr=1.0, dampening=0.0,
            nesterov=False, maximize=False, is_first_step=False, found_inf=self.found_inf,
        )  # fmt: skip


class Lamb(_ByLayer):
    """Adam with the trust ratios of layers, for large batches (You et al. 2020, arXiv:1904.00962, algorithm 2).

    ``move = m / (sqrt(v) + 1e-6) + weight_decay * w``, with Adam's ``m`` and ``v`` after their corrections, and
    ``w = w - lr * |w| / |move| * move``. Parameters without weight decay (norms, biases) have the ratio 1, as in timm,
    which also clips the gradient of the whole model at a norm of 1: here ``optim.clip_grad_norm`` does.
    """

    def __init__(self, params: Any, lr: float, beta: float) -> None:
        # Of a fused optimizer load_state_dict leaves the numbers of steps on the device.
        super().__init__(params, {"lr": lr, "betas": (beta, 0.999), "weight_decay": 0.0, "fused": True})
        for group in self.param_groups:
            for parameter in group["params"]:
                zeros = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                self.state[parameter] = {"step": parameter.new_zeros(()), **zeros}

    def _step(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        states, decay = [self.state[p] for p in weights], group["weight_decay"]
        steps, means, squares = ([s[name] for s in states] for name in ("step", "exp_avg", "exp_avg_sq"))
        gradients = [p.grad for p in weights if p.grad is not None]
        taken = 1 - self.found_inf
        torch._foreach_add_(steps, [taken] * len(steps))
        # Adam at the rate 1 takes zeros to what it would have moved the weights by.
        moves = [torch.zeros_like(w) for w in weights]
        torch._fused_adam_(
            moves, gradients, means, squares, [], steps, lr=1.0, beta1=group["betas"][0], beta2=group["betas"][1],
            weight_decay=0.0, eps=1e-6, amsgrad=False, maximize=False, found_inf=self.found_inf,
        )  # fmt: skip
        rates: Any = group["lr"] * taken
        if decay:
            torch._foreach_add_(moves, weights, alpha=-decay)
            w_norm, move_norm = (torch.stack(torch._foreach_norm(tensors)) for tensors in (weights, moves))
            ratio = torch.where((w_norm == 0) | (move_norm == 0), 1.0, w_norm / move_norm)
            rates = list(rates * ratio)
        torch._foreach_mul_(moves, rates)
        torch._foreach_add_(weights, moves)


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
