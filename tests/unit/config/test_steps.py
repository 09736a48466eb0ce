"""What a recipe says in samples, in steps: another batch keeps its meaning."""

import pytest

from megaclass.config import from_mapping, steps_of

EPOCH = 10_000


def plan(batch=100, **sections):
    base = {"data": {"source": "synthetic", "num_classes": 5, "global_batch_size": batch}}
    return steps_of(from_mapping({"evaluate": {"path": "x"}} | base | sections), EPOCH)


@pytest.mark.parametrize(
    "given, total",
    [({"epochs": 2.5}, 250), ({"samples": 30_000}, 300), ({"steps": 7}, 7), ({"epochs": 1e-9}, 1)],
)
def test_length(given, total):
    assert plan(schedule=given).total == total


@pytest.mark.parametrize("batch", [50, 400])
def test_another_batch_sees_as_many_samples(batch):
    evaluate = {"path": "x", "every_epochs": 1}
    steps = plan(batch, schedule={"epochs": 8.0, "warmup_epochs": 2.0}, evaluate=evaluate)
    assert steps.total * batch == 8 * EPOCH and steps.warmup * batch == 2 * EPOCH
    assert steps.between_evaluations * batch == steps.between_checkpoints * batch == EPOCH


def test_steps_that_are_said_are_kept():
    schedule, evaluate = {"epochs": 1.0, "warmup": 0.1}, {"path": "x", "every": 7}
    steps = plan(schedule=schedule, evaluate=evaluate, run={"checkpoint_every": 3})
    assert (steps.warmup, steps.between_evaluations, steps.between_checkpoints) == (10, 7, 3)


@pytest.mark.parametrize(
    "optim, rate",
    [
        ({"lr": 0.3}, 0.3),
        ({"lr": 0.256, "lr_batch_size": 256}, 1.024),
        ({"lr": 0.256, "lr_batch_size": 256, "lr_scaling": "sqrt"}, 0.512),
    ],
)
def test_the_learning_rate_grows_with_the_batch(optim, rate):
    assert plan(1024, optim=optim).base_lr == pytest.approx(rate)
