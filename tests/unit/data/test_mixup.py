import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

import tiny
from megaclass.data.mixup import Mixup
from megaclass.errors import UserError
from megaclass.train.guard import Guard
from megaclass.train.loop import train_step

CLASSES = 5
LINEAR = {"head": {"kind": "linear", "label_smoothing": 0.1}}


def batch(count=8):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, 4, 4, generator=generator)
    return images, torch.randint(CLASSES, (count,), generator=generator)


def test_neighbours_are_mixed_as_by_hand():
    mixup = Mixup(0.4, CLASSES, seed=1)
    images, labels = batch(4)
    mixed, targets = mixup(images, labels, step=9)
    share = mixup.share(9)
    for main, partner in ((0, 1), (1, 0), (2, 3), (3, 2)):
        torch.testing.assert_close(mixed[main], share * images[main] + (1 - share) * images[partner])
        expected = np.zeros(CLASSES)
        expected[labels[main]] += share
        expected[labels[partner]] += 1 - share
        np.testing.assert_allclose(targets[main], expected, atol=1e-6)


def test_shares_depend_on_seed_and_step_and_never_change():
    # A resumed run must draw what the run before it drew, whatever version wrote the checkpoint.
    mixup = Mixup(1.0, CLASSES, seed=7)
    expected = [0.04050961977428599, 0.01046569938598293, 0.9863868866729195]
    assert [mixup.share(step) for step in (0, 1, 10**9)] == pytest.approx(expected, rel=1e-12)
    assert Mixup(1.0, CLASSES, seed=8).share(0) != mixup.share(0)


def test_cutmix_pastes_one_box_of_the_neighbour_and_counts_its_area():
    mix = Mixup(0.0, CLASSES, seed=1, cutmix=1.0)
    images, labels = torch.randn(4, 3, 12, 16), torch.tensor([0, 1, 2, 2])
    for step in range(20):
        mixed, targets = mix(images, labels, step)
        top, bottom, left, right = mix.box(step, 12, 16)
        by_hand = images.clone()
        by_hand[:, :, top:bottom, left:right] = images[[1, 0, 3, 2], :, top:bottom, left:right]
        assert torch.equal(mixed, by_hand)
        area = (bottom - top) * (right - left) / (12 * 16)
        expected = [[1 - area, area, 0, 0, 0], [area, 1 - area, 0, 0, 0], *[[0, 0, 1, 0, 0]] * 2]
        np.testing.assert_allclose(targets, expected, atol=1e-6)


def test_boxes_are_those_of_the_paper_and_take_half_of_the_steps_beside_mixup():
    both = Mixup(0.2, CLASSES, seed=7, cutmix=1.0)
    boxes = [both.box(step, 100, 200) for step in range(4000)]
    assert [box for box in boxes if box][:2] == [(33, 100, 7, 179), (36, 100, 85, 200)]
    assert np.mean([box is None for box in boxes]) == pytest.approx(0.5, abs=0.03)
    free = np.array([box for box in boxes if box])
    inside = (free[:, [0, 2]] > 0).all(1) & (free[:, 1] < 100) & (free[:, 3] < 200)
    height, width = free[inside, 1] - free[inside, 0], free[inside, 3] - free[inside, 2]
    np.testing.assert_allclose(2 * height, width, atol=3)  # the picture's aspect
    assert free[inside, :2].mean() == pytest.approx(50, abs=2)


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("cutmix", [0.0, 1.0])
def test_a_split_batch_mixes_to_the_same_bits(parts, cutmix):
    mixup = Mixup(0.2 * (not cutmix), CLASSES, seed=3, cutmix=cutmix)
    images, labels = batch()
    whole = mixup(images, labels, 5)
    chunks = zip(images.chunk(parts), labels.chunk(parts), strict=True)
    split = [mixup(*chunk, 5) for chunk in chunks]
    for part, expected in zip(zip(*split, strict=True), whole, strict=True):
        assert torch.equal(torch.cat(part), expected)


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_odd_micro_batches_are_refused(tmp_path, name):
    with pytest.raises(UserError, match=rf"augment.{name}: .* leaves 3 for each of 4 parts .* multiple of 8"):
        tiny.job(tmp_path, augment={name: 0.2}, data={"accumulation": 4}, **LINEAR)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_step_has_the_loss_of_mixed_images(tmp_path, accumulation):
    sections = {"augment": {"mixup": 1.0}, "data": {"accumulation": accumulation}, **LINEAR}
    job, same = (tiny.job(tmp_path, **sections) for _ in range(2))
    (taken,) = job.loader.steps(3, 4)
    job.model.train(), same.model.train()
    loss = train_step(job, taken, 3, Guard(job)).loss.item()

    share = Mixup(1.0, tiny.CLASSES, job.config.run.seed).share(3)
    assert 0.1 < share < 0.9
    images = (taken.images.permute(0, 3, 1, 2).float() - 127.5) / 127.5
    partner = torch.arange(12) ^ 1
    mixed = share * images + (1 - share) * images[partner]
    logits = same.head.logits(torch.cat([same.backbone(part) for part in mixed.chunk(accumulation)]))
    by_hand = share * cross_entropy(logits, taken.labels, label_smoothing=0.1)
    by_hand += (1 - share) * cross_entropy(logits, taken.labels[partner], label_smoothing=0.1)
    assert loss == pytest.approx(by_hand.item(), rel=1e-5)
