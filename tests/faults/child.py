"""The real command in a process of its own, in which one thing goes wrong at a moment that a plan names.

Every call that changes something under the run directory has a name, as "write events.jsonl 3" for the third write to
that file: a dry run lists the moments, and each of them can be hit. torchrun starts this file as a script: ``child.py
FOLDER PLAN WORD...``, with the plan as JSON, which strikes in the first attempt alone.
"""

import builtins
import contextlib
import errno
import io
import json
import os
import resource
import signal
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tiny
from megaclass.cli import main
from megaclass.models import registry
from megaclass.train import loop

TAKES_ROOM = ("write", "open", "mkdir")  # what a full disk refuses; it lets names go and change
REAL_OPEN, REAL_WRITE, REAL_FSYNC = open, os.write, os.fsync


@dataclass(frozen=True)
class Plan:
    """What goes wrong, and when: at ``call``, or ``delay_s`` after ``step`` steps (0: as the process starts).

    do: a signal; an error of errno.h, once; ``short`` (half of a write, then no room); ``full`` (no room until an
    interval of ``full_steps`` later).
    """

    do: str = ""
    call: str = ""
    step: int = -1
    delay_s: float = 0.0
    again_s: float = 0.0  # a second signal so long after the first
    slow_s: float = 0.0  # how long an fsync takes
    full_steps: int = 3
    limit_bytes: int = 0  # of a file
    rank: int = 0  # under torchrun


class Injector:
    """Watches the calls and steps of this process; ``notes`` (a path without its suffix) receives what it sees."""

    def __init__(self, plan: Plan, run: Path, notes: Path) -> None:
        self.plan, self.run, self.notes = plan, str(run), notes
        self.done, self.full_until, self.short = 0, 0, ""
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._files = {
            suffix: os.open(f"{notes}.{suffix}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            for suffix in ("calls", "steps", "struck")
        }

    def note(self, suffix: str, value: Any) -> None:
        REAL_WRITE(self._files[suffix], json.dumps(value).encode() + b"\n")

    def strike(self) -> None:
        self.note("struck", self.done)
        if not self.plan.do.startswith("SIG"):
            return
        os.kill(os.getpid(), signal.Signals[self.plan.do])
        if self.plan.again_s:
            later(self.plan.again_s, lambda: os.kill(os.getpid(), signal.Signals[self.plan.do]))

    def named(self, path: Any, directory: int | None = None) -> str | None:
        """The path inside the run, None for what lies elsewhere."""
        if isinstance(path, int):
            path = Path(f"/proc/self/fd/{path}").readlink()
        base = f"/proc/self/fd/{directory}" if directory is not None else "."
        whole = os.path.abspath(os.path.join(os.path.realpath(base), os.fsdecode(path)))  # noqa: PTH100, PTH118
        return os.path.relpath(whole, self.run) if (whole + "/").startswith(self.run + "/") else None

    def before(self, operation: str, path: Any, directory: int | None = None) -> str:
        """Count a call and let it fail, if its turn has come; "short" for a write that is to end halfway."""
        name = self.named(path, directory)
        if name is None:
            return ""
        with self._lock:
            self._counts[f"{operation} {name}"] += 1
            key = f"{operation} {name} {self._counts[f'{operation} {name}']}"
        self.note("calls", key)
        if operation == "fsync" and self.plan.slow_s:
            time.sleep(self.plan.slow_s)
        is_full = self.done < self.full_until and operation in TAKES_ROOM
        if is_full or (operation == "write" and self.short == name):
            self.short = ""
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
        if key != self.plan.call:
            return ""
        self.strike()
        if self.plan.do == "full":
            self.full_until = self.done + self.plan.full_steps
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
        if self.plan.do == "short":
            self.short = name
        elif self.plan.do.startswith("E"):
            number = getattr(errno, self.plan.do)
            raise OSError(number, os.strerror(number), name)
        return self.plan.do

    def stepped(self, step: int, images: Any) -> None:
        self.done = step
        self.note("steps", [step, [zlib.crc32(image.numpy().tobytes()) for image in images]])
        if self.plan.step == step:
            later(self.plan.delay_s, self.strike)


def later(seconds: float, work: Callable[[], Any]) -> None:
    if seconds == 0:
        work()
        return
    threading.Thread(target=lambda: (time.sleep(seconds), work()), daemon=True).start()


def install(injector: Injector) -> None:
    """Put the injector under everything of Python that writes."""

    class Raw(io.FileIO):
        def write(self, data: Any) -> int:
            how = injector.before("write", self.fileno())
            return super().write(memoryview(data).cast("B")[: len(data) // 2] if how == "short" else data)

        def truncate(self, size: int | None = None) -> int:
            injector.before("truncate", self.fileno())
            return super().truncate(size)

    def opened(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, closefd=True, opener=None):
        if not set(mode) & set("wax+") or injector.named(file) is None:
            return REAL_OPEN(file, mode, buffering, encoding, errors, newline, closefd, opener)
        injector.before("open", file)
        raw = Raw(file, mode.translate({ord("b"): None, ord("t"): None}), closefd, opener)
        if buffering == 0:
            return raw
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)

    def wrapped(operation, original):
        def call(path, *arguments, **options):
            if operation != "open" or arguments[0] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                target = arguments[0] if operation in ("replace", "rename") else path
                how = injector.before(operation, target, options.get("dir_fd"))
                if how == "short" and operation == "write":
                    arguments = (arguments[0][: len(arguments[0]) // 2],)
            return original(path, *arguments, **options)

        return call

    builtins.open = io.open = opened  # type: ignore[assignment]
    for name in ("open", "write", "fsync", "replace", "rename", "mkdir", "unlink", "remove", "rmdir",
                 "truncate", "ftruncate", "link", "symlink", "posix_fallocate"):  # fmt: skip
        setattr(os, name, wrapped(name, getattr(os, name)))
    step_as_it_is = loop.train_step

    def train_step(job, batch, step, *rest):
        images = batch.images.clone()
        outcome = step_as_it_is(job, batch, step, *rest)
        injector.stepped(step + 1, images)
        return outcome

    loop.train_step = train_step
    registry.BACKBONES["smooth"] = tiny.smooth


def start(words: list[str], run: Path, notes: Path, plan: Plan, variables: dict[str, str]) -> None:
    """What a forked process does: the command, its two streams in files beside the notes."""
    os.environ |= variables
    for descriptor, suffix in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{notes}.{suffix}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    # nohup and a shell's background ignore them, and what was ignored stays ignored.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    injector = Injector(plan, run, notes)
    install(injector)
    if plan.limit_bytes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (plan.limit_bytes, plan.limit_bytes))
    if plan.step == 0:
        later(plan.delay_s, injector.strike)
    sys.exit(main(words))


if __name__ == "__main__":
    folder, rank, attempt = (
        Path(sys.argv[1]),
        os.environ["RANK"],
        int(os.environ["TORCHELASTIC_RESTART_COUNT"]),
    )
    planned = Plan(**json.loads(sys.argv[2]))
    hit = attempt == 0 and str(planned.rank) == rank
    install(Injector(planned if hit else Plan(), folder / "run", folder / f"{attempt + 1}-{rank}"))
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main(sys.argv[3:]))
