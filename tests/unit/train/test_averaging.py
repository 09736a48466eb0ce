"""The moving average of the weights: its values, its place in an evaluation, its trip through a checkpoint."""

import copy

import pytest
import torch
from torch import nn

from megaclass.train.average import WeightAverage


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def moved(module, step):
    """One made-up step of an optimizer and of the running statistics."""
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.full_like(p, 0.5 + step))
        module(torch.randn(8, 3))


def test_it_is_the_recurrence_with_its_ramp():
    module, decay = network(), 0.3
    average = WeightAverage({"net": module}, decay)
    expected = {key: value.double().clone() for key, value in module.state_dict().items()}
    for step in range(6):
        moved(module, step)
        average.update(step)
        kept = min(decay, (1 + step) / (10 + step))
        for key, value in module.state_dict().items():
            if value.is_floating_point():
                expected[key] = kept * expected[key] + (1 - kept) * value.double()
    found = average.state_dict()["net"]
    for key, value in expected.items():
        if found[key].is_floating_point():
            torch.testing.assert_close(found[key].double(), value, rtol=1e-6, atol=1e-6)
    assert int(found["1.num_batches_tracked"]) == 6


def test_the_weights_come_back_to_the_bit_even_after_an_error():
    module = network()
    average = WeightAverage({"net": module}, 0.9)
    moved(module, 1)
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(RuntimeError, match="stop"), average.in_place():
        assert not torch.equal(module[0].weight, before["0.weight"])
        raise RuntimeError("stop")
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    with average.in_place():  # it is still the first weights
        assert torch.equal(module[0].weight, network()[0].weight)


def test_a_stored_average_goes_on():
    first, second = network(), network()
    averages = [WeightAverage({"net": module}, 0.9) for module in (first, second)]
    moved(first, 0)
    averages[0].update(0)
    second.load_state_dict(first.state_dict())
    averages[1].load_state_dict(averages[0].state_dict())
    for module, average in zip((first, second), averages, strict=True):
        torch.manual_seed(1)
        moved(module, 1)
        average.update(1)
    one, other = (average.state_dict()["net"] for average in averages)
    assert all(torch.equal(value, other[key]) for key, value in one.items())
    averages[1].restart()
    with averages[1].in_place():
        assert torch.equal(second[0].weight, first[0].weight)
