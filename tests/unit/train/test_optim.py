"""LARS against its algorithm, written out in fp64; and what a skipped step leaves."""

import copy

import pytest
import torch
from torch import nn

from megaclass.train.optimizer import build_optimizer, restore_optimizer

LR, MOMENTUM, DECAY, TRUST = 0.7, 0.9, 0.01, 0.02


def modules():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(5, 2))


def lars(module):
    options = {"lr": LR, "momentum": MOMENTUM, "weight_decay": DECAY, "decay_norms": False, "trust": TRUST}
    return build_optimizer("lars", [module], **options)


def with_gradients(module, seed):
    torch.manual_seed(seed)
    for p in module.parameters():
        p.grad = torch.randn_like(p)


def written_out(weights, momenta, gradients):
    """Algorithm 1 of arXiv:1708.03888, one parameter after the other."""
    for name, w in weights.items():
        g, is_vector = gradients[name], w.ndim < 2
        decay = 0.0 if is_vector else DECAY
        rate = 1.0 if is_vector else TRUST * w.norm() / (g.norm() + decay * w.norm())
        momenta[name] = MOMENTUM * momenta[name] + LR * rate * (g + decay * w)
        weights[name] = w - momenta[name]


def test_lars_is_the_published_algorithm():
    module = modules()
    optimizer = lars(module)
    weights = {name: p.detach().double().clone() for name, p in module.named_parameters()}
    momenta = {name: torch.zeros_like(w) for name, w in weights.items()}
    for seed in range(4):
        with_gradients(module, seed)
        written_out(weights, momenta, {name: p.grad.double() for name, p in module.named_parameters()})
        optimizer.step()
    for name, p in module.named_parameters():
        torch.testing.assert_close(p.detach().double(), weights[name], rtol=1e-5, atol=1e-6)


def test_a_layer_of_zeros_moves_and_stays_finite():
    module = nn.Linear(4, 3)
    nn.init.zeros_(module.weight)
    optimizer = lars(module)
    with_gradients(module, 0)
    optimizer.step()
    assert module.weight.isfinite().all() and module.weight.abs().sum() > 0
    module.weight.grad.zero_()
    optimizer.step()
    assert module.weight.isfinite().all()


def test_a_step_with_found_inf_changes_nothing():
    module = modules()
    optimizer = lars(module)
    with_gradients(module, 0)
    optimizer.step()
    before = [p.detach().clone() for p in module.parameters()]
    momenta = [optimizer.state[p]["momentum_buffer"].clone() for p in module.parameters()]
    for p in module.parameters():
        p.grad.fill_(torch.nan)
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    assert all(torch.equal(p, b) for p, b in zip(module.parameters(), before, strict=True))
    assert all(
        torch.equal(optimizer.state[p]["momentum_buffer"], m)
        for p, m in zip(module.parameters(), momenta, strict=True)
    )
    optimizer.found_inf = torch.tensor(0.0)
    with_gradients(module, 1)
    optimizer.step()
    assert not torch.equal(module[0].weight, before[0])


@pytest.mark.parametrize("name", ["sgd", "lars", "adamw"])
def test_a_stored_state_goes_on_to_the_bit(name):
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "decay_norms": False}
    first, second = modules(), modules()
    one, other = (build_optimizer(name, [module], **options) for module in (first, second))
    with_gradients(first, 0)
    one.step()
    second.load_state_dict(first.state_dict())
    restore_optimizer(other, copy.deepcopy(one.state_dict()))
    for module, optimizer in ((first, one), (second, other)):
        with_gradients(module, 1)
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
