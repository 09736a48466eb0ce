"""The memory that is reckoned before a run is that which its parts take."""

import pytest
import torch

import tiny
from megaclass.config import from_mapping
from megaclass.parallel.groups import World
from megaclass.plan.memory import Job, memory_of
from megaclass.train.job import build_job


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"head": {"storage": "bf16", "sample_rate": 0.5}, "optim": {"name": "lars", "ema_decay": 0.9}},
        {"head": {"storage": "int8_rowwise"}, "precision": {"compute": "bf16"}},
        {"head": {"kind": "linear"}, "optim": {"momentum": 0.0}, "precision": {"compute": "bf16"}},
    ],
)
def test_the_memory_is_that_of_a_job(tmp_path, sections):
    base = tiny.config(tmp_path)
    config = from_mapping(sections, from_mapping({"head": {"scale": 64.0}}, base))
    job = build_job(config, World(0, 1, torch.device("cpu")))

    def size(tensors):
        return sum(t.nbytes for t in tensors if t.is_floating_point() or t.dtype == torch.int8)

    found = memory_of(Job(config, job.arithmetic.compute, job.num_classes))
    linear = config.head.kind == "linear"
    weights = size([*job.backbone.state_dict().values(), *(job.head.state_dict().values() if linear else ())])
    assert found.weights == weights
    assert found.optimizer == size(
        t for state in job.optimizer.state.values() for t in state.values() if t is not None
    )
    assert found.average == (weights if job.average else 0)
    if not linear:
        shard = job.head.shard
        assert found.centres == size(shard.centres.tensors.values())
        assert found.momentum == (size(shard.momentum.tensors.values()) if shard.momentum else 0)
        assert found.owed >= (shard._debts.touched_C.nbytes if shard._debts else 0)
