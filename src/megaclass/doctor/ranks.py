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
_LARGE, _SMALL = 5, 50  # repetitions


def exchange(backend: str, ranks: int, timeout_s: float) -> tuple[float, float]:
    """Seconds in which ``ranks`` processes, of one machine, sum ``BYTES``, and one number. Raises bench.processes.Ended
    where they do not, or not in time."""
    alone = {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
    }
    processes = Processes(ranks, {"OMP_NUM_THREADS": "1"} | (alone if ranks == 1 else {}), _COMMAND)
    try:
        answers = processes.ask({"backend": backend, "timeout_s": timeout_s}, timeout_s)
    finally:
        processes.close()
    return answers[0]["large_s"], answers[0]["small_s"]


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
    found = {}
    for name, count, times in (("large_s", BYTES // 4, _LARGE), ("small_s", 1, _SMALL)):
        values = torch.zeros(count, device=device)
        dist.all_reduce(values)  # makes the connections
        began = time.perf_counter()
        for _ in range(times):
            dist.all_reduce(values)
        values.sum().item()  # a GPU works on its own until somebody asks
        found[name] = (time.perf_counter() - began) / times
    return found


if __name__ == "__main__":
    main()
