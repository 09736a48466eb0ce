"""The number of ranks changes neither the samples nor the losses of a run, nor does a restart at another number."""

import contextlib
import shutil

import pytest
import torch

import tiny
from megaclass import distributed
from megaclass import train as training
from megaclass.distributed import World
from ranks import run_ranks

pytestmark = pytest.mark.dist

STEPS, HALF = 20, 10
CASES = {
    "full": {},
    "sampled": {"head": {"sample_rate": 0.3}},
    "data_parallel": {"head": {"sample_rate": 0.3, "parallelism": "data"}},
    "linear": {"head": {"kind": "linear", "label_smoothing": 0.1}, "optim": {"name": "adamw", "lr": 3e-3}},
}


class Stop(Exception):
    """Ends a run between two steps."""


def train(folder, case, stop=None, resume=False):
    """(labels, loss) of each step of this rank, from the start or the last checkpoint to ``stop`` or the end."""
    config = tiny.config(
        folder,
        run={"output": str(folder / case), "checkpoint_every": HALF},
        data={"global_batch_size": 24},
        model={"sync_norm": True},
        schedule={"steps": STEPS, "warmup": 0.2},
        **CASES[case],
    )
    curve, step_as_it_is = [], training.train_step

    def recorded(job, batch, step, norms):
        if step == stop:
            raise Stop
        outcome = step_as_it_is(job, batch, step, norms)
        curve.append((batch.labels.tolist(), float(outcome.loss)))
        return outcome

    world = World(distributed.rank(), distributed.world_size(), torch.device("cpu"))
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Stop):
        patch.setattr(training, "train_step", recorded)
        training.run(config, world, resume)
    return curve


def train_all(folder, stop=None, resume=False):
    return {case: train(folder, case, stop, resume) for case in CASES}


def global_curves(of_ranks):
    """case -> (labels of the global batches, losses), which all ranks must agree on."""
    curves = {}
    for case in CASES:
        steps = list(zip(*(curve[case] for curve in of_ranks), strict=True))
        assert all(len({loss for _, loss in step}) == 1 for step in steps)
        curves[case] = [sum((labels for labels, _ in step), []) for step in steps], [s[0][1] for s in steps]
    return curves


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    tiny.write_records(folder / "records", classes=60)
    return folder


@pytest.fixture(scope="module")
def alone(folder):
    found = global_curves(run_ranks(1, train_all, folder))
    for case in CASES:
        shutil.rmtree(folder / case)
    return found


@pytest.fixture(scope="module")
def halves(folder, alone):
    """The first half at two ranks; leaves its checkpoints."""
    return global_curves(run_ranks(2, train_all, folder, HALF))


@pytest.fixture(scope="module")
def resumed(folder, halves, tmp_path_factory):
    found = {}
    for ranks in (1, 2, 3):
        copy = tmp_path_factory.mktemp("resumed") / "copy"
        shutil.copytree(folder, copy)
        found[ranks] = global_curves(run_ranks(ranks, train_all, copy, None, True))
    return found


@pytest.mark.parametrize("case", CASES)
def test_the_curve_falls(alone, case):
    _, losses = alone[case]
    assert len(losses) == STEPS and losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_saved_at_two_ranks_and_resumed(alone, halves, resumed, case, ranks):
    """... and at two ranks the two halves are the whole, so this is also the comparison of two ranks with one."""
    labels, losses = ([*a, *b] for a, b in zip(halves[case], resumed[ranks][case], strict=True))
    assert labels == alone[case][0]
    assert losses == pytest.approx(alone[case][1], rel=1e-4)
