"""The events of a run, one JSON object a line: the only contract between runs and reports.

A run appends events to ``events.jsonl`` as they happen and reports read nothing else.

``SCHEMA_VERSION`` rises when a field changes its meaning or disappears; a reader refuses what is newer.
"""

import contextlib
import itertools
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from megaclass.errors import UserError
from megaclass.results.jsonl import LineFile, build, check_version, read_lines
from megaclass.results.rundir import write_whole

_LOG = logging.getLogger(__name__)

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Event:
    """at: when it was written, seconds since 1970; earlier versions did not say."""

    at: float | None = field(default=None, compare=False)


@dataclass(frozen=True, kw_only=True)
class StartEvent(Event):
    """A process started or resumed the run."""

    config: dict[str, Any]
    environment: dict[str, Any]
    world_size: int
    resumed_from_step: int | None = None
    total_steps: int | None = None  # of the whole run; earlier versions did not say
    hosts: list[str] | None = None  # of each rank
    epoch_samples: int | None = None  # images of the training set
    init_s: float | None = field(default=None, compare=False)  # from the start of the process to here
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True, kw_only=True)
class StepEvent(Event):
    """Training as it stands after ``step`` optimizer steps; rates are those since the previous event."""

    step: int
    epoch: int
    samples: int  # over all ranks, since step 0
    loss: float | None
    learning_rate: float
    samples_per_second: float | None
    wait_percent: float | None  # time the loop waited for data, on the main rank
    grad_norm: float | None
    skipped_steps: int  # steps left out for a non-finite gradient, since step 0
    time_s: float  # spent training, over all restarts
    wait_cause: str | None = None  # disk, decode or copy: what most of the wait was for
    damaged_samples: int = 0  # left out with data.on_error skip, over all ranks, since the last start


@dataclass(frozen=True, kw_only=True)
class EvaluationEvent(Event):
    """What an evaluation of the model at ``step`` found; ``name`` tells evaluations of one run apart."""

    step: int
    name: str
    metrics: dict[str, Any]
    roc: dict[str, list[float]] | None = None  # {"far": [..], "tar": [..]}, FAR rising
    seconds: float | None = field(default=None, compare=False)  # that it took, of all sets together


@dataclass(frozen=True, kw_only=True)
class CheckpointEvent(Event):
    """A checkpoint of ``step`` is complete; ``path`` is relative to the run directory."""

    step: int
    path: str
    stall_s: float | None = None  # how long training stood still for it
    seconds: float | None = None  # until it was on the disk


@dataclass(frozen=True, kw_only=True)
class WarningEvent(Event):
    message: str
    step: int | None = None


@dataclass(frozen=True, kw_only=True)
class EndEvent(Event):
    """The run ended: ``reason`` is ``finished`` or says what stopped it."""

    reason: str
    steps: int
    seconds: float


KINDS: dict[str, type[Event]] = {
    "start": StartEvent,
    "step": StepEvent,
    "evaluation": EvaluationEvent,
    "checkpoint": CheckpointEvent,
    "warning": WarningEvent,
    "end": EndEvent,
}
_NAMES = {kind: name for name, kind in KINDS.items()}


class EventWriter(LineFile):
    """Appends events to a file, one write a line, so that a killed run loses no event but the last.

    ``resumed_from_step`` None starts a run: the file must not hold one already (UserError). A step continues one: what
    the file has logged beyond that step goes (the killed run had gone on after its last checkpoint), and so does a
    half-written last line. With ``enabled=False`` (ranks other than the main one) nothing is touched.

    A log ends no run, so nothing else raises. ``warn`` is told, once for each cause, what the disk refuses; when it
    takes lines again, a warning event says how many are missing. A damaged file is renamed to ``NAME.damaged-N``, its
    lines before the damage go on, and ``set_aside`` says so.
    """

    def __init__(
        self,
        path: str | Path,
        resumed_from_step: int | None = None,
        enabled: bool = True,
        warn: Callable[[str], None] = _LOG.warning,
    ) -> None:
        super().__init__(Path(path) if enabled else None)
        self.set_aside = ""
        self.last_start: StartEvent | None = None  # of what the file holds and goes on with
        self._warn = warn
        self._causes: set[str] = set()  # told already
        self._missing = 0
        self._start: StartEvent | None = None  # still to be written: without it the rest could not be read
        if self.path is None or not os.path.lexists(self.path):
            return
        if resumed_from_step is not None:
            self._continue(self.path, resumed_from_step)
        elif not self.path.is_file() or self.path.stat().st_size > 0:
            raise UserError(f"{path}: holds the events of a run already; resume it, or use another directory")

    def write(self, event: Event) -> None:
        event = replace(event, at=round(time.time(), 3))
        before: list[Event] = [self._start] if self._start else []
        if self._missing:
            before.append(WarningEvent(message=f"events missing before the next: {self._missing}"))
        try:  # all of them, or none: what is left of a full disk is not filled with warnings
            self.append(*({"event": _NAMES[type(one)]} | vars(one) for one in (*before, event)))
            self._start, self._missing = None, 0
        except OSError as error:
            if isinstance(event, StartEvent):
                self._start = event
            else:
                self._missing += 1
            if (cause := error.strerror or str(error)) not in self._causes:
                self._causes.add(cause)
                self._warn(f"{self.path}: events cannot be written ({cause}); the run goes on")

    def close(self) -> None:
        if missing := self._missing + (self._start is not None):
            self._warn(f"{self.path}: the last events of this run are missing: {missing}")
        with contextlib.suppress(OSError):
            super().close()

    def _continue(self, path: Path, step: int) -> None:
        kept, damage, self.last_start = _whole_until(path, step)
        if not damage:
            try:
                self.open().truncate(kept)
                return
            except OSError as error:
                super().close()
                damage, self.file = f"{path}: cannot be continued ({error.strerror})", None
        numbered = (path.with_name(f"{path.name}.damaged-{number}") for number in itertools.count(1))
        aside = next(name for name in numbered if not os.path.lexists(name))
        try:
            path.rename(aside)
            if kept:
                write_whole(path, aside.read_bytes()[:kept])
        except OSError as error:
            self._warn(f"{damage}, and cannot be set aside ({error.strerror}): the run goes on without a log")
            self.path = None
        else:
            self.set_aside = f"{damage}; set aside as {aside.name}"


def read_events(path: str | Path) -> list[Event]:
    """Read a run's events. A last line without its line feed was cut by a kill, and is left out.

    Raises UserError: an unreadable file, a damaged line (with its number), a newer schema.
    """
    return [event for event, _ in _lines(Path(path))]


def _lines(path: Path) -> Iterator[tuple[Event, int]]:
    """Each event and the offset in bytes at which its line ends."""
    if path.exists() and not path.is_file():  # a named pipe would be waited for
        raise UserError(f"{path}: not a regular file")
    first = True
    for where, record, end in read_lines(path):
        name = record.pop("event", None)
        kind = KINDS.get(name) if isinstance(name, str) else None
        if kind is None:
            raise UserError(f"{where}: not an event of a run (its kind is {name!r:.80})")
        if first and kind is not StartEvent:
            raise UserError(f"{where}: a run begins with a start event, not {name}")
        if kind is StartEvent:
            check_version(record.get("schema_version"), SCHEMA_VERSION, where)
        first = False
        yield build(kind, record, where, f"the {name} event"), end


def _whole_until(path: Path, step: int) -> tuple[int, str, StartEvent | None]:
    """The length of the part of the file that a run resumed from ``step`` keeps, the damage behind it, if any, and the
    last start in that part."""
    kept, start = 0, None
    try:
        for event, end in _lines(path):
            at = max(getattr(event, name, None) or 0 for name in ("step", "steps", "resumed_from_step"))
            # Events lie in order, so what follows the first later one is later too.
            if at > step:
                break
            kept = end
            if isinstance(event, StartEvent):
                start = event
    except UserError as error:
        return kept, str(error), start
    return kept, "", start
