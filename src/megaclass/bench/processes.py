"""The processes of one implementation: started together, asked together, ended together.

Whatever becomes of one of them ends as :class:`Ended`, with the reason: nothing here waits for ever.
"""

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import megaclass

WORKER = (sys.executable, "-P", "-m", "megaclass.bench.worker")
# What torchrun tells a rank of its place: a process that is alone, or is told anew, must not inherit it.
TORCHRUN_VARIABLES = (
    "RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
)  # fmt: skip
_GRACE_S = 5.0  # from the end of a process's output to its own


class Ended(Exception):  # noqa: N818 - an outcome of a case, not an error of ours
    """A case that came to no result: ``status`` is one of ``oom``, ``timeout``, ``failed``."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


class Processes:
    """``world_size`` processes that speak JSON lines; ``variables`` change the environment (None: unset)."""

    def __init__(
        self,
        world_size: int = 1,
        variables: Mapping[str, str | None] | None = None,
        command: Sequence[str] = WORKER,
    ) -> None:
        self._kills_before = _kernel_kills()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._errors: list[IO[bytes]] = []
        shared = _ranks_environment(world_size) | dict(variables or {})
        try:
            for rank in range(world_size):
                own: dict[str, str | None] = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
                self._errors.append(errors)
                self._processes.append(_start(command, shared | (own if world_size > 1 else {}), errors))
        except BaseException:
            self.close()
            raise

    def ask(
        self,
        request: dict[str, Any],
        timeout_s: float,
        on_progress: Callable[[float], None] = lambda done: None,
    ) -> list[dict[str, Any]]:
        """Send the request to every process and collect an answer of each, in rank order.

        ``on_progress`` is given the ``progress``, 0 to 1, that the first process tells on the way. Raises Ended: a
        process has died or tells an error, or an answer is not there in time.
        """
        for process in self._processes:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # the reading finds out why
                process.stdin.write(json.dumps(request).encode() + b"\n")
                process.stdin.flush()
        return self._answers(time.monotonic() + timeout_s, on_progress)

    def _answers(self, deadline: float, on_progress: Callable[[float], None]) -> list[dict[str, Any]]:
        parts, answers = [b""] * len(self._processes), [dict[str, Any]()] * len(self._processes)
        with selectors.DefaultSelector() as selector:
            for rank, process in enumerate(self._processes):
                assert process.stdout is not None
                selector.register(process.stdout, selectors.EVENT_READ, rank)
            while selector.get_map():
                ready = selector.select(max(0.0, deadline - time.monotonic()))
                if not ready:
                    raise Ended("timeout", "no answer in time")
                for key, _ in ready:
                    rank = key.data
                    read = os.read(key.fd, 1 << 20)
                    parts[rank] += read
                    if not read:
                        raise self._death(rank)
                    *lines, parts[rank] = parts[rank].split(b"\n")
                    for line in lines:
                        answer = json.loads(line)
                        if "status" in answer:
                            raise Ended(answer["status"], answer["reason"] + self._rank_text(rank))
                        if "progress" not in answer:
                            answers[rank] = answer
                            selector.unregister(key.fileobj)
                        elif rank == 0:
                            on_progress(answer["progress"])
        return answers

    def _death(self, rank: int) -> Ended:
        process = self._processes[rank]
        try:
            status = process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            return Ended("failed", "the process closed its output and hangs" + self._rank_text(rank))
        who = f"the process{self._rank_text(rank)}"
        if status >= 0:
            said = self._last_words(rank)
            return Ended("failed", f"{who} ended with exit status {status}{said and f': {said}'}")
        name = signal.Signals(-status).name
        if -status == signal.SIGKILL and _kernel_kills() > self._kills_before:
            return Ended("oom", f"{who} was killed by the kernel for its memory ({name})")
        return Ended("failed", f"{who} was killed by {name}")

    def _rank_text(self, rank: int) -> str:
        return f" (rank {rank})" if len(self._processes) > 1 else ""

    def _last_words(self, rank: int) -> str:
        self._errors[rank].seek(0)
        lines = self._errors[rank].read().decode(errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else ""

    def close(self) -> None:
        """End every process that still lives, with whatever it has started."""
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        for process in self._processes:
            process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        for errors in self._errors:
            errors.close()


def _start(
    command: Sequence[str], variables: dict[str, str | None], errors: IO[bytes]
) -> "subprocess.Popen[bytes]":
    merged = os.environ | variables
    environment = {name: value for name, value in merged.items() if value is not None}
    source = str(Path(megaclass.__file__).parent.parent)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [source, environment.get("PYTHONPATH")]))
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        env=environment,
        start_new_session=True,  # Ctrl-C is for the parent, which then ends this group
    )


def _ranks_environment(world_size: int) -> dict[str, str | None]:
    """What torchrun would set; for a process that is alone, whatever is there of it is taken away."""
    if world_size == 1:
        return dict.fromkeys(TORCHRUN_VARIABLES)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return {
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def _kernel_kills() -> int:
    """How many processes the kernel has killed for want of memory since it started."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    return 0
