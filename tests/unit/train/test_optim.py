"""LARS, LAMB and the average of the weights against their algorithms, written out in fp64; and a stored state."""

import copy

import pytest
import torch
from torch import nn

from megaclass.config import Optim
from megaclass.train.average import WeightAverage
from megaclass.train.optimizer import build_optimizer, restore_optimizer

LR, MOMENTUM, DECAY, TRUST = 0.7, 0.9, 0.01, 0.02


def built(name, momentum=MOMENTUM):
    """A network in channels_last, and its optimizer."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(5, 2))
    network.to(memory_format=torch.channels_last)
    settings = Optim(name=name, momentum=momentum, weight_decay=DECAY, trust=TRUST)
    return network, build_optimizer(settings, [network], LR)


def step(network, optimizer, seed):
    torch.manual_seed(seed)
    for p in network.parameters():
        p.grad = torch.randn_like(p)
    optimizer.found_inf = torch.tensor(0.0)
    optimizer.step()


@pytest.mark.parametrize("momentum", [MOMENTUM, 0.0])
def test_lars_is_the_published_algorithm(momentum):
    """Algorithm 1 of arXiv:1708.03888, one parameter after the other."""
    network, optimizer = built("lars", momentum)
    weights = {name: p.detach().double().clone() for name, p in network.named_parameters()}
    momenta = {name: torch.zeros_like(w) for name, w in weights.items()}
    for seed in range(4):
        step(network, optimizer, seed)
        for name, p in network.named_parameters():
            w, g, is_vector = weights[name], p.grad.double(), p.ndim < 2
            decay = 0.0 if is_vector else DECAY
            rate = 1.0 if is_vector else TRUST * w.norm() / (g.norm() + decay * w.norm())
            momenta[name] = momentum * momenta[name] + LR * rate * (g + decay * w)
            weights[name] = w - momenta[name]
    for name, p in network.named_parameters():
        torch.testing.assert_close(p.detach().double(), weights[name], rtol=1e-5, atol=1e-6)


def test_lamb_is_the_published_algorithm():
    """Algorithm 2 of arXiv:1904.00962 with Adam's corrections, one parameter after the other; a step that found_inf
    marks counts for nothing."""
    network, optimizer = built("lamb")
    weights = {name: p.detach().double().clone() for name, p in network.named_parameters()}
    first, second = ({name: torch.zeros_like(w) for name, w in weights.items()} for _ in range(2))
    for seed in range(1, 5):
        for p in network.parameters():
            p.grad = torch.full_like(p, torch.inf)
        optimizer.found_inf = torch.tensor(1.0)
        optimizer.step()
        step(network, optimizer, seed)
        for name, p in network.named_parameters():
            w, g, decay = weights[name], p.grad.double(), DECAY if p.ndim > 1 else 0.0
            first[name] = MOMENTUM * first[name] + (1 - MOMENTUM) * g
            second[name] = 0.999 * second[name] + 0.001 * g**2
            mean, square = first[name] / (1 - MOMENTUM**seed), second[name] / (1 - 0.999**seed)
            move = mean / (square.sqrt() + 1e-6) + decay * w
            weights[name] = w - LR * move * (w.norm() / move.norm() if p.ndim > 1 else 1.0)
    for name, p in network.named_parameters():
        torch.testing.assert_close(p.detach().double(), weights[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["lars", "lamb"])
def test_a_layer_of_zeros_moves_and_stays_finite(name):
    network, optimizer = built(name)
    nn.init.zeros_(network[2].weight)
    step(network, optimizer, 0)
    assert network[2].weight.isfinite().all() and network[2].weight.abs().sum() > 0
    network[2].weight.grad.zero_()
    optimizer.step()
    assert network[2].weight.isfinite().all()


@pytest.mark.parametrize("name", ["sgd", "lars", "adamw", "lamb"])
def test_a_stored_state_goes_on_to_the_bit(name):
    """Row by row in a file, as a checkpoint has it, and in channels_last again."""
    (first, one), (second, other) = built(name), built(name)
    step(first, one, 0)
    second.load_state_dict(first.state_dict())
    state = copy.deepcopy(one.state_dict())
    for values in state["state"].values():
        values |= {key: value.contiguous() for key, value in values.items() if torch.is_tensor(value)}
    restore_optimizer(other, state)
    step(first, one, 1)
    step(second, other, 1)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_the_average_is_the_recurrence_with_its_ramp():
    network, optimizer = built("sgd")
    average = WeightAverage({"net": network}, 0.3)
    expected = {name: value.double() for name, value in network.state_dict().items()}
    for number in range(6):
        step(network, optimizer, number)
        network[1](torch.randn(8, 4, 2, 2))  # moves the running statistics
        average.update(number)
        kept = min(0.3, (1 + number) / (10 + number))
        for name, value in network.state_dict().items():
            expected[name] = kept * expected[name] + (1 - kept) * value.double()
    expected["1.num_batches_tracked"] = torch.tensor(6.0)  # the last one, not a mean
    for name, value in average.state_dict()["net"].items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-6, atol=1e-6, check_dtype=False)
