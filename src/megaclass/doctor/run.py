"""A run directory: what is sound in it, from where a resume would go on, and what a kill has left behind."""

import contextlib
import datetime
import fcntl
import functools
import json
import shutil
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from megaclass import checkpoint
from megaclass.config import Config, load_recipe
from megaclass.doctor.findings import FAIL, OK, WARN, Finding, in_bytes, judged, look, refused
from megaclass.errors import UserError
from megaclass.results.events import EndEvent, Event, StartEvent, StepEvent, read_events
from megaclass.results.rundir import RunDirectory

_LIMIT_S = 3600.0  # of one part: a large checkpoint on a network disk is read for long
_SPEEDS = 20  # log lines whose median tells how fast the run was
_AGAIN = "start it again with --resume"
# How the reason of an end event begins, and what to do about it.
_ENDS = {
    "LostRankError": f"another rank had left, and says why: {_AGAIN}",
    "Interrupted": f"{_AGAIN}, it goes on from the last checkpoint",
    "KeyboardInterrupt": f"{_AGAIN}, it goes on from the last checkpoint",
    "OutOfMemoryError": f"take a smaller batch or more ranks, and {_AGAIN}",
    "UserError": f"do what it says, and {_AGAIN}",
}


@dataclass
class _Looked:
    """What is known of the run so far."""

    directory: RunDirectory
    repair: bool
    config: Config | None = None
    events: list[Event] = field(default_factory=list)
    trains: bool = False  # now, in another process
    usable: Path | None = None  # the newest sound checkpoint


def findings(path: Path, repair: bool) -> Iterator[Finding]:
    """Look at the run under ``path``. With ``repair``, unless a process trains there, left-over files are removed."""
    looked = _Looked(RunDirectory(path), repair)
    for what, part in _PARTS.items():
        yield from look(what, _LIMIT_S, functools.partial(part, looked))


def _config(looked: _Looked) -> Iterator[Finding]:
    looked.config = load_recipe(str(looked.directory.config), stored=True)
    yield Finding(OK, "config.toml", f"recipe {looked.config.recipe}, readable")


def _lock(looked: _Looked) -> Iterator[Finding]:
    path = looked.directory.path / ".lock"
    with contextlib.suppress(FileNotFoundError), path.open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            looked.trains, looked.repair = True, False
    told = f"{_holder(path)} trains here now" if looked.trains else "no process trains here"
    yield Finding(OK, "lock", told)


def _holder(path: Path) -> str:
    """Who holds the lock: ``process 123``, where the kernel tells."""
    with contextlib.suppress(OSError, LookupError):
        for line in Path("/proc/locks").read_text().splitlines():
            words = line.split()
            if words[1] == "FLOCK" and words[5].rpartition(":")[2] == str(path.stat().st_ino):
                return f"process {words[4]}"
    return "a process"


def _log(looked: _Looked) -> Iterator[Finding]:
    path = looked.directory.events
    try:
        looked.events = read_events(path)
    except UserError as error:
        yield Finding(FAIL, "events.jsonl", str(error), "--repair sets it aside and keeps the lines before")
        return
    content = path.read_bytes()
    torn = len(content) - content.rfind(b"\n") - 1
    starts = [event for event in looked.events if isinstance(event, StartEvent)]
    by = starts[-1].environment if starts else {}
    yield judged(
        "events.jsonl",
        f"{len(looked.events):,} events of {len(starts)} starts, the last by megaclass {by.get('revision', '?')[:12]} "
        f"with PyTorch {by.get('pytorch', '?')}",
        (
            torn > 0 and not looked.trains,
            WARN,
            f"{torn} bytes of a half line at the end: a resume cuts them off",
        ),
    )


def _checkpoints(looked: _Looked) -> Iterator[Finding]:
    found = checkpoint.list_checkpoints(looked.directory.checkpoints)
    if not found:
        yield Finding(WARN, "checkpoints", "none yet", "a resume starts from the beginning")
    for path in reversed(found):
        try:
            size = _verified(path)
        except UserError as error:
            yield refused(path.name, error)
        else:
            looked.usable = looked.usable or path
            yield Finding(OK, path.name, f"{in_bytes(size)}, as it was written")
    for path in sorted(looked.directory.checkpoints.glob(".damaged-*")):
        yield Finding(WARN, path.name, "was found damaged and set aside", "delete it when nobody needs it")


def _verified(path: Path) -> int:
    stored = checkpoint.load(path)
    for name in stored.sharded:
        stored.rows(name)
    return sum(file.stat().st_size for file in path.iterdir())


def _resume(looked: _Looked) -> Iterator[Finding]:
    if looked.usable is None:
        return
    step = int(looked.usable.name.rpartition("-")[2])
    totals = [event.total_steps for event in looked.events if isinstance(event, StartEvent)]
    told = f"from step {step:,} ({looked.usable.name})"
    if looked.config is not None and totals and totals[-1]:
        left = max(0, totals[-1] - step)
        told += f" of {totals[-1]:,}"
        speeds = [event.samples_per_second for event in looked.events if isinstance(event, StepEvent)]
        if left and (known := [speed for speed in speeds[-_SPEEDS:] if speed]):
            rate = statistics.median(known)
            seconds = left * looked.config.data.global_batch_size / rate
            told += f", about {datetime.timedelta(seconds=round(seconds))} at {rate:,.0f} samples/s"
        elif not left:
            told += ": nothing is left to train"
    yield Finding(OK, "resume", told)


def _left_over(looked: _Looked) -> Iterator[Finding]:
    """Files that a killed process was writing. A complete checkpoint that waits to be replaced is one until then."""
    directory = looked.directory
    complete = set(checkpoint.list_checkpoints(directory.checkpoints))
    paths = {*directory.path.glob(".*.part"), *directory.checkpoints.glob(".tmp-*")}
    paths |= set(directory.checkpoints.glob(".old-*")) - complete
    for path in sorted(paths) if not looked.trains else ():
        if not looked.repair:
            yield Finding(
                WARN, "left over", path.name, "a killed process was writing it: --repair removes it"
            )
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
        yield Finding(OK, "removed", path.name)


def _end(looked: _Looked) -> Iterator[Finding]:
    events, result = looked.events, looked.directory.result
    if result.exists():
        try:
            numbers = json.loads(result.read_text(encoding="utf-8"))
            yield Finding(
                OK, "result.json", f"{numbers['steps']:,} steps, {numbers['samples_per_second']} samples/s"
            )
        except (ValueError, LookupError, TypeError, OSError) as error:
            yield Finding(FAIL, "result.json", f"cannot be read ({error})", f"{_AGAIN}: it is written anew")
    ends = [event for event in events if isinstance(event, EndEvent | StartEvent)]
    if looked.trains or not ends:
        return
    last = ends[-1]
    if isinstance(last, StartEvent):
        advice = f"killed without a word (memory? `dmesg` tells; power?): {_AGAIN}"
        yield Finding(WARN, "end", "none is logged", advice)
    elif last.reason == "finished":
        yield Finding(
            OK,
            "end",
            f"finished after {last.steps:,} steps, {datetime.timedelta(seconds=round(last.seconds))}",
        )
    else:
        kind = last.reason.partition(":")[0]
        advice = _ENDS.get(kind, f"its traceback says more; {_AGAIN} once that is mended")
        yield Finding(WARN, "end", f"at step {last.steps:,}: {last.reason}", advice)


_PARTS = {
    "config.toml": _config,
    "lock": _lock,
    "events.jsonl": _log,
    "checkpoints": _checkpoints,
    "resume": _resume,
    "left over": _left_over,
    "result.json": _end,
}
