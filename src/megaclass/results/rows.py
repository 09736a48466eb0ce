"""The rows of a benchmark, one JSON object a line: the only contract between measurements and reports.

Rows are appended as they are measured and never change. The file is read with the standard library alone.

``SCHEMA_VERSION`` rises when a field is added, changes its meaning or disappears; a reader refuses what is newer.
"""

import dataclasses
import fcntl
import json
import math
import os
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megaclass.errors import UserError, make_room
from megaclass.results.stats import summary

SCHEMA_VERSION = 2

STATUSES = ("ok", "oom", "timeout", "failed", "skipped")

_BEGINNING = b'{"schema_version": '  # of every line, so that a cut one is known as ours


@dataclass(frozen=True, kw_only=True)
class Row:
    """One case of one benchmark, measured with one implementation, or why it was not.

    case: every parameter that the number depends on.
    asked: the case that was asked for, where a suite scaled it down to this machine; empty where it did not.
    suite: the name of the suite that the case is of, or an empty string.
    key: the same in rows that answer the same question; empty where a benchmark does not ask twice.
    reason: why the status is not ``ok``; empty where it is.
    samples_ms: every timed step, in the order of measurement. A case that ended early keeps what it had.
    step_ms: ``mean``, ``p50``, ``p90``, ``p95``, ``p99``, ``p100`` of them; empty unless the status is ``ok``.
    cpu_ms: processor time, user and system, of the process and of those it started, in every timed step; empty
        where a benchmark does not take it.
    samples_per_second: rows of the global batch over the median step, which a busy neighbour moves least.
    data_ms: for how long the device had nothing to do in every timed step because its data was not there, as part of
        ``samples_ms``; empty where a benchmark does not tell data from compute.
    epochs: of every timed epoch, which is a number of steps, the samples a second by ``total`` time, and by that of
        ``compute`` and of ``data`` alone (None where it was nothing).
    rates: the harmonic means of ``epochs``: what NVIDIA's ResNet-50 script reports.
    result: what a training run ended with: its metrics, ``final_loss`` and ``seconds``; empty elsewhere.
    memory_mb: peaks in MiB, each of the process that needs most: ``allocated`` and ``reserved`` by PyTorch on
        the GPU, ``driver``: in use on its GPU as the driver reports it at the end, whoever uses it (None on a CPU,
        and where others took turns with it), ``process``: resident memory above that of the idle process with its
        libraries loaded.
    work: what a step computes and moves, and the limits of the machine as measured in the same process; see
        the benchmark.
    cpu_wait_percent: for which part of the measurement some task of the machine waited for a processor: near 0
        where the measurement had the machine to itself. None where the system does not tell.
    group: the same in rows that took turns step by step: sample i of one was measured right beside sample i
        of the others.
    """

    implementation: str
    benchmark: str
    case: dict[str, Any]
    status: str
    reason: str = ""
    asked: dict[str, Any] = field(default_factory=dict)
    suite: str = ""
    key: str = ""
    samples_ms: list[float] = field(default_factory=list)
    data_ms: list[float] = field(default_factory=list)
    step_ms: dict[str, float] = field(default_factory=dict)
    cpu_ms: list[float] = field(default_factory=list)
    samples_per_second: float | None = None
    epochs: list[dict[str, float | None]] = field(default_factory=list)
    rates: dict[str, float | None] = field(default_factory=dict)
    result: dict[str, float | None] = field(default_factory=dict)
    memory_mb: dict[str, float | None] = field(default_factory=dict)
    work: dict[str, float] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    cpu_wait_percent: float | None = None
    group: str = ""
    measured_at: str = ""  # UTC, ISO 8601

    def __post_init__(self) -> None:
        assert self.status in STATUSES and bool(self.reason) == (self.status != "ok"), self


_KINDS = {name: typing.get_origin(hint) or hint for name, hint in typing.get_type_hints(Row).items()}


def timed(samples_ms: list[float], batch_rows: int) -> dict[str, Any]:
    """The fields of an ``ok`` row that follow from its samples."""
    step_ms = summary(samples_ms)
    return {
        "samples_ms": samples_ms,
        "step_ms": step_ms,
        "samples_per_second": round(batch_rows / step_ms["p50"] * 1000, 3),
    }


class RowWriter:
    """Appends rows to a file, one write a line: a killed sweep loses no row that was measured.

    A file that holds anything but rows is refused, and left as it is. No path: rows go nowhere.
    """

    def __init__(self, path: str | Path | None) -> None:
        self._file = None
        if not path:
            return
        self._path = Path(path)
        made = not self._path.exists()
        try:
            self._file = self._path.open("ab", buffering=0)
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror})") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise UserError(
                f"{path}: another sweep is writing into it; wait for it, or name another file"
            ) from None
        try:
            if not made:
                self._mend()
        except BaseException:
            self._file.close()
            raise

    def _mend(self) -> None:
        """Drop a last line without its line feed, which readers pass over too, and refuse what is nobody's row."""
        assert self._file is not None
        read_rows(self._path)
        content = self._path.read_bytes()
        kept = content.rfind(b"\n") + 1
        rest = content[kept:]
        if not rest:
            return
        try:
            json.loads(rest)
        except (ValueError, RecursionError):
            ours = rest.startswith(_BEGINNING[: len(rest)])
        else:
            _parse(rest, f"{self._path}: its last line")
            ours = True
        if not ours:
            raise UserError(f"{self._path}: its last line is not a row of a benchmark; name another file")
        self._file.truncate(kept)

    def write(self, row: Row) -> None:
        """Raises UserError where there is no room for it; the file is then as it was."""
        if self._file is not None:
            record = {"schema_version": SCHEMA_VERSION} | _finite(dataclasses.asdict(row))
            self._append(json.dumps(record, allow_nan=False).encode() + b"\n")

    def _append(self, line: bytes) -> None:
        assert self._file is not None
        before, rest = os.fstat(self._file.fileno()).st_size, line
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self._file.truncate(before)
            raise UserError(
                f"{self._path}: a row cannot be written ({error.strerror}); {make_room(error)}name another file"
            ) from None

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> "RowWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def read_rows(path: str | Path) -> list[Row]:
    """Read a file of rows. A last line without its line feed was cut by a kill, and is left out.

    Raises UserError: an unreadable file, a line that is no row (with its number), a newer schema.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    lines = content.split(b"\n")[:-1]
    return [_parse(line, f"{path} line {number}") for number, line in enumerate(lines, start=1)]


def _parse(line: bytes, where: str) -> Row:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not a line of JSON ({error})") from None
    version = record.pop("schema_version", None) if isinstance(record, dict) else None
    if not isinstance(version, int):
        raise UserError(f"{where}: not a row of a benchmark")
    if version > SCHEMA_VERSION:
        raise UserError(
            f"{where}: written with schema {version}, and this megaclass reads {SCHEMA_VERSION}: update it"
        )
    try:
        row = Row(**record)
    except (TypeError, AssertionError):
        raise UserError(f"{where}: not a row of a benchmark: fields {sorted(record)}") from None
    # What else a reader may rely on: that mappings are mappings, lists lists, and names names.
    for name, kind in _KINDS.items():
        if kind in (dict, list, str) and not isinstance(getattr(row, name), kind):
            raise UserError(f"{where}: not a row of a benchmark: {name} is not a {kind.__name__}")
    return row


def held_mb(memory_mb: Mapping[str, float | None]) -> float | None:
    """What a reader wants to know of a row's memory: what PyTorch holds of a device, else that of the process."""
    return next(
        (memory_mb[name] for name in ("reserved", "process") if memory_mb.get(name) is not None), None
    )


def setting_text(value: Any) -> str:
    """The value of a setting as a command line says it."""
    return value if isinstance(value, str) else json.dumps(value)


def _finite(value: Any) -> Any:
    """JSON has no NaN: numbers that are not finite as None."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
