import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import tiny
from megaclass.data.mixup import Mixup
from megaclass.errors import UserError
from megaclass.models import registry
from megaclass.parallel.groups import World
from megaclass.results.events import StepEvent, read_events
from megaclass.train import loop
from megaclass.train.job import build_job
from megaclass.train.loop import NormBuffers, train_step

WORLD = World(0, 1, torch.device("cpu"))
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


@pytest.mark.parametrize("parts", [2, 4])
def test_a_split_batch_mixes_to_the_same_bits(parts):
    mixup = Mixup(0.2, CLASSES, seed=3)
    images, labels = batch()
    whole = mixup(images, labels, 5)
    chunks = zip(images.chunk(parts), labels.chunk(parts), strict=True)
    split = [mixup(*chunk, 5) for chunk in chunks]
    for part, expected in zip(zip(*split, strict=True), whole, strict=True):
        assert torch.equal(torch.cat(part), expected)


def test_an_odd_batch_is_refused(tmp_path):
    config = tiny.config(tmp_path, augment={"mixup": 0.2}, data={"accumulation": 4}, **LINEAR)
    with pytest.raises(UserError, match=r"augment.mixup: .* leaves 3 for each of 4 parts .* multiple of 8"):
        build_job(config, WORLD)


def test_a_step_has_the_loss_of_mixed_images(tmp_path):
    config = tiny.config(tmp_path, augment={"mixup": 1.0}, **LINEAR)
    job, same = build_job(config, WORLD), build_job(config, WORLD)
    (taken,) = job.loader.steps(3, 4)
    job.model.train(), same.model.train()
    loss = train_step(job, taken, 3, NormBuffers(job.backbone)).loss.item()

    share = Mixup(1.0, tiny.CLASSES, config.run.seed).share(3)
    assert 0.1 < share < 0.9
    images = (taken.images.permute(0, 3, 1, 2).float() - 127.5) / 127.5
    partner = torch.arange(12) ^ 1
    logits = same.head.logits(same.backbone(share * images + (1 - share) * images[partner]))
    by_hand = share * cross_entropy(logits, taken.labels, label_smoothing=0.1)
    by_hand += (1 - share) * cross_entropy(logits, taken.labels[partner], label_smoothing=0.1)
    assert loss == pytest.approx(by_hand.item(), rel=1e-5)


def losses(folder, resume=False, steps=10, **data):
    config = tiny.config(
        folder,
        augment={"mixup": 1.0, "flip": True},
        run={"checkpoint_every": 4},
        data=data,
        model={"name": "plain"},
        schedule={"steps": steps, "kind": "constant"},
        **LINEAR,
    )
    directory, _ = loop.run(config, WORLD, resume)
    return [event.loss for event in read_events(directory.events) if isinstance(event, StepEvent)]


class Plain(nn.Module):
    """A backbone without batch statistics."""

    def __init__(self, *, embedding_dim: int, image_size: int, width: int) -> None:
        super().__init__()
        self.embedding_dim = embedding_dim
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(3 * image_size**2, embedding_dim), nn.SiLU())

    def forward(self, images):
        return self.layers(images)


def test_a_run_resumes_to_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setitem(registry.BACKBONES, "plain", Plain)
    whole = losses(tmp_path / "whole")
    losses(tmp_path / "parts", steps=4)
    assert losses(tmp_path / "parts", resume=True) == whole
    assert len(set(whole)) == 10


def test_micro_batches_mix_as_the_whole_batch_does(tmp_path, monkeypatch):
    monkeypatch.setitem(registry.BACKBONES, "plain", Plain)
    assert losses(tmp_path / "three", accumulation=3) == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
