"""The command line with faults: ``faulty.py FOLDER kill:RANK:STEP[,raise:RANK:STEP] WORD...``, one after another.

FOLDER remembers which ones have been, through all attempts of torchrun, which numbers the ranks anew in each. The
backbone ``smooth`` of tiny.py can be trained, so that the curve does not depend on the number of ranks.
"""

import os
import signal
import sys
from pathlib import Path

import tiny
from megaclass.cli import main
from megaclass.models import registry
from megaclass.train import loop


def fault(kind: str) -> None:
    if kind == "raise":
        raise ArithmeticError("the fault of this test")
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    folder, faults = Path(sys.argv[1]), sys.argv[2].split(",")
    number = len(list(folder.glob("fault-*")))
    kind, *place = faults[number].split(":") if number < len(faults) else ("none",)
    step_as_it_is = loop.train_step

    def train_step(job, batch, step, *rest):
        if [str(job.world.rank), str(step)] == place:
            (folder / f"fault-{number}").touch()
            fault(kind)
        return step_as_it_is(job, batch, step, *rest)

    loop.train_step = train_step
    registry.BACKBONES["smooth"] = tiny.smooth
    sys.exit(main(sys.argv[3:]))
