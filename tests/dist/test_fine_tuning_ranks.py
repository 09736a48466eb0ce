"""Starting from another run, and a frozen backbone, do not depend on the number of ranks."""

import pytest
import torch

import tiny
from megaclass.parallel import groups
from megaclass.train import loop
from megaclass.train.guard import Guard
from ranks import run_ranks

pytestmark = pytest.mark.dist

HEADS = {"sharded": {}, "replicated": {"parallelism": "data"}, "linear": {"kind": "linear"}}


def work(folder):
    return {name: started(folder, name) for name in HEADS}


def started(folder, name):
    """Centres at the start and after three steps of a frozen backbone, and whether that has moved then, and later."""
    source = {"weights": str(folder / ("linear" if name == "linear" else "margin"))}
    sections = {"head": HEADS[name] | source, "speed": {"overlap_head": True} if name == "sharded" else {}}
    job = tiny.job(folder / "grown", model=source, optim={"freeze_backbone_epochs": 0.8}, **sections)
    began, guard, found, graphs = [t.clone() for t in job.backbone.state_dict().values()], Guard(job), [], []
    job.backbone.register_forward_hook(lambda module, _, given: graphs.append(module.training | given.requires_grad))
    for step, batch in enumerate(job.loader.steps(0, 5)):
        if step in (0, 3, 4):
            rows = job.head.weight.detach().clone()
            rows = torch.cat(groups.gather_objects(rows)) if name == "sharded" else rows
            found.append((rows, all(map(torch.equal, job.backbone.state_dict().values(), began))))
        loop.train_step(job, batch, step, guard)
    assert graphs == [False] * 3 + [True] * 2  # nothing is computed backwards while it stands still
    return found


def test_centres_and_frozen_steps_are_those_of_one_rank(tmp_path):
    """Nine classes are known, two are new: in a sharded head those of the last rank."""
    for name, classes in (("known", 9), ("grown", 11)):
        records = tiny.write_records(tmp_path / name / "records", classes=classes)
        (records / "classes.txt").write_text("\n".join("abcdefghijk"[:classes]) + "\n")
    for kind in ("margin", "linear"):
        tiny.run(tmp_path / "known", run={"output": str(tmp_path / kind)}, head={"kind": kind})
    alone, *several = [found for ranks in (1, 2) for found in run_ranks(ranks, work, tmp_path)]
    for name, found in alone.items():
        for other in (found, *(theirs[name] for theirs in several)):
            assert [stands for _, stands in other] == [True, True, False]
            for (ours, _), (theirs, _) in zip(found[:2], other[:2], strict=True):
                torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-6)
