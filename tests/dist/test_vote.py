"""Flags that every rank hears of a step later, while another thread exchanges something else."""

import threading

import pytest

from megaclass.errors import UserError
from megaclass.parallel import groups
from megaclass.parallel.vote import Vote
from ranks import run_ranks

pytestmark = pytest.mark.dist


def vote():
    ballot, side = Vote(), groups.new_side_group()
    exchanged = []
    thread = threading.Thread(target=lambda: exchanged.extend(groups.gather_objects(i, side) for i in range(50)))
    thread.start()
    heard = [ballot.cast(1 << groups.rank() if step == 1 else 0) for step in range(3)]
    ballot.cast(4)
    last = ballot.wait()
    thread.join()
    ranks = groups.world_size()
    return heard, last, exchanged == [[i] * ranks for i in range(50)]


def test_two_ranks_hear_of_each_other_in_the_next_step():
    assert run_ranks(2, vote) == [([0, 0, 3], 4, True)] * 2


def test_a_rank_that_is_alone_hears_itself_at_once():
    ballot = Vote()
    assert [ballot.cast(flags) for flags in (1, 0, 6)] == [1, 0, 6] and ballot.wait() == 0
    assert groups.new_side_group() is None


def disagree():
    told = []
    for work in (
        lambda: groups.agree(lambda: {"images": 24 + groups.rank(), "classes": 6}),
        lambda: groups.together(lambda: _fail_on(1), groups.new_side_group()),
    ):
        try:
            work()
        except UserError as error:
            told.append((str(error), error.agreed))
    groups.agree(lambda: {"images": 24})
    return told


def _fail_on(rank):
    if groups.rank() == rank:
        raise UserError("no such file")


def test_all_ranks_raise_what_differs_and_what_one_meets():
    line = "ranks differ: images is 24 on rank 0 and 25 on rank 1: all ranks need the same"
    assert run_ranks(2, disagree) == [[(line, True), ("no such file", True)]] * 2
