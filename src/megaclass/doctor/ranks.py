"""Two processes that sum tensors together, as ranks of a training do: whether they find one another, and how fast."""

import datetime
import os
import sys
import time
from multiprocessing.connection import Connection
from typing import Any

from megaclass.bench.processes import Processes
from megaclass.errors import first_line

_COMMAND = (sys.executable, "-P", "-m", "megaclass.doctor.ranks")
BYTES = 8 << 20
_TIMES = 5


def exchange(backend: str, timeout_s: float) -> float:
    """Seconds in which two processes of this machine sum ``BYTES``. Raises bench.processes.Ended where they do not, or
    not in time."""
    processes = Processes(2, {"OMP_NUM_THREADS": "1"}, _COMMAND)
    try:
        answers = processes.ask({"backend": backend, "timeout_s": timeout_s}, timeout_s)
    finally:
        processes.close()
    return answers[0]["seconds"]


def main() -> None:
    """One of the processes: a request comes over the pipe, and an answer goes back (see bench.processes)."""
    pipe: Connection[Any, Any] = Connection(int(sys.argv[1]))
    try:
        pipe.send(_sum(**pipe.recv()))
    except Exception as error:  # of a network of any state
        pipe.send({"status": "failed", "reason": first_line(error)})
    pipe.poll(None)  # until it is ended: one that leaves first can take the other along


def _sum(backend: str, timeout_s: float) -> dict[str, float]:
    import torch
    import torch.distributed as dist

    device = torch.device(f"cuda:{os.environ['LOCAL_RANK']}" if backend == "nccl" else "cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(backend, timeout=datetime.timedelta(seconds=timeout_s))
    values = torch.zeros(BYTES // 4, device=device)
    dist.all_reduce(values)  # makes the connections
    began = time.perf_counter()
    for _ in range(_TIMES):
        dist.all_reduce(values)
    values.sum().item()  # a GPU works on its own until somebody asks
    return {"seconds": (time.perf_counter() - began) / _TIMES}


if __name__ == "__main__":
    main()
