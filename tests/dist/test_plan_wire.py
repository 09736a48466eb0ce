"""What plan says travels is what ranks send."""

from collections import Counter

import pytest
import torch

import tiny
from megaclass.parallel.groups import Group
from megaclass.plan.memory import Job
from megaclass.plan.wire import collectives
from megaclass.train.guard import Guard
from megaclass.train.loop import train_step
from ranks import run_ranks

pytestmark = pytest.mark.dist

CASES = [
    {"head": {}},
    {"head": {"sample_rate": 0.5}, "data": {"accumulation": 2, "global_batch_size": 16}},
    {"head": {"parallelism": "data"}},
    {"head": {"shard_group": "node"}},
    {"head": {"kind": "linear"}},
]


def sent(folder, sections):
    """Bytes of one step, by the kind of collective."""
    job = tiny.job(folder, **sections)
    found: Counter[str] = Counter()

    def counting(kind, method):
        def call(group, tensor, *rest):
            result = method(group, tensor, *rest)
            if group.size > 1:
                # The whole tensor, which the ranks give or get together.
                found[kind] += max(tensor.nbytes, result.nbytes)
            return result

        return call

    kinds = {"all_gather_rows": "all-gather", "reduce_scatter_rows": "reduce-scatter", "all_reduce_": "all-reduce"}
    before = {name: getattr(Group, name) for name in kinds}
    for module in {job.model, job.scorer}:
        if hasattr(module, "register_comm_hook"):
            module.register_comm_hook(found, of_bucket)
    for name, kind in kinds.items():
        setattr(Group, name, counting(kind, before[name]))
    try:
        train_step(job, next(iter(job.loader.steps(0, 1))), 0, Guard(job))
    finally:
        for name, method in before.items():
            setattr(Group, name, method)
    return found, job.num_classes, job.config


def of_bucket(found, bucket):
    found["all-reduce"] += bucket.buffer().nbytes
    done: torch.futures.Future = torch.futures.Future()
    done.set_result(bucket.buffer())
    return done


def every(folder):
    return [sent(folder, sections) for sections in CASES]


def test_bytes_of_each_kind(tmp_path):
    tiny.write_records(tmp_path / "records")
    for found, classes, config in run_ranks(4, every, tmp_path, node_ranks=2)[0]:
        planned: Counter[str] = Counter()
        for one in collectives(Job(config, "fp32", classes, 4, 2)):
            planned[one.kind] += one.bytes * one.count
        few = 64  # the loss, and whether a step is skipped
        assert found.keys() == planned.keys() and all(abs(found[k] - planned[k]) <= few for k in found), config.head
