"""Ranks of test_endings.py, each of which prints what threads are left of its group, in the environment of torchrun.

``endings.py WAY`` is one rank that trains a little, and ends in this way. ``endings.py PAIRS``, a number, forks so many
pairs, some at once, so that they are in each other's way: each ends through the whole end of Python, with the
interpreter held when it begins, so that a thread that wants it then waits into the end.
"""

import atexit
import functools
import os
import signal
import sys
import time
from pathlib import Path

import torch

from megaclass.errors import LostRankError, UserError
from megaclass.parallel import groups
from megaclass.parallel.gradients import averaging
from megaclass.parallel.vote import Vote
from ranks import meeting

_AT_ONCE = 5
_FIRST_PORT = 20_000


def train(way: str) -> None:
    model, vote = averaging(torch.nn.Linear(4, 4), torch.device("cpu")), Vote()
    for step in range(3):
        vote.cast(step)
        model(torch.ones(2, 4)).sum().backward()
    vote.close()
    first = groups.rank() == 0
    if way == "error" and first:
        raise UserError("the fault of this test")
    if way == "killed" and first:
        os.kill(os.getpid(), signal.SIGKILL)
    groups.on_main_rank(dict)


def rank_of_a_pair(rank: int, port: str) -> None:
    os.environ |= meeting(rank, 2, port)
    atexit.register(functools.partial(sum, range(2_000_000)))  # some 20 ms
    with groups.started("cpu", 60.0, heartbeat_s=30.0):
        # As DistributedDataParallel does by way of torch._dynamo, which takes two seconds.
        import torch.distributed.nn.functional

        vote = Vote()
        for step in range(5):
            vote.cast(step)
            groups.on_main_rank(dict)
        vote.close()


def forked(work, *args) -> int:
    pid = os.fork()
    if pid == 0:
        work(*args)
        sys.exit()  # not os._exit: the end of Python is what is tested
    return pid


def pairs(count: int) -> None:
    began, statuses = time.monotonic(), []
    while len(statuses) < 2 * count:
        # Below those that the system gives out: a port that was free may be a connection of another pair by now.
        first = _FIRST_PORT + len(statuses)
        ports = [str(first + pair) for pair in range(_AT_ONCE)]
        ranks = [forked(rank_of_a_pair, rank, port) for port in ports for rank in range(2)]
        statuses += [os.waitpid(pid, 0)[1] for pid in ranks]
    bad = [status for status in statuses if status]
    print(f"{len(statuses)} endings in {time.monotonic() - began:.0f} s, {len(bad)} bad: {bad[:5]}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1].isdigit():
        pairs(int(sys.argv[1]))
        sys.exit()
    try:
        with groups.started("cpu", 60.0, heartbeat_s=30.0):
            train(sys.argv[1])
    except (UserError, LostRankError) as error:
        print(type(error).__name__)
    print(*{path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")})
