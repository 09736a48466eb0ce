"""The processes of one implementation: started together, asked together, ended together.

Whatever becomes of one of them ends as :class:`Ended`, with the reason: nothing here waits for ever.
"""

import contextlib
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import IO, Any

import megaclass

WORKER = (sys.executable, "-P", "-m", "megaclass.bench.worker")
# What torchrun tells a rank of its place: a process that is alone, or is told anew, must not inherit it.
TORCHRUN_VARIABLES = (
    "RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
)  # fmt: skip


class Ended(Exception):  # noqa: N818 - an outcome of a case, not an error of ours
    """A case that came to no result: ``status`` is one of ``oom``, ``timeout``, ``failed``."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


class Processes:
    """``world_size`` processes, each with a pipe whose file descriptor is its last argument. ``variables`` change the
    environment (None: unset)."""

    def __init__(self, world_size: int, variables: Mapping[str, str | None], command: Sequence[str] = WORKER) -> None:
        self._kills_before = _kernel_kills()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._pipes: list[Connection[Any, Any]] = []
        self._outputs: list[IO[bytes]] = []
        shared = _ranks_environment(world_size) | dict(variables)
        try:
            for rank in range(world_size):
                own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if world_size > 1 else {}
                self._start(command, os.environ | shared | own)
        except BaseException:
            self.close()
            raise

    def _start(self, command: Sequence[str], variables: Mapping[str, str | None]) -> None:
        environment = {name: value for name, value in variables.items() if value is not None}
        source = str(Path(megaclass.__file__).parent.parent)
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [source, environment.get("PYTHONPATH")]))
        pipe, theirs = multiprocessing.Pipe()
        self._pipes.append(pipe)
        self._outputs.append(tempfile.TemporaryFile())  # noqa: SIM115 - closed in close()
        with theirs:
            process = subprocess.Popen(
                [*command, str(theirs.fileno())],
                stdout=self._outputs[-1],
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                env=environment,
                start_new_session=True,  # Ctrl-C is for the parent, which then ends this group
            )
        self._processes.append(process)

    def ask(self, request: dict[str, Any], timeout_s: float) -> list[dict[str, Any]]:
        """Send the request to every process and collect an answer of each, in rank order.

        Raises Ended: a process has died or tells an error, or an answer is not there in time.
        """
        deadline = time.monotonic() + timeout_s
        for pipe in self._pipes:
            with contextlib.suppress(BrokenPipeError):  # the reading finds out why
                pipe.send(request)
        answers, waiting = [dict[str, Any]()] * len(self._pipes), list(self._pipes)
        while waiting:
            ready = wait(waiting, max(0.0, deadline - time.monotonic()))
            if not ready:
                raise Ended("timeout", "no answer in time")
            for rank, pipe in enumerate(self._pipes):
                if pipe not in ready:
                    continue
                try:
                    answer = pipe.recv()
                except (EOFError, ConnectionError):
                    raise self._death(rank) from None
                if "status" in answer:
                    raise Ended(answer["status"], answer["reason"] + self._rank_text(rank))
                answers[rank] = answer
                waiting.remove(pipe)
        return answers

    def _death(self, rank: int) -> Ended:
        status = self._processes[rank].wait()
        who = f"the process{self._rank_text(rank)}"
        if status >= 0:
            self._outputs[rank].seek(0)
            said = self._outputs[rank].read().decode(errors="replace").strip().rpartition("\n")[2]
            return Ended("failed", f"{who} ended with exit status {status}{said and f': {said}'}")
        name = signal.Signals(-status).name
        if -status == signal.SIGKILL and _kernel_kills() > self._kills_before:
            return Ended("oom", f"{who} was killed by the kernel for its memory ({name})")
        return Ended("failed", f"{who} was killed by {name}")

    def _rank_text(self, rank: int) -> str:
        return f" (rank {rank})" if len(self._processes) > 1 else ""

    def close(self) -> None:
        """End every process that still lives, with whatever it has started."""
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        for process in self._processes:
            process.wait()
        self._processes.clear()  # their numbers may be those of others from now on
        for pipe in self._pipes:
            pipe.close()
        for output in self._outputs:
            output.close()


def _ranks_environment(world_size: int) -> dict[str, str | None]:
    """What torchrun would set; for a process that is alone, whatever is there of it is taken away."""
    if world_size == 1:
        return dict.fromkeys(TORCHRUN_VARIABLES)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    size = str(world_size)
    there: dict[str, str | None] = {"GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return there | {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}


def _kernel_kills() -> int:
    """How many processes the kernel has killed for want of memory since it started."""
    with contextlib.suppress(OSError):
        if found := re.search(r"^oom_kill (\d+)$", Path("/proc/vmstat").read_text(), re.MULTILINE):
            return int(found[1])
    return 0
