"""A run directory: what is sound in it, and from where a resume would go on."""

from collections.abc import Iterator
from pathlib import Path

from megaclass import checkpoint
from megaclass.checkpoint.manifest import DamagedError
from megaclass.doctor.findings import FAIL, OK, WARN, Finding, look, told
from megaclass.errors import UserError, in_bytes
from megaclass.results.events import EndEvent, EventWriter, StartEvent, read_events
from megaclass.results.rundir import RunDirectory

_LIMIT_S = 3600.0  # of one part: a large checkpoint on a network disk is read for long


def findings(path: Path, repair: bool) -> Iterator[Finding]:
    """Look at the run under ``path``. With ``repair`` a damaged log is set aside first, and its lines before the damage
    go on, as a resume would do it; not while a process trains there."""
    directory = RunDirectory(path)
    if repair:
        yield from look("repair", _LIMIT_S, lambda: _repair(directory))
    yield from look("events.jsonl", _LIMIT_S, lambda: _log(directory.events))
    yield from look("checkpoints", _LIMIT_S, lambda: _checkpoints(directory.checkpoints))


def _repair(directory: RunDirectory) -> Iterator[Finding]:
    with (
        directory.locked(),
        EventWriter(directory.events, resumed_from_step=1 << 62) as writer,  # beyond the last: all is kept
    ):
        yield Finding(OK, "repair", writer.set_aside or "the log is whole now")


def _log(path: Path) -> Iterator[Finding]:
    try:
        events = read_events(path)
    except UserError as error:
        advice = "a resume, or --repair, sets it aside and keeps the lines before"
        yield Finding(FAIL, path.name, str(error), advice)
        return
    yield Finding(OK, path.name, f"{len(events):,} events")
    last = next((e for e in reversed(events) if isinstance(e, EndEvent | StartEvent)), None)
    if isinstance(last, StartEvent):
        advice = "it trains now, or was killed (memory? `dmesg` tells): --resume goes on"
        yield Finding(WARN, "end", "the last start has logged none", advice)
    elif last:
        good = last.reason == "finished"
        advice = "" if good else "mend what it names, if anything, and start it again with --resume"
        yield Finding(OK if good else WARN, "end", f"at step {last.steps:,}: {last.reason}", advice)


def _checkpoints(root: Path) -> Iterator[Finding]:
    found, usable = checkpoint.list_checkpoints(root), None
    for path in reversed(found):
        try:
            checkpoint.verify(path)
        except DamagedError as damage:
            yield Finding(FAIL, path.name, damage.reason, "a resume sets it aside and takes the one before")
        except UserError as error:  # a resume stops at it
            yield told(FAIL, path.name, error)
        else:
            usable = usable or path
            size = sum(file.stat().st_size for file in path.iterdir())
            yield Finding(OK, path.name, f"{in_bytes(size)}, as it was written")
    if usable:
        yield Finding(OK, "resume", f"goes on from {usable.name}")
    elif found:
        yield Finding(FAIL, "resume", "no checkpoint is sound", "start anew, in another directory")
    else:
        yield Finding(WARN, "resume", "no checkpoint yet", "it starts from the beginning")
