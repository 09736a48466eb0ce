"""The events of a run, one JSON object a line: the only contract between runs and reports.

A run appends events to ``events.jsonl`` as they happen and reports read nothing else. JSON has no NaN, so
a number that is not finite is written as null and read as None. The file is read with the standard library
alone.

``SCHEMA_VERSION`` rises when a field changes its meaning or disappears; a reader refuses what is newer.
"""

import dataclasses
import json
import math
import os
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megaclass.errors import UserError

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class StartEvent:
    """A process started or resumed the run."""

    config: dict[str, Any]
    environment: dict[str, Any]
    world_size: int
    resumed_from_step: int | None = None
    total_steps: int | None = None  # of the whole run; earlier versions did not say
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True, kw_only=True)
class StepEvent:
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
    damaged_samples: int = (
        0  # left out with data.on_error skip, over all ranks, since the run was last started
    )


@dataclass(frozen=True, kw_only=True)
class EvaluationEvent:
    """What an evaluation of the model at ``step`` found; ``name`` tells evaluations of one run apart."""

    step: int
    name: str
    metrics: dict[str, Any]
    roc: dict[str, list[float]] | None = None  # {"far": [..], "tar": [..]}, FAR rising


@dataclass(frozen=True, kw_only=True)
class CheckpointEvent:
    """A checkpoint of ``step`` is complete; ``path`` is relative to the run directory."""

    step: int
    path: str


@dataclass(frozen=True, kw_only=True)
class WarningEvent:
    message: str
    step: int | None = None


@dataclass(frozen=True, kw_only=True)
class EndEvent:
    """The run ended: ``reason`` is ``finished`` or says what stopped it."""

    reason: str
    steps: int
    seconds: float


Event = StartEvent | StepEvent | EvaluationEvent | CheckpointEvent | WarningEvent | EndEvent

KINDS: dict[str, type] = {
    "start": StartEvent,
    "step": StepEvent,
    "evaluation": EvaluationEvent,
    "checkpoint": CheckpointEvent,
    "warning": WarningEvent,
    "end": EndEvent,
}
_NAMES = {kind: name for name, kind in KINDS.items()}


class EventWriter:
    """Appends events to a file, one write a line, so that a killed run loses no event but the last.

    ``resumed_from_step`` None starts a run: the file must not hold one already. A step continues one: what
    the file has logged beyond that step goes (the killed run had gone on after its last checkpoint), and so
    does a half-written last line. With ``enabled=False`` (ranks other than the main one) nothing is touched.
    """

    def __init__(self, path: str | Path, resumed_from_step: int | None = None, enabled: bool = True) -> None:
        self._file = None
        if not enabled:
            return
        path = Path(path)
        if resumed_from_step is None and path.exists() and path.stat().st_size > 0:
            raise UserError(f"{path}: holds the events of a run already; resume it, or use another directory")
        kept = _bytes_until(path, resumed_from_step) if resumed_from_step is not None and path.exists() else 0
        self._file = path.open("ab", buffering=0)
        self._file.truncate(kept)

    def write(self, event: Event) -> None:
        if self._file is not None:
            record = {"event": _NAMES[type(event)]} | _plain(vars(event))
            self._file.write(json.dumps(record, allow_nan=False).encode() + b"\n")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> "EventWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def read_events(path: str | Path) -> list[Event]:
    """Read a run's events. A last line without its line feed was cut by a kill, and is left out.

    Raises UserError: an unreadable file, a damaged line (with its number), a newer schema.
    """
    return [event for event, _ in _lines(Path(path))]


def _lines(path: Path) -> Iterator[tuple[Event, int]]:
    """Each event and the offset in bytes at which its line ends."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    end = 0
    for number, line in enumerate(content.splitlines(keepends=True), start=1):
        if not line.endswith(b"\n"):
            return
        end += len(line)
        event = _parse(line, f"{path} line {number}")
        if number == 1 and not isinstance(event, StartEvent):
            raise UserError(f"{path} line 1: a run begins with a start event, not {_NAMES[type(event)]}")
        yield event, end


def _parse(line: bytes, where: str) -> Event:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where}: not a line of JSON ({error})") from None
    name = record.pop("event", None) if isinstance(record, dict) else None
    kind = KINDS.get(name) if isinstance(name, str) else None
    version = record.get("schema_version") if name == "start" else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise UserError(
            f"{where}: written with schema {version}, and this megaclass reads {SCHEMA_VERSION}: update it"
        )
    if kind is None:
        raise UserError(f"{where}: not an event of a run (its kind is {name!r})")
    hints = typing.get_type_hints(kind)
    required = [field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING]
    for field in [*required, *record]:
        if field not in record or field not in hints:
            raise UserError(
                f"{where}: the {name} event {'lacks' if field in hints else 'has an unknown'} {field!r}"
            )
        if not _fits(record[field], hints[field]):
            raise UserError(f"{where}: {field} of the {name} event is {record[field]!r}, not {hints[field]}")
    return kind(**record)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a JSON value has the annotated type; what a dict or a list holds is not looked at."""
    if isinstance(hint, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(hint))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, typing.get_origin(hint) or hint) and not isinstance(value, bool)


def _bytes_until(path: Path, step: int) -> int:
    """The length of the part of the file that a run resumed from ``step`` keeps."""
    kept = 0
    for event, end in _lines(path):
        # Events lie in order, so what follows the first later one is later too.
        if (_step_of(event) or 0) > step:
            break
        kept = end
    return kept


def _step_of(event: Event) -> int | None:
    if isinstance(event, StartEvent):
        return event.resumed_from_step
    return event.steps if isinstance(event, EndEvent) else event.step


def _plain(value: Any) -> Any:
    """The value in JSON's types: arrays as lists, their scalars as numbers, non-finite numbers as None."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
