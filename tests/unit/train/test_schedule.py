"""Schedules against formulas written independently: recurrences, torch's own schedulers, hand-made tables."""

import itertools
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megaclass.train import schedule


def test_warmup_starts_above_zero_and_ends_at_one():
    assert [schedule.warmup_factor(s, 4) for s in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert schedule.warmup_factor(0, 0) == 1.0


@pytest.mark.parametrize("power", [1.0, 2.0, 0.5])
def test_polynomial_follows_the_recurrence_of_arcface_torch(power):
    # Their scheduler uses base * l / w at 0 < l <= w, then multiplies the last rate at each step by
    # ((1 - (l - w) / (t - w)) / (1 - (l - 1 - w) / (t - w)))^power.
    warmup, total = 7, 60
    rate = 1.0
    for step in range(1, total):
        if step <= warmup:
            rate = step / warmup
        else:
            now, before = (step - warmup) / (total - warmup), (step - 1 - warmup) / (total - warmup)
            rate *= ((1 - now) / (1 - before)) ** power
        if step < warmup:  # ours is one step ahead, because it has no first step at the full rate
            assert schedule.factor("polynomial", step - 1, total, warmup, power=power) == pytest.approx(rate)
        else:
            assert schedule.factor("polynomial", step, total, warmup, power=power) == pytest.approx(rate)


def torch_factors(make, steps):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer)
    factors = []
    for _ in range(steps):
        factors.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scheduler.step()
    return factors


def test_cosine_is_torchs():
    from torch.optim.lr_scheduler import CosineAnnealingLR

    wanted = torch_factors(lambda o: CosineAnnealingLR(o, T_max=50, eta_min=0.1), 50)
    assert [schedule.factor("cosine", s, 50, final_factor=0.1) for s in range(50)] == pytest.approx(wanted)


def test_multistep_is_torchs():
    from torch.optim.lr_scheduler import MultiStepLR

    wanted = torch_factors(lambda o: MultiStepLR(o, milestones=[30, 70, 90], gamma=0.1), 100)
    ours = [schedule.factor("multistep", s, 100, milestones=(0.3, 0.7, 0.9)) for s in range(100)]
    assert ours == pytest.approx(wanted)


def test_multistep_lands_on_whole_steps_in_spite_of_rounding():
    ours = [schedule.factor("multistep", s, 10, milestones=(0.7,), gamma=0.5) for s in range(10)]
    assert ours == [1.0] * 7 + [0.5] * 3


@given(
    kind=st.sampled_from(schedule.KINDS),
    total=st.integers(1, 500),
    data=st.data(),
    power=st.floats(0.25, 4),
    final=st.floats(0, 1),
)
def test_every_schedule_rises_then_falls_and_never_stops_the_run(kind, total, data, power, final):
    warmup = data.draw(st.integers(0, total))
    options = {"power": power, "final_factor": final, "milestones": (0.5, 0.75)}
    factors = [schedule.factor(kind, s, total, warmup, **options) for s in range(total + 2)]
    assert all(0 < f <= 1 for f in factors[:total])
    if kind != "multistep":  # its milestones may fall into the warm-up
        head, tail = factors[:warmup], factors[warmup:]
        assert head == sorted(head)
        assert all(a >= b - 1e-12 for a, b in itertools.pairwise(tail))
    if warmup:
        first = schedule.multistep(0, total, (0.5, 0.75)) if kind == "multistep" else 1.0
        assert factors[0] == pytest.approx(first / warmup)
    if kind in ("polynomial", "cosine") and warmup < total:
        assert factors[total] == factors[total + 1] == pytest.approx(final, abs=1e-12)
