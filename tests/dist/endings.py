"""Ranks of test_endings.py, each of which prints what threads are left of its group, in the environment of torchrun.

``endings.py WAY`` is one rank that trains a little, and ends in this way.
"""

import os
import signal
import sys
from pathlib import Path

import torch

from megaclass.errors import LostRankError, UserError
from megaclass.parallel import groups
from megaclass.parallel.gradients import averaging
from megaclass.parallel.vote import Vote


def train(way: str) -> None:
    model, vote = averaging(torch.nn.Linear(4, 4), torch.device("cpu")), Vote()
    for step in range(3):
        vote.cast(step)
        model(torch.ones(2, 4)).sum().backward()
    vote.wait()
    first = groups.rank() == 0
    if way == "error" and first:
        raise UserError("the fault of this test")
    if way == "killed" and first:
        os.kill(os.getpid(), signal.SIGKILL)
    groups.on_main_rank(dict)


if __name__ == "__main__":
    torch.set_num_threads(1)
    try:
        with groups.started("cpu", 60.0, heartbeat_s=30.0):
            train(sys.argv[1])
    except (UserError, LostRankError) as error:
        print(type(error).__name__)
    print(*{path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")})
