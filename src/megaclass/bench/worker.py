"""One process of a case: builds one implementation and takes a turn when it is told to. What a turn is, the
benchmark knows.

Spoken over a pipe. In: the job; then ``{"turn": i}`` any number of times; then ``{"finish": True}``. Out: ``{}`` when
it is ready; what the benchmark answers to each turn; the peaks, the limits and the environment at the end. An error is
told as ``{"status": .., "reason": ..}``, and ends the process.
"""

import contextlib
import ctypes
import gc
import importlib
import os
import re
import resource
import signal
import sys
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from megaclass.bench.case import Benchmark
from megaclass.errors import UserError, first_line, out_of_memory
from megaclass.parallel import groups
from megaclass.parallel.groups import World
from megaclass.results import machine
from megaclass.train import arithmetic

_MIB = 2**20


def main() -> None:
    pipe: Connection[Any, Any] = Connection(int(sys.argv[1]))
    with _errors_told(pipe):
        job = pipe.recv()
        benchmark: Benchmark = importlib.import_module(job["module"]).BENCHMARK
        case: Any = benchmark.case(**job["case"])
        die_with_parent(job["parent"])
        _limit_memory(case.device, case.world_size)
        arithmetic.use_threads(case.threads)
        # Errors are told before the group is left: the other ranks would have the first word.
        with groups.started(case.device, job["timeout_s"]) as world, _errors_told(pipe):
            _work(benchmark, case, world, job, pipe)


@contextlib.contextmanager
def _errors_told(pipe: "Connection[Any, Any]") -> Iterator[None]:
    try:
        yield
    except Exception as error:
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        status = "oom" if out_of_memory(error) else "failed"
        pipe.send({"status": status, "reason": f"{kind}{first_line(error)}"})
        os._exit(1)  # a process group of which one rank is gone may not end by itself


def _work(benchmark: Benchmark, case: Any, world: World, job: dict[str, Any], pipe: "Connection[Any, Any]") -> None:
    benchmark.libraries(case, world)
    memory = PeakMemory(world.device)
    turns = benchmark.prepare(case, world, job["implementation"], job["options"])
    pipe.send({})
    while "turn" in (request := pipe.recv()):
        pipe.send(turns.turn(request["turn"]))
    end = {"memory_mb": memory.read(), "facts": turns.facts(), "environment": machine.snapshot()}
    end["result"] = turns.result()
    del turns
    gc.collect()  # head and optimizer know each other
    if world.device.type == "cuda":
        torch.cuda.empty_cache()
    try:
        limits = benchmark.limits(case, world)
    except Exception as error:
        if not out_of_memory(error):
            raise
        limits = {}  # a GPU that others have filled must not cost a measured row
    pipe.send(end | {"limits": limits})


def die_with_parent(parent: int) -> None:
    """However the sweep ends, its processes end with it: one that computes on would disturb the next measurement."""
    with contextlib.suppress(OSError, AttributeError):  # Linux has it (prctl(2), PR_SET_PDEATHSIG)
        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it was gone before
        os._exit(1)


# -- memory ---------------------------------------------------------------------------------------------


class PeakMemory:
    """Peaks above the resident memory at the moment when this was made, in MiB.

    Linux keeps a high-water mark of resident memory that a process may reset. Where it may not, the mark is
    used as it is: if the libraries needed more while they were loaded than they keep, the peak reads too high.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        self._start = _status_mb("VmRSS")

    def read(self) -> dict[str, float | None]:
        """``driver``: in use on this process's GPU, as nvidia-smi shows it: by whomever, contexts included."""
        found: dict[str, float | None] = dict.fromkeys(("allocated", "reserved", "driver", "process"))
        peak = _status_mb("VmHWM")
        if peak is not None and self._start is not None:
            found["process"] = round(peak - self._start, 1)
        if self._cuda:
            free, total = torch.cuda.mem_get_info()
            found["allocated"] = round(torch.cuda.max_memory_allocated() / _MIB, 1)
            found["reserved"] = round(torch.cuda.max_memory_reserved() / _MIB, 1)
            found["driver"] = round((total - free) / _MIB, 1)
        return found


def _limit_memory(device: str, processes: int) -> None:
    """Let this process have no more than its share of the memory that is free now: PyTorch then says that there is
    none left, where the kernel would look for somebody to kill; and that is to be this process and nobody else's. On a
    GPU host memory is not what runs out."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    if device == "cpu":
        data = int((_status_mb("VmData") or 0) * _MIB)
        most = data + machine.available_memory() // processes
        with contextlib.suppress(OSError, ValueError):  # a lower limit is there already
            soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
            lower = most if soft == resource.RLIM_INFINITY else min(soft, most)
            resource.setrlimit(resource.RLIMIT_DATA, (lower, hard))


def _status_mb(name: str) -> float | None:
    """An entry of /proc/self/status; None where there is none (macOS)."""
    with contextlib.suppress(OSError):
        if found := re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text()):
            return int(found[1]) / 1024
    return None


if __name__ == "__main__":
    main()
