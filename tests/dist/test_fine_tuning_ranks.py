"""Starting from another run, and a frozen backbone, do not depend on the number of ranks."""

import pytest
import torch

import tiny
from megaclass.parallel import groups
from megaclass.parallel.groups import World
from megaclass.train import loop
from megaclass.train.guard import Guard
from megaclass.train.job import build_job
from ranks import run_ranks

pytestmark = pytest.mark.dist

LETTERS = "abcdefghijk"
HEADS = {"model": {}, "data": {"parallelism": "data"}, "overlap": {}, "linear": {"kind": "linear"}}


def work(folder):
    """By head: centres at the start and after three steps with a frozen backbone, and whether it has moved by then
    and two steps later."""
    world, found = World(groups.rank(), groups.world_size(), torch.device("cpu")), {}
    for name, head in HEADS.items():
        weights = {"weights": str(folder / ("linear-run" if name == "linear" else "margin-run"))}
        config = tiny.config(
            folder / "grown", model=weights, head=head | weights, speed={"overlap_head": name == "overlap"} if name != "linear" else {},
            optim={"freeze_backbone_epochs": 0.8},
        )  # fmt: skip
        job = build_job(config, world)

        def centres(head):
            rows = head.weight.detach() if name == "linear" else head.centres()  # noqa: B023
            sharded = rows if len(rows) == len(LETTERS) else None
            return rows if sharded is not None else torch.cat(groups.gather_objects(rows))

        before = [t.clone() for t in job.backbone.state_dict().values()]
        guard, kept, moved = Guard(job), [centres(job.head).clone()], []
        for step, batch in enumerate(job.loader.steps(0, 5)):
            loop.train_step(job, batch, step, guard)
            if step in (2, 4):
                now = job.backbone.state_dict().values()
                moved.append(not all(map(torch.equal, now, before)))
                kept.append(centres(job.head).clone())
        found[name] = kept, moved
    return found


def test_centres_and_frozen_steps_are_those_of_one_rank(tmp_path):
    """Nine classes are known, two are new: in a sharded head those of the last rank."""
    for name, head in (("margin", {}), ("linear", {"kind": "linear"})):
        folder = tmp_path / name
        tiny.write_records(folder / "records", classes=9)
        (folder / "records/classes.txt").write_text("\n".join(LETTERS[:9]) + "\n")
        config = tiny.config(folder, run={"output": str(tmp_path / name / "run")}, head=head)
        loop.run(config, World(0, 1, torch.device("cpu")))
        (folder / "run").rename(tmp_path / f"{name}-run")
    tiny.write_records(tmp_path / "grown/records", classes=11)
    (tmp_path / "grown/records/classes.txt").write_text("\n".join(LETTERS) + "\n")
    alone, *several = [result for ranks in (1, 2) for result in run_ranks(ranks, work, tmp_path)]
    for name, (centres, moved) in alone.items():
        assert moved == [False, True]
        for other in several:
            assert other[name][1] == moved
            torch.testing.assert_close(other[name][0][:2], centres[:2], rtol=1e-5, atol=1e-6)
