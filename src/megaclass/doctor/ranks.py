"""Processes that reduce tensors together, as the ranks of a training do: whether they find one another, how fast.

Each is started as ``python -m megaclass.doctor.ranks``, and speaks over a pipe (see :mod:`megaclass.bench.processes`).
"""

import datetime
import os
import sys
import time
from multiprocessing.connection import Connection
from typing import Any

from megaclass.bench.processes import Processes
from megaclass.data.dataset import first_line

COMMAND = (sys.executable, "-P", "-m", "megaclass.doctor.ranks")
_BYTES = 8 << 20
_LARGE, _SMALL = 5, 50  # repetitions


def exchange(backend: str, ranks: int, timeout_s: float) -> dict[str, float]:
    """``large_s`` and ``small_s``: seconds in which ``ranks`` processes sum ``bytes``, and one number.

    Raises bench.processes.Ended: they do not, for a reason, or not in time.
    """
    processes = Processes(ranks, {"OMP_NUM_THREADS": "1"}, COMMAND)
    try:
        answers = processes.ask({"backend": backend, "timeout_s": timeout_s}, timeout_s)
    finally:
        processes.close()
    return {"bytes": _BYTES, **answers[0]}


def main() -> None:
    pipe: Connection[Any, Any] = Connection(int(sys.argv[1]))
    request = pipe.recv()
    try:
        pipe.send(_reduce(request["backend"], request["timeout_s"]))
    except Exception as error:  # of a network of any state
        pipe.send({"status": "failed", "reason": first_line(error)})
    pipe.poll(None)  # until it is ended: one that leaves first can take the other along


def _reduce(backend: str, timeout_s: float) -> dict[str, float]:
    import torch
    import torch.distributed as dist

    device = torch.device(f"cuda:{os.environ['LOCAL_RANK']}" if backend == "nccl" else "cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(backend, timeout=datetime.timedelta(seconds=timeout_s))
    found = {}
    for name, count, times in (("large_s", _BYTES // 4, _LARGE), ("small_s", 1, _SMALL)):
        values = torch.zeros(count, device=device)
        dist.all_reduce(values)  # makes the connections
        began = time.perf_counter()
        for _ in range(times):
            dist.all_reduce(values)
        values.sum().item()  # of a GPU, which works on its own
        found[name] = (time.perf_counter() - began) / times
    return found


if __name__ == "__main__":
    main()
