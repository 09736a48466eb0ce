"""The number of ranks changes neither the samples nor the losses of a run, nor does a restart at another number."""

import itertools
import shutil

import pytest

import tiny
from megaclass.data.records.reader import RecordDataset
from megaclass.models import registry
from megaclass.parallel import groups
from megaclass.results.events import StepEvent
from megaclass.train import loop
from ranks import run_ranks

pytestmark = pytest.mark.dist

STEPS, HALF = 10, 5
CASES = {
    "full": {},
    "sampled": {"head": {"sample_rate": 0.3}},
    "sub_centres": {"head": {"sample_rate": 0.3, "sub_centres": 3}},
    "data_parallel": {"head": {"sample_rate": 0.3, "parallelism": "data"}},
    "by_node": {"head": {"sample_rate": 0.3, "shard_group": "node"}},
    "accumulated": {"data": {"global_batch_size": 24, "accumulation": 2}},
    "bf16": {"head": {"sample_rate": 0.3, "storage": "bf16"}},
    "int8_rowwise": {"head": {"storage": "int8_rowwise"}},
    "linear": {"head": {"kind": "linear", "label_smoothing": 0.1}, "optim": {"name": "adamw", "lr": 3e-3}},
    "mixed": {
        "head": {"kind": "linear", "label_smoothing": 0.1, "loss": "bce"},
        "optim": {"name": "adamw", "lr": 2e-2},
        "augment": {"mixup": 1.0, "cutmix": 1.0, "policy": "timm", "erase_probability": 0.5, "repeats": 3},
    },
}

# Sums in another order round to another neighbour now and then.
TOLERANCE = {"bf16": 1e-2, "int8_rowwise": 2e-2}


def train(folder, resume, case):
    """(labels of this rank by micro-batch, loss) of each step, from the start or from the last checkpoint."""
    config = tiny.config(
        folder,
        run={"output": str(folder / case), "checkpoint_every": HALF},
        model={"name": "smooth", "sync_norm": True},
        schedule={"steps": STEPS, "warmup": 0.2},
        **{"data": {"global_batch_size": 24}} | CASES[case],
    )
    curve, step_as_it_is = [], loop.train_step

    def recorded(job, batch, step, norms):
        outcome = step_as_it_is(job, batch, step, norms)
        micro_batches = batch.labels.chunk(config.data.accumulation)
        curve.append(([part.tolist() for part in micro_batches], float(outcome.loss)))
        return outcome

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.BACKBONES, "smooth", tiny.smooth)
        patch.setattr(loop, "train_step", recorded)
        loop.run(config, tiny.world(), resume)
    return curve


def train_all(folder, resume):
    return {case: train(folder, resume, case) for case in CASES}


def global_curves(of_ranks):
    """case -> (labels of the micro-batches over all ranks, losses), which all ranks must agree on."""
    curves = {}
    for case in CASES:
        steps = list(zip(*(curve[case] for curve in of_ranks), strict=True))
        assert all(len({loss for _, loss in step}) == 1 for step in steps)
        labels = [zip(*(labels for labels, _ in step), strict=True) for step in steps]
        batches = [[[*itertools.chain(*parts)] for parts in of_step] for of_step in labels]
        curves[case] = batches, [step[0][1] for step in steps]
    return curves


@pytest.fixture(scope="module")
def curves(tmp_path_factory):
    """Of one rank, of four on two nodes, and of one and three on one node that took over from four at half time."""
    alone, together = (tmp_path_factory.mktemp(name) for name in ("alone", "together"))
    found = {}
    for ranks, folder in ((1, alone), (4, together)):
        tiny.write_records(folder / "records", classes=60, samples=2)
        found[ranks] = global_curves(run_ranks(ranks, train_all, folder, False, node_ranks=2))
    for case in CASES:
        shutil.rmtree(together / case / "checkpoints" / f"step-{STEPS:08d}")
    for ranks in (1, 3):
        copy = together.with_name(f"resumed-{ranks}")
        shutil.copytree(together, copy)
        found["resumed", ranks] = global_curves(run_ranks(ranks, train_all, copy, True))
    return found


@pytest.mark.parametrize("case", CASES)
def test_four_ranks_give_the_curve_of_one(curves, case):
    labels, losses = curves[1][case]
    assert len(losses) == STEPS and losses[-1] < 0.9 * losses[0]
    assert curves[4][case] == (labels, pytest.approx(losses, rel=TOLERANCE.get(case, 1e-4)))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("ranks", [1, 3])
def test_saved_at_four_ranks_and_resumed(curves, case, ranks):
    labels, losses = (values[HALF:] for values in curves[1][case])
    assert curves["resumed", ranks][case] == (labels, pytest.approx(losses, rel=TOLERANCE.get(case, 1e-4)))


def train_on_damage(folder):
    """How many samples the run says were left out, on the main rank."""
    directory, _ = tiny.run(
        folder,
        run={"output": str(folder / f"damaged-{groups.world_size()}")},
        data={"source": "folder", "path": str(folder / "images"), "on_error": "skip"},
        schedule={"steps": 12},
    )
    return [event.damaged_samples for event in tiny.events(directory.path, StepEvent)]


def test_a_sample_that_every_rank_met_counts_once(tmp_path):
    images = tiny.write_records(tmp_path / "records")
    dataset = RecordDataset(images)
    for number in range(len(dataset)):
        sample = dataset.read(number)
        place = tmp_path / "images" / str(sample.label)
        place.mkdir(parents=True, exist_ok=True)
        encoded = sample.encoded[:100] if number in (3, 20) else sample.encoded
        (place / f"{number:03}.jpg").write_bytes(encoded)
    alone, (together, _) = run_ranks(1, train_on_damage, tmp_path), run_ranks(2, train_on_damage, tmp_path)
    assert alone[0] == together
    assert together[-1] == 2
