"""Gradients of low rank: one that is not finite spoils its own step, and no later one."""

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from megaclass.parallel import groups
from megaclass.parallel import gradients
from ranks import run_ranks

pytestmark = pytest.mark.dist

STEPS, POISONED = 12, 6


def finite_steps():
    """Whether the gradient of each step was finite, and the last one on this rank."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradients, "POWERSGD_START", 3)
        hook = gradients.communication_hook("flat", "powersgd")
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Linear(64, 64, bias=False))
    model.register_comm_hook(*hook)
    found = []
    for step in range(STEPS):
        torch.manual_seed(100 * step + groups.rank())
        images = torch.randn(8, 64)
        if step == POISONED and groups.rank() == 0:
            images[0, 0] = torch.nan
        model.zero_grad()
        model(images).square().mean().backward()
        found.append(bool(model.module.weight.grad.isfinite().all()))
    return found, model.module.weight.grad


def test_a_step_that_is_not_finite_is_forgotten():
    (one, gradient), (other, same) = run_ranks(2, finite_steps)
    assert one == other == [step != POISONED for step in range(STEPS)]
    assert torch.equal(gradient, same) and gradient.abs().sum() > 0
