"""One process of a case: builds one implementation and takes a turn when it is told to. What a turn is, the
benchmark knows.

Spoken over pipes, one JSON object a line. In: the job; then ``{"turn": i}`` any number of times; then
``{"finish": true}``. Out: ``{"ready": true}``; ``{"ms": .., ..}`` for each turn, with ``{"progress": 0.5}`` any
number of times before it; the peaks, the limits and the environment at the end. An error is told as
``{"status": .., "reason": ..}``, and ends the process.
"""

import contextlib
import ctypes
import gc
import importlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import torch

from megaclass.bench.case import Benchmark
from megaclass.bench.memory import PeakMemory, limit_memory
from megaclass.bench.turns import Tell
from megaclass.errors import UserError
from megaclass.parallel import groups
from megaclass.parallel.groups import World
from megaclass.results import machine
from megaclass.train import arithmetic

# How PyTorch says that memory ran out where it has no exception of its own for it.
_NO_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "ALLOC_FAILED",
    "unable to find a valid cuDNN algorithm",  # what cuDNN says where its work space does not fit
    "size calculation overflowed",
    "failed to allocate memory",  # ONNX Runtime, as the next two
    "bad_alloc",
    "bad allocation",
)


def main() -> None:
    answers = _take_stdout()
    requests = (json.loads(line) for line in sys.stdin)
    try:
        for answer in _serve(next(requests), requests, lambda done: _tell(answers, {"progress": done})):
            _tell(answers, answer)
            if "status" in answer:
                os._exit(1)  # a process group of which one rank is gone may not end by itself
    except Exception as error:
        _tell(answers, _told(error))
        os._exit(1)


def _serve(job: dict[str, Any], requests: Iterator[dict[str, Any]], tell: Tell) -> Iterator[dict[str, Any]]:
    benchmark: Benchmark = importlib.import_module(job["module"]).BENCHMARK
    case: Any = benchmark.case(**job["case"])
    _die_first()
    _die_with_parent(job["parent"])
    limit_memory(case.device, case.world_size)
    arithmetic.use_threads(case.threads)
    with groups.started(case.device, job["timeout_s"]) as world:
        try:
            yield from _work(benchmark, case, world, job, requests, tell)
        except Exception as error:
            yield _told(error)  # before the group is left: the other ranks would have the first word


def _work(
    benchmark: Benchmark,
    case: Any,
    world: World,
    job: dict[str, Any],
    requests: Iterator[dict[str, Any]],
    tell: Tell,
) -> Iterator[dict[str, Any]]:
    benchmark.libraries(case, world)
    memory = PeakMemory(world.device)
    turns = benchmark.prepare(case, world, job["implementation"], job["options"])
    yield {"ready": True}
    for request in requests:
        if "finish" in request:
            break
        yield turns.turn(request["turn"], tell)
    else:
        return  # the parent is gone
    end = {"memory_mb": memory.read(), "facts": turns.facts(), "environment": machine.snapshot()}
    del turns
    gc.collect()  # head and optimizer know each other
    if world.device.type == "cuda":
        torch.cuda.empty_cache()
    yield end | {"limits": _limits(benchmark, case, world)}


def _told(error: Exception) -> dict[str, Any]:
    lines = str(error).strip().splitlines() or [""]
    status = "oom" if _out_of_memory(error) else "failed"
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return {"status": status, "reason": f"{kind}{lines[0]}"}


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


def _die_with_parent(parent: int) -> None:
    """However the sweep ends, its processes end with it: one that computes on would disturb the next measurement."""
    with contextlib.suppress(OSError, AttributeError):  # Linux has it (prctl(2), PR_SET_PDEATHSIG)
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it was gone before
        os._exit(1)


def _limits(benchmark: Benchmark, case: Any, world: World) -> dict[str, float]:
    """The limits of the machine, or none: a GPU that others have filled must not cost a measured row."""
    try:
        return benchmark.limits(case, world)
    except Exception as error:
        if _out_of_memory(error):
            return {}
        raise


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        words.lower() in str(error).lower() for words in _NO_MEMORY
    )


if __name__ == "__main__":
    main()
