"""The head's step before the backbone's gradients have arrived: another order, the same numbers."""

import pytest
import torch

import tiny
from megaclass.train import loop
from megaclass.train.guard import Guard
from ranks import run_ranks

pytestmark = pytest.mark.dist

STEPS = 6


def curve(folder, overlap, accumulation, poisoned_step):
    """(losses, when the head stepped: before or after the gradients were there, the first class centre)."""
    job = tiny.job(
        folder,
        data={"accumulation": accumulation},
        head={"sample_rate": 0.5},
        speed={"overlap_head": overlap, "bucket_mb": 0.1},
    )
    assert job.overlaps_head == overlap
    order, step_as_it_is, update_as_it_is = [], job.head_optimizer.step, loop.update

    def step():
        order.append("head")
        step_as_it_is()

    def update(job, *rest):
        order.append("update")
        return update_as_it_is(job, *rest)

    job.head_optimizer.step, loop.update = step, update
    guard, losses = Guard(job), []
    try:
        for number, batch in enumerate(job.loader.steps(0, STEPS)):
            loop.set_learning_rate(job, number)
            if number == poisoned_step:
                job.to_input, kept = (
                    (lambda images: torch.full((len(images), 3, 16, 16), torch.nan)),
                    job.to_input,
                )
            losses.append(float(loop.train_step(job, batch, number, guard).loss))
            if number == poisoned_step:
                job.to_input = kept
    finally:
        loop.update = update_as_it_is
    return losses, order, job.head.centres()[:1]


def half_a_step(folder):
    """Whether centres and backbone moved in a step of finite loss whose gradient of the backbone is not finite."""
    job = tiny.job(folder, speed={"overlap_head": True})
    first = next(iter(job.backbone.parameters()))
    first.register_hook(lambda grad: torch.full_like(grad, torch.nan))
    before = first.detach().clone(), job.head.centres()
    batch = next(iter(job.loader.steps(0, 1)))
    outcome = loop.train_step(job, batch, 0, Guard(job))
    assert outcome.loss.isfinite() and outcome.skipped
    return not torch.equal(job.head.centres(), before[1]), not torch.equal(first, before[0])


CASES = [(1, None), (2, 2)]  # micro-batches, and the step whose images are no numbers


def work(folder):
    return [[curve(folder, overlap, *case) for overlap in (False, True)] for case in CASES], half_a_step(folder)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("overlap")
    tiny.write_records(folder / "records")
    return run_ranks(2, work, folder)


def test_overlapping_changes_the_order_and_no_number(found):
    for of_rank, _ in found:
        for plain, overlapped in of_rank:
            assert plain[1] == ["update", "head"] * STEPS and overlapped[1] == ["head", "update"] * STEPS
            losses, others = (torch.tensor(curve[0]).nan_to_num(7) for curve in (plain, overlapped))
            assert torch.equal(losses, others)
            assert torch.equal(plain[2], overlapped[2]) and plain[2].isfinite().all()


def test_the_centres_alone_move_where_only_the_backbone_s_gradient_is_not_finite(found):
    assert [moved for _, moved in found] == [(True, False)] * 2
