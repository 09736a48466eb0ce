"""The optimizer of the margin head: SGD with momentum and weight decay, as pass 2 over the class tiles."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from megaclass import distributed
from megaclass.errors import UserError
from megaclass.heads.partial_fc import PartialFC
from megaclass.heads.skipped import StepProducts
from megaclass.heads.softmax import pass_two

# Rows skipped for longer than this are brought up to date in passing, 1 / LIMIT of the shard a step.
AGE_LIMIT = 1024


class HeadSGD(torch.optim.Optimizer):
    """``v = momentum * v + gradient + weight_decay * w``, ``w = w - lr * v``, as torch.optim.SGD computes it.

    Sampled heads touch only the rows that a step scored, and still give every row what dense SGD would:
    skipped steps are caught up exactly when a row is next touched (see :mod:`megaclass.heads.skipped`).

    Shaped like any torch optimizer: schedulers change ``param_groups[0]["lr"]``; GradScaler sets ``grad_scale``
    and ``found_inf``, and a step with a non-finite gradient is skipped whole. ``step`` consumes the
    micro-batches since the last one: a second ``step`` without a new backward pass does nothing. Every backward
    pass counts, one made by ``torch.autograd.grad`` for a look at the gradient too: ``zero_grad`` drops it.
    """

    _step_supports_amp_scaling = True  # GradScaler hands over grad_scale and found_inf

    def __init__(
        self, head: PartialFC, lr: float = 0.1, momentum: float = 0.9, weight_decay: float = 5e-4
    ) -> None:
        if lr < 0 or not 0 <= momentum < 1 or weight_decay < 0:
            raise ValueError(
                f"HeadSGD needs lr >= 0, 0 <= momentum < 1, weight_decay >= 0: {lr}, {momentum}, {weight_decay}"
            )
        super().__init__([head.weight], {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.head = head
        self.state[head.weight]["momentum_buffer"] = torch.zeros_like(head.weight, requires_grad=False)
        self._touched_C = self._products = None
        if head.sample_rate < 1.0:
            self._touched_C = torch.zeros(len(head.weight), dtype=torch.int32, device=head.weight.device)
            self._products = StepProducts(AGE_LIMIT, head.weight.device)
        head._optimizer = self

    @property
    def momentum_buffer(self) -> Tensor:
        """The momentum of this rank's centres, fp32 (C, D)."""
        buffer: Tensor = self.state[self.head.weight]["momentum_buffer"]
        return buffer

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        if closure is not None:
            raise ValueError(
                "HeadSGD takes no closure: the gradient belongs to the backward pass that was made"
            )
        head, group = self.head, self.param_groups[0]
        # A loss scaler sets the two for the time of a step.
        found_inf, grad_scale = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)
        if found_inf is not None and grad_scale is None:
            raise UserError("HeadSGD divides by the loss scale itself: do not call scaler.unscale_ with it")
        if head.pending and not self._must_skip(found_inf):
            lr, momentum, decay = float(group["lr"]), group["momentum"], group["weight_decay"]
            if grad_scale is not None:
                for batch in head.pending:
                    batch.weight = batch.weight / grad_scale
            rows_N = self._rows_of_step()
            data_parallel = head.parallelism == "data" and distributed.world_size() > 1
            pass_two(
                head.pending,
                head.weight,
                self.momentum_buffer,
                head.tiles(rows_N, max(len(b.unit_BD) for b in head.pending)),
                head.margin,
                head.products,
                lr=lr,
                momentum=momentum,
                weight_decay=decay,
                reduce_=distributed.all_reduce_ if data_parallel else None,
            )
            head.optimizer_steps += 1
            if self._touched_C is not None and self._products is not None:
                self._products.append(lr, momentum, decay)
                self._touched_C[rows_N] = head.optimizer_steps
                self._sweep()
        head.end_step()

    def _must_skip(self, found_inf: Tensor | None) -> bool:
        """Whether the scaler or the micro-batches themselves are not finite: alike on every rank.

        The centres have no ``.grad`` in which a scaler could look. One host sync a step.
        """
        looked_at = [t for b in self.head.pending for t in (b.weight, b.log_share_B, b.target_B)]
        bad = ~torch.stack([torch.isfinite(t).all() for t in looked_at]).all()
        if found_inf is not None:
            bad = bad | (torch.as_tensor(found_inf, device=bad.device) > 0)
        if self.head.parallelism == "data":  # there each rank has looked at its own part of the batch
            bad = distributed.all_reduce_(bad.float(), "max") > 0
        return bool(bad)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the micro-batches that no step has consumed."""
        self.head.end_step()

    def _rows_of_step(self) -> Tensor | None:
        samples = [b.rows_N for b in self.head.pending]
        if samples[0] is None or all(s is samples[0] for s in samples):
            return samples[0]
        return torch.unique(torch.cat([s for s in samples if s is not None]))

    # -- skipped rows ---------------------------------------------------------------------------------

    @torch.no_grad()
    def catch_up(self, rows_N: Tensor | None = None) -> None:
        """Bring rows of the shard (None: all) to what dense SGD would have made of them by now."""
        if self._touched_C is None or self._products is None:
            return
        weight_CD, momentum_CD, now = self.head.weight, self.momentum_buffer, self.head.optimizer_steps
        tiles = self.head.tiles(rows_N, 0)
        for tile in tiles:
            rows = tile if rows_N is None else rows_N[tile]
            product_T4 = self._products.of_ages(now - self._touched_C[rows])
            w_TD = tiles.read(weight_CD, tile, "centres")
            v_TD = tiles.read(momentum_CD, tile, "momentum")
            new_TD = torch.mul(
                v_TD, product_T4[:, 2:3], out=self.head.workspace.get("caught_up", *v_TD.shape)
            )
            new_TD.addcmul_(w_TD, product_T4[:, 3:4])
            v_TD.mul_(product_T4[:, 0:1]).addcmul_(w_TD, product_T4[:, 1:2])
            w_TD.copy_(new_TD)
            tiles.write(weight_CD, tile, w_TD)
            tiles.write(momentum_CD, tile, v_TD)
            self._touched_C[rows] = now

    def _sweep(self) -> None:
        """Bound the ages: bring the next 1 / AGE_LIMIT of the shard up to date."""
        assert self._touched_C is not None
        start, stop = distributed.shard_range(
            len(self._touched_C), self.head.optimizer_steps % AGE_LIMIT, AGE_LIMIT
        )
        if stop > start:
            self.catch_up(torch.arange(start, stop, device=self._touched_C.device))

    # -- state ----------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """As of torch optimizers; brings all rows up to date first, so it holds no ages."""
        self.catch_up()
        self.state[self.head.weight]["step"] = self.head.optimizer_steps
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.restored(int(self.state[self.head.weight].pop("step", 0)))

    def restored(self, optimizer_steps: int) -> None:
        """Weight and momentum now hold the state after this many steps, with every row up to date."""
        self.head.optimizer_steps = optimizer_steps
        self.head.end_step()
        if self._touched_C is not None and self._products is not None:
            self._touched_C.fill_(optimizer_steps)
            self._products.clear()
