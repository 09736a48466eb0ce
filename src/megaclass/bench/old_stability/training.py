"""The training of one seed, in processes of its own: started, followed, ended."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil

import megaclass
from megaclass.bench.old_stability.study import Study
from megaclass.bench.processes import TORCHRUN_VARIABLES
from megaclass.results.rundir import RunDirectory

_LOOK_S = 0.5  # between two looks at how far it is
_GRACE_S = 45.0  # torchrun gives its workers 30 of them

Told = Callable[[int, int | None], None]
"""Takes the step that a training is at, and how many there will be, once that is known."""


def train(study: Study, seed: int, on_step: Told = lambda step, total: None) -> str:
    """Train the seed, or go on with it where a run of it has stopped; returns why it failed, or an empty string.

    An exception that comes while it waits, as Ctrl-C does, ends the training too.
    """
    log = study.log_of(seed)
    with log.open("ab") as output:
        begin = output.tell()
        process = subprocess.Popen(
            command(study, seed),
            stdin=subprocess.PIPE,  # while it is open the training goes on
            stdout=output,
            stderr=subprocess.STDOUT,
            env=_environment(),
            start_new_session=True,  # Ctrl-C is for this process, which then ends that one
        )
        try:
            position = _Position(study.run_of(seed).events, log, begin)
            while _runs(process):
                on_step(*position.read())
            on_step(*position.read())
        finally:
            _end(process)
    if process.returncode == 0 and study.run_of(seed).result.is_file():
        return ""
    with log.open("rb") as said:
        said.seek(begin)
        return reason(process.returncode, said.read().decode(errors="replace").splitlines())


def command(study: Study, seed: int) -> list[str]:
    """``megaclass train`` for this seed, under torchrun where there are several ranks."""
    run = study.run_of(seed)
    words = ["train", str(study.recipe_file), "--run.seed", str(seed), "--run.output", str(run.path)]
    if _begun(run):
        words.append("--resume")
    several = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(study.world_size), "-m"]
    launcher = several if study.world_size > 1 else []
    return [sys.executable, "-P", "-m", "megaclass.bench.old_stability.child", *launcher, "megaclass", *words]


def _begun(run: RunDirectory) -> bool:
    """Whether there is a run to go on with."""
    if run.config.exists() or run.checkpoints.exists():
        return True
    shutil.rmtree(
        run.path, ignore_errors=True
    )  # killed before its first step: nothing to keep, and in the way
    return False


def _environment() -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if name not in TORCHRUN_VARIABLES}
    source = str(Path(megaclass.__file__).parent.parent)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [source, environment.get("PYTHONPATH")]))
    return environment | {"PYTHONUNBUFFERED": "1"}  # what it says is in the log when it says it


def _runs(process: "subprocess.Popen[bytes]") -> bool:
    try:
        process.wait(_LOOK_S)
    except subprocess.TimeoutExpired:
        return True
    return False


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Let it end, and whatever it has started; a process that does not is killed."""
    assert process.stdin is not None
    family: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
    process.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_GRACE_S)
    if process.poll() is None:
        process.kill()
        process.wait()
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):  # psutil sees if its number belongs to another by now
            member.kill()


class _Position:
    """How far a training is, by its events and its first line."""

    def __init__(self, events: Path, log: Path, begin: int) -> None:
        self._events, self._log, self._begin = events, log, begin
        self._read, self._step = 0, 0
        self._total: int | None = None

    def read(self) -> tuple[int, int | None]:
        for line in self._new_lines():
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                self._step = event["step"] if event.get("event") == "step" else self._step
        if self._total is None:
            with self._log.open("rb") as said:
                said.seek(self._begin)
                found = re.search(rb"(?:training for|at step \d+ of) (\d+) steps", said.read(1 << 16))
            self._total = int(found[1]) if found else None
        return self._step, self._total

    def _new_lines(self) -> Iterable[bytes]:
        with contextlib.suppress(OSError), self._events.open("rb") as file:
            if file.seek(0, os.SEEK_END) < self._read:  # a resumed run drops what came after its checkpoint
                self._read = 0
            file.seek(self._read)
            *lines, rest = file.read().split(b"\n")
            self._read = file.tell() - len(rest)
            return lines
        return []


_EXCEPTION = re.compile(r"(?:\[rank\d+\]: ?)?((?:[A-Za-z_][\w.]*)?(?:Error|Exception|Interrupt)\b: .+)")
_SIGNAL = re.compile(r"Signal \d+ \((SIG\w+)\) received")


def reason(status: int, lines: list[str]) -> str:
    """What the training said last of why it ended, among all that torchrun says after it."""
    said = [line.strip() for line in lines if line.strip()]
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    for line in reversed(said):
        if line.startswith("megaclass: "):
            return line.removeprefix("megaclass: ").removeprefix("error: ")
    for pattern, text in ((_EXCEPTION, "{}"), (_SIGNAL, "a rank was killed by {}")):
        for line in reversed(said):
            if found := pattern.search(line):
                return text.format(found[1])
    return f"ended with exit status {status}" + (f": {said[-1]}" if said else "")
