"""What a rank sends in a training step: the same by real ranks, by simulated ones, and by the formulas of
docs/performance.md."""

import pytest
import torch

from megaclass.parallel import groups
from megaclass.bench.train.cases import TrainCase, resolved
from megaclass.bench.train.contender import Training
from megaclass.parallel.groups import World
from megaclass.models.registry import build_backbone
from ranks import run_ranks

ROWS, COLUMNS, CLASSES = 4, 32, 100  # rows of a rank
MODEL = {"model.width": 16}


def sent(ranks, simulate, parallelism, rate, settings):
    case = resolved(
        TrainCase(
            recipe="faces_r50",
            backbone="convnet",
            embedding_dim=COLUMNS,
            image_size=16,
            num_classes=CLASSES,
            sample_rate=rate,
            parallelism=parallelism,
            global_batch_size=ROWS * ranks * simulate,
            world_size=ranks,
            simulate_ranks=simulate,
            iterations=2,
            settings=MODEL | settings,
        )
    )
    world = World(groups.rank(), ranks, torch.device("cpu"))
    return Training(case, world).epoch(lambda done: None)["work"]


def expected(ranks, parallelism, rate, settings):
    """Bytes and rounds by kind."""
    backbone = build_backbone("convnet", embedding_dim=COLUMNS, image_size=16, width=16)
    trained = sum(p.numel() for p in backbone.parameters() if p.requires_grad)
    size = 2 if "speed.gradient_compression" in settings else 4
    twice = 2 * (ranks - 1) / ranks
    found = {"backbone": (twice * size * trained, 2 * (ranks - 1))}
    if parallelism == "model":
        labels = 1 if rate == 1 else 2  # once more to draw the sample
        found["all_gather"] = ((ranks - 1) * ROWS * (4 * COLUMNS + 8 * labels), (1 + labels) * (ranks - 1))
        found["all_reduce"] = (32 * (ranks - 1) * ROWS, 2 * (ranks - 1))
        found["reduce_scatter"] = (4 * (ranks - 1) * ROWS * COLUMNS, ranks - 1)
    else:
        # Of the centres in one tile, then the loss in fp64, and whether all is finite.
        found["all_reduce"] = (twice * (4 * CLASSES * (COLUMNS + 1) + 8 + 4), 4 * 2 * (ranks - 1))
    if "model.sync_norm" in settings:
        channels = [
            m.num_features for m in backbone.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)
        ]
        each_way = sum(8 * (2 * number + 1) for number in channels)
        found["norms"] = (twice * 2 * each_way, len(channels) * 2 * 2 * (ranks - 1))
    return found


def check(work, wanted):
    kinds = {key.removeprefix("sent_bytes_") for key in work if key.startswith("sent_bytes_")}
    assert kinds == wanted.keys()
    for kind, (volume, rounds) in wanted.items():
        assert work[f"sent_bytes_{kind}"] == pytest.approx(volume), kind
        assert work[f"sent_rounds_{kind}"] == rounds, kind


CASES = [
    ("model", 1.0, {}),
    ("data", 1.0, {}),
    ("model", 1.0, {"model.sync_norm": True}),
    ("model", 0.5, {"speed.gradient_compression": "bf16"}),
]


@pytest.mark.parametrize("simulate", [2, 8])
@pytest.mark.parametrize(("parallelism", "rate", "settings"), CASES)
def test_simulated_ranks_send_what_the_formulas_say(simulate, parallelism, rate, settings):
    check(sent(1, simulate, parallelism, rate, settings), expected(simulate, parallelism, rate, settings))


def test_one_rank_sends_nothing():
    assert sent(1, 1, "model", 1.0, {}) == {}


def of_cases():
    return [sent(2, 1, *case) for case in CASES]


@pytest.mark.dist
def test_two_ranks_send_what_the_formulas_say():
    for found in run_ranks(2, of_cases):
        for work, case in zip(found, CASES, strict=True):
            check(work, expected(2, *case))
