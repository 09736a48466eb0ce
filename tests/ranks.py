"""Processes of a test: functions on several gloo ranks, and commands as people start them.

All are forked by one server that has imported torch: another process costs a tenth of a second instead of three.
"""

import datetime
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from megaclass.cli import main

SERVER = mp.get_context("forkserver")
# What costs time to import: PyTorch's optimizers take torch._dynamo, the verbs the rest.
SERVER.set_forkserver_preload(
    [
        "torch._dynamo",
        "megaclass.train.loop",
        "megaclass.report.curves",
        "megaclass.report.console",
    ]
)


def _entry(
    rank: int, ranks: int, node_ranks: int, folder: str, function: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_WORLD_SIZE": str(node_ranks), "LOCAL_RANK": str(rank % node_ranks)}
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=ranks,
        timeout=datetime.timedelta(seconds=60),
    )
    try:
        torch.save(function(*args), Path(folder) / f"result-{rank}.pt")
    finally:
        dist.destroy_process_group()


def run_ranks(ranks: int, function: Callable[..., Any], *args: Any, node_ranks: int = 0) -> list[Any]:
    """``function(*args)`` on every one of ``ranks`` processes; the results in rank order.

    One rank runs in this process, without a process group: what the others are compared with. ``node_ranks`` of
    the others share what torchrun would call a node; 0: all.
    """
    if ranks == 1:
        return [function(*args)]
    with tempfile.TemporaryDirectory() as folder:
        entry = ranks, node_ranks or ranks, folder, function, args
        mp.start_processes(_entry, entry, nprocs=ranks, start_method="forkserver")  # type: ignore[no-untyped-call]
        return [torch.load(Path(folder) / f"result-{rank}.pt", weights_only=False) for rank in range(ranks)]


# -- commands ------------------------------------------------------------------------------------------


def _command(
    words: list[str],
    errors: Path,
    variables: dict[str, str],
    folder: Path | None,
    before: Callable[[], None] | None,
) -> None:
    os.environ |= variables
    os.chdir(folder or ".")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    if before:
        before()
    sys.exit(main(words))


def start_command(
    words: list[str],
    errors: Path,
    variables: dict[str, str] | None = None,
    folder: Path | None = None,
    before: Callable[[], None] | None = None,
) -> Any:
    """A process of its own in ``folder`` with the command line of ``words``; standard error goes to a file.

    before: what is done there first, a function of a module.
    """
    process = SERVER.Process(target=_command, args=(words, errors, variables or {}, folder, before))
    process.start()
    return process


# Starting a process asks of all others whether they have ended, and an end is told once: to one thread alone.
_ONE_AT_A_TIME = threading.Lock()


def begin(process: Any) -> None:
    """Start a process where several threads do."""
    with _ONE_AT_A_TIME:
        process.start()


def wait_for(process: Any, seconds: float) -> int | None:
    """The status of a process that :func:`begin` started; None where it goes on for longer than that."""
    deadline = time.monotonic() + seconds
    while True:
        with _ONE_AT_A_TIME:
            status: int | None = process.exitcode
        if status is not None or time.monotonic() > deadline:
            return status
        time.sleep(0.005)


def meeting(rank: int, ranks: int, port: str) -> dict[str, str]:
    """The environment of a rank that was started by hand."""
    ranks_and_place = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return {"RANK": str(rank), "LOCAL_RANK": str(rank)} | ranks_and_place


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])
