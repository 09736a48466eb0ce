"""One process of a case: builds one implementation and takes a step when it is told to.

Spoken over pipes, one JSON object a line. In: the job; then ``{"step": i}`` any number of times; then
``{"finish": true}``. Out: ``{"ready": true}``; ``{"ms": .., "loss": ..}`` for each step; the peaks, the limits and
the environment at the end. An error is told as ``{"status": .., "reason": ..}``, and ends the process.
"""

import contextlib
import gc
import json
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import torch

from megaclass import distributed, environment, runtime
from megaclass.bench import limits
from megaclass.bench.cases import HeadCase
from megaclass.bench.contender import Contender
from megaclass.bench.memory import PeakMemory
from megaclass.bench.ours import Megaclass
from megaclass.bench.peers.arcface_torch import ArcfaceTorch
from megaclass.bench.timing import Stopwatch
from megaclass.distributed import World

CONTENDERS: dict[str, Any] = {"megaclass": Megaclass, "arcface_torch": ArcfaceTorch}

# How PyTorch says that memory ran out where it has no exception of its own for it.
_NO_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "ALLOC_FAILED",
    "size calculation overflowed",
)


def main() -> None:
    answers = _take_stdout()
    requests = (json.loads(line) for line in sys.stdin)
    try:
        for answer in _serve(next(requests), requests):
            _tell(answers, answer)
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        status = "oom" if _out_of_memory(error) else "failed"
        _tell(answers, {"status": status, "reason": f"{type(error).__name__}: {lines[0]}"})
        os._exit(1)  # a process group of which one rank is gone may not end by itself


def _serve(job: dict[str, Any], requests: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    case = HeadCase(**job["case"])
    _die_first()
    runtime.use_threads(case.threads)
    with distributed.started(case.device, job["timeout_s"]) as world:
        _load_libraries(case, world)
        memory = PeakMemory(world.device)
        contender: Contender | None = CONTENDERS[job["implementation"]](case, world, job["options"])
        watch = Stopwatch(world.device)
        yield {"ready": True}
        for request in requests:
            if "finish" in request:
                break
            assert contender is not None
            contender.prepare(request["step"])
            distributed.barrier()
            ms, loss_tensor = watch.time_ms(contender.step)
            loss = float(loss_tensor)
            if not math.isfinite(loss):  # a head may skip the update then: not the same work
                raise ArithmeticError(f"the loss of step {request['step']} is {loss}")
            yield {"ms": ms, "loss": loss}
        else:
            return  # the parent is gone
        assert contender is not None
        end = {"memory_mb": memory.read(), "facts": contender.facts(), "environment": environment.snapshot()}
        contender = None
        gc.collect()  # head and optimizer know each other
        if world.device.type == "cuda":
            torch.cuda.empty_cache()
        distributed.barrier()  # all ranks measure at the same time, as they compute
        yield end | {"limits": _limits(case.precision, world)}


def _take_stdout() -> TextIO:
    """Keep stdout for answers: whatever a library prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def _tell(answers: TextIO, answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


def _die_first() -> None:
    """When the machine runs out of memory, the kernel is to end this process and nobody else's."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _load_libraries(case: HeadCase, world: World) -> None:
    """A small product, its derivative and an optimizer's step: what PyTorch loads when it first needs it
    (its compiler for every optimizer: 80 MB) is no memory of the head."""
    a = torch.nn.Parameter(torch.randn(64, 64, device=world.device))
    (a @ a).exp().sum().backward()
    torch.optim.SGD([a], 0.1, momentum=0.9).step()
    limits.product_ms(case.precision, 64, world.device)


def _limits(precision: str, world: World) -> dict[str, float]:
    """The limits of the machine, or none: a GPU that others have filled must not cost a measured row."""
    try:
        return limits.measure(precision, world.device)
    except Exception as error:
        if _out_of_memory(error):
            return {}
        raise


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        words in str(error) for words in _NO_MEMORY
    )


if __name__ == "__main__":
    main()
