"""The optimizer of the margin head: SGD with momentum and weight decay, as pass 2 over the class tiles."""

from typing import Any

import torch

from megaclass.errors import UserError
from megaclass.heads.partial_fc import PartialFC
from megaclass.heads.step import SGDStep
from megaclass.heads.storage import Rows


class HeadSGD(torch.optim.Optimizer):
    """``v = momentum * v + gradient + weight_decay * w``, ``w = w - lr * v``, as torch.optim.SGD computes it.

    Sampled heads touch only the rows that a step scored, and still give every row what dense SGD would:
    skipped steps are caught up exactly when a row is next touched (see :mod:`megaclass.heads.shard`).

    Row-wise storage keeps no momentum: a gradient is then applied at once with the tail that momentum would
    give it, ``lr / (1 - momentum)``, and damped where that would turn a centre far
    (:class:`megaclass.heads.step.SGDStep`).

    Shaped like any torch optimizer: schedulers change ``param_groups[0]["lr"]``; GradScaler sets ``grad_scale``
    and ``found_inf``, and a step with a non-finite gradient is skipped whole. ``step`` consumes the
    micro-batches since the last one: a second ``step`` without a new backward pass does nothing. Every backward
    pass counts, one made by ``torch.autograd.grad`` for a look at the gradient too: ``zero_grad`` drops it.
    """

    _step_supports_amp_scaling = True  # GradScaler hands over grad_scale and found_inf

    def __init__(self, head: PartialFC, lr: float = 0.1, momentum: float = 0.9, weight_decay: float = 5e-4) -> None:
        if not (lr >= 0 and 0 <= momentum < 1 and weight_decay >= 0):
            raise ValueError(
                f"HeadSGD needs lr >= 0, 0 <= momentum < 1, weight_decay >= 0: {lr}, {momentum}, {weight_decay}"
            )
        if not isinstance(head, PartialFC):
            raise TypeError(f"HeadSGD takes the head itself, a PartialFC, not {type(head).__name__}")
        super().__init__([head.weight], {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.head = head
        head.end_step()
        head.shard.begin_optimizer(head.storage.momentum)
        self._show_state()

    def _show_state(self) -> None:
        """Put the momentum (C, D), as it is stored, where torch optimizers keep theirs."""
        momentum = self.head.shard.momentum
        self.state[self.head.weight] = {} if momentum is None else {"momentum_buffer": momentum.data}

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        # A loss scaler sets the two for the time of a step.
        found_inf, grad_scale = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)
        if found_inf is not None and grad_scale is None:
            raise UserError("HeadSGD divides by the loss scale itself: do not call scaler.unscale_ with it")
        group = self.param_groups[0]
        step = SGDStep(float(group["lr"]), group["momentum"], group["weight_decay"])
        if not self.head.storage.momentum:
            step = SGDStep(step.lr / (1.0 - step.momentum), 0.0, step.weight_decay)
        self.head.update(step, grad_scale, found_inf)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the micro-batches that no step has consumed."""
        self.head.pending.clear()

    # -- state ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def catch_up(self) -> None:
        """Bring all rows of the shard to what dense SGD would have made of them by now."""
        self.head.shard.catch_up()

    def state_dict(self) -> dict[str, Any]:
        """As of torch optimizers; brings all rows up to date first, so it holds no ages."""
        self.catch_up()
        packed = super().state_dict()
        steps = self.head.shard.steps
        packed["state"] = {key: {**values, "step": steps} for key, values in packed["state"].items()}
        return packed

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the momentum of any storage; it starts at zero where none was kept."""
        # Ours to take: torch would cast rows of another storage to the type of the centres, without their scales.
        own: dict[str, Any] = next(iter(state_dict["state"].values()), {})
        buffer, shape = own.get("momentum_buffer"), self.head.weight.shape
        if buffer is not None and buffer.shape != shape:
            raise UserError(
                f"momentum_buffer is {tuple(buffer.shape)}, this rank's is {tuple(shape)}: it was stored at another "
                "number of ranks or for another head"
            )
        stored = None if buffer is None else Rows(buffer, own.get("momentum_scale"))
        super().load_state_dict({**state_dict, "state": {}})
        self.head.shard.load_momentum(stored)
        self._show_state()
        self.head.shard.restored(int(own.get("step", 0)))
        self.head.end_step()
