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
from megaclass.doctor.findings import FAIL, OK, WARN, Finding, in_bytes, judged, look
from megaclass.errors import UserError
from megaclass.results.events import EndEvent, Event, EventWriter, StartEvent, StepEvent, read_events
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
    "DivergedError": f"do what it says, and {_AGAIN}",
}
_OTHER_END = f"its traceback says more: mend that, and {_AGAIN}"


@dataclass
class _Looked:
    """What is known of the run so far."""

    directory: RunDirectory
    repair: bool
    held: contextlib.ExitStack
    config: Config | None = None
    events: list[Event] = field(default_factory=list)
    trains: bool = False  # now, in another process
    usable: Path | None = None  # the newest sound checkpoint


def findings(path: Path, repair: bool) -> Iterator[Finding]:
    """Look at the run under ``path``. With ``repair``, unless a process trains there, what a resume would do is done: a
    damaged log is set aside and its whole lines go on, left-over files are removed."""
    with contextlib.ExitStack() as held:
        looked = _Looked(RunDirectory(path), repair, held)
        for what, part in _PARTS.items():
            yield from look(what, _LIMIT_S, functools.partial(part, looked))


def _config(looked: _Looked) -> Iterator[Finding]:
    looked.config = load_recipe(str(looked.directory.config), stored=True)
    yield Finding(OK, "config.toml", f"recipe {looked.config.recipe}, readable")


def _lock(looked: _Looked) -> Iterator[Finding]:
    """Kept while something is repaired: no training begins meanwhile."""
    with contextlib.suppress(FileNotFoundError), contextlib.ExitStack() as held:
        lock = held.enter_context((looked.directory.path / ".lock").open("r+" if looked.repair else "r"))
        try:
            fcntl.flock(lock, fcntl.LOCK_NB | (fcntl.LOCK_EX if looked.repair else fcntl.LOCK_SH))
        except BlockingIOError:
            looked.trains, looked.repair = True, False
        if looked.repair:
            looked.held.push(held.pop_all())
    yield Finding(OK, "lock", "a process trains here now" if looked.trains else "no process trains here")


def _log(looked: _Looked) -> Iterator[Finding]:
    path = looked.directory.events
    fault, torn = _read(looked)
    if looked.repair and (fault or torn) and path.exists():
        with EventWriter(path, resumed_from_step=1 << 62) as writer:  # from the end, where it would go on
            done = writer.set_aside or f"{path.name}: {torn} bytes of a half line cut off"
        yield Finding(OK, "repaired", done)
        fault, torn = _read(looked)
    starts = [event.environment for event in looked.events if isinstance(event, StartEvent)]
    text = f"{len(looked.events):,} events, {len(starts)} starts"
    if starts:
        by = starts[-1]
        text += f", the last by megaclass {by.get('revision')!s:.12} with PyTorch {by.get('pytorch')}"
    advice = "a resume, or --repair, sets it aside and keeps the lines before"
    torn_advice = f"ends in {torn} bytes of a half line, which a resume, or --repair, cuts off"
    yield judged("events.jsonl", fault or text, (fault != "", FAIL, advice), (torn > 0, WARN, torn_advice))


def _read(looked: _Looked) -> tuple[str, int]:
    """Reads the events. What is wrong with them, and the bytes of the half line at the end."""
    path = looked.directory.events
    try:
        looked.events = read_events(path)
        content = path.read_bytes()
    except UserError as error:
        return str(error), 0
    return "", 0 if looked.trains else len(content) - content.rfind(b"\n") - 1


def _checkpoints(looked: _Looked) -> Iterator[Finding]:
    root = looked.directory.checkpoints
    found = checkpoint.list_checkpoints(root)
    for path in reversed(found):
        try:
            checkpoint.verify(path)
        except UserError as error:
            reason = getattr(error, "reason", "") or str(error)
            yield Finding(FAIL, path.name, reason, "a resume sets it aside and takes the one before")
        else:
            looked.usable = looked.usable or path
            size = sum(file.stat().st_size for file in path.iterdir())
            yield Finding(OK, path.name, f"{in_bytes(size)}, as it was written")
    for path in sorted(root.glob(".damaged-*")):
        yield Finding(WARN, path.name, "was found damaged, and set aside", "delete it when nobody needs it")
    if looked.usable is None:
        text = "none that is sound" if found else "none yet"
        yield Finding(WARN, "checkpoints", text, "a resume starts from the beginning")


def _resume(looked: _Looked) -> Iterator[Finding]:
    if looked.usable is None or looked.config is None:
        return
    step = int(looked.usable.name.rpartition("-")[2])
    totals = [event.total_steps for event in looked.events if isinstance(event, StartEvent)]
    told = f"from {looked.usable.name}"
    if totals and totals[-1]:  # earlier versions did not say
        left = max(0, totals[-1] - step) * looked.config.data.global_batch_size
        told += f" of {totals[-1]:,} steps" if left else ": no step is left"
        speeds = [
            e.samples_per_second for e in looked.events if isinstance(e, StepEvent) and e.samples_per_second
        ]
        if left and speeds:
            rate = statistics.median(speeds[-_SPEEDS:])
            told += f", in about {_time(left / rate)} at {rate:,.0f} samples/s"
    yield Finding(OK, "resume", told)


def _left_over(looked: _Looked) -> Iterator[Finding]:
    directory, root = looked.directory, looked.directory.checkpoints
    # A complete checkpoint that waits to be replaced is left over once the new one is there.
    old = {*root.glob(".old-*")} - {*checkpoint.list_checkpoints(root)}
    for path in sorted({*directory.path.glob(".*.part"), *root.glob(".tmp-*")} | old):
        if looked.trains:
            break
        if looked.repair:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            yield Finding(OK, "removed", path.name)
        else:
            yield Finding(
                WARN, "left over", path.name, "of a killed process: a resume removes it, or --repair"
            )


def _end(looked: _Looked) -> Iterator[Finding]:
    result = looked.directory.result
    if result.exists():
        try:
            steps = json.loads(result.read_bytes())["steps"]
            yield Finding(OK, "result.json", f"of {steps:,} steps")
        except (ValueError, LookupError, TypeError) as error:
            yield Finding(FAIL, "result.json", f"damaged ({error})", f"{_AGAIN}: it is written anew")
    last = next((e for e in reversed(looked.events) if isinstance(e, EndEvent | StartEvent)), None)
    if looked.trains or last is None:
        return
    if isinstance(last, StartEvent):
        advice = f"killed (memory? `dmesg` tells) or the power went: {_AGAIN}"
        yield Finding(WARN, "end", "the last start has logged none", advice)
        return
    told = f"at step {last.steps:,}, after {_time(last.seconds)} of training: {last.reason}"
    advice = next((text for kind, text in _ENDS.items() if last.reason.startswith(kind)), _OTHER_END)
    yield judged("end", told, (last.reason != "finished", WARN, advice))


def _time(seconds: float) -> datetime.timedelta:
    return datetime.timedelta(seconds=round(seconds))


_PARTS = {
    "config.toml": _config,
    "lock": _lock,
    "events.jsonl": _log,
    "checkpoints": _checkpoints,
    "resume": _resume,
    "left over": _left_over,
    "result.json": _end,
}
