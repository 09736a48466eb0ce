"""Schedules against formulas written independently: a recurrence, torch's own schedulers, hand-made tables."""

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR

from megaclass.config import Data, Schedule
from megaclass.train.schedule import factor, image_size


def factors(total, warmup=0, **plan):
    return [factor(Schedule(**plan), step, total, warmup) for step in range(total + 1)]


def test_it_starts_and_ends_as_told():
    assert factors(6, 4, kind="constant") == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0]
    assert factors(4, 2, kind="cosine", final_factor=0.5)[-1] == 0.5
    assert factors(4, 4, kind="polynomial") == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_a_warm_up_may_start_above_0_and_the_decay_with_the_run():
    assert factors(8, 4, kind="constant", warmup_from=0.2)[:5] == pytest.approx([0.4, 0.6, 0.8, 1.0, 1.0])
    whole, ours = factors(8, kind="cosine"), factors(8, 4, kind="cosine", decay_in_warmup=True)
    assert ours == [0.25, 0.5, 0.75, 1.0, *whole[4:]] and whole[4] == pytest.approx(0.5)


@pytest.mark.parametrize("power", [1.0, 2.0, 0.5])
def test_polynomial_follows_the_recurrence_of_arcface_torch(power):
    # Their scheduler uses base * l / w at 0 < l <= w, then multiplies the last rate at each step by
    # ((1 - (l - w) / (t - w)) / (1 - (l - 1 - w) / (t - w)))^power.
    warmup, total = 7, 60
    ours = factors(total, warmup, kind="polynomial", power=power)
    rate = 1.0
    for step in range(1, total):
        if step <= warmup:
            rate = step / warmup
        else:
            now, before = (step - warmup) / (total - warmup), (step - 1 - warmup) / (total - warmup)
            rate *= ((1 - now) / (1 - before)) ** power
        # Ours is one step ahead in the warm-up, because it has no first step at the full rate.
        assert ours[step - 1 if step < warmup else step] == pytest.approx(rate)


@pytest.mark.parametrize(
    "make, plan",
    [
        (lambda o: CosineAnnealingLR(o, T_max=50, eta_min=0.1), {"kind": "cosine", "final_factor": 0.1}),
        (lambda o: MultiStepLR(o, [15, 35, 45]), {"kind": "multistep", "milestones": [0.3, 0.7, 0.9]}),
    ],
)
@pytest.mark.filterwarnings("ignore:Detected call of")
def test_cosine_and_multistep_are_torchs(make, plan):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, theirs = make(optimizer), []
    for _ in range(50):
        theirs += scheduler.get_last_lr()
        scheduler.step()
    assert factors(50, **plan)[:-1] == pytest.approx(theirs)


def test_multistep_lands_on_whole_steps_in_spite_of_rounding():
    ours = factors(10, kind="multistep", milestones=[0.7], gamma=0.5)
    assert ours == [1.0] * 7 + [0.5] * 4


def test_images_grow_in_strides_and_reach_their_size():
    growing = Data(start_size=128, image_size=224, full_size_at=0.75)
    sizes = [image_size(growing, step, 100) for step in range(100)]
    assert sizes == sorted(sizes) and sizes[0] == 128 and set(sizes[75:]) == {224} and sizes[74] < 224
    assert {(size - 128) % 16 for size in sizes} == {0}
    assert image_size(Data(start_size=64, image_size=96, full_size_at=0.0), 0, 10) == 96
    assert image_size(Data(image_size=96), 0, 10) == 96
    later = Data(start_size=128, image_size=192, grow_from=0.5, full_size_at=0.75)
    assert [image_size(later, step, 16) for step in (0, 8, 9, 10, 11, 12)] == [128, 128, 144, 160, 176, 192]
    at_once = Data(start_size=128, image_size=192, grow_from=0.75, full_size_at=0.75)
    assert [image_size(at_once, step, 16) for step in (0, 11, 12)] == [128, 128, 192]
