"""The rows of a benchmark, one JSON object a line: the only contract between measurements and reports.

Rows are appended as they are measured and never change.

``SCHEMA_VERSION`` rises when a field is added, changes its meaning or disappears; a reader refuses what is newer.
"""

import fcntl
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megaclass.errors import UserError, make_room
from megaclass.results.jsonl import LineFile, build, check_version, read_lines
from megaclass.results.stats import summary

SCHEMA_VERSION = 2

STATUSES = ("ok", "oom", "timeout", "failed", "skipped")

# Of every line, so that one that a kill has cut is known as ours.
_BEGINNINGS = [f'{{"schema_version": {n}, "implementation": '.encode() for n in range(1, SCHEMA_VERSION + 1)]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One case of one benchmark, measured with one implementation, or why it was not."""

    implementation: str
    benchmark: str
    case: dict[str, Any]  # every parameter that the number depends on
    status: str
    reason: str = ""  # why the status is not ``ok``; empty where it is
    # The case that was asked for, where a suite scaled it down to this machine; empty where it did not.
    asked: dict[str, Any] = field(default_factory=dict)
    suite: str = ""  # of which the case is one, if any
    key: str = ""  # the same in rows that answer the same question; empty where none asks twice
    samples_ms: list[float] = field(default_factory=list)  # every timed step, in order, until the case ended
    # Of every timed step the part in which the device had nothing to do because its data was not there; empty where a
    # benchmark does not tell data from compute.
    data_ms: list[float] = field(default_factory=list)
    # ``mean``, ``p50``, ``p90``, ``p95``, ``p99``, ``p100`` of them; empty unless the status is ``ok``.
    step_ms: dict[str, float] = field(default_factory=dict)
    # Of every timed step the processor time, user and system, of the process and of those it started, if taken.
    cpu_ms: list[float] = field(default_factory=list)
    samples_per_second: float | None = None  # of the global batch, by the median step
    # Of every timed epoch, which is a number of steps, the samples a second by ``total`` time, and by that of
    # ``compute`` and of ``data`` alone (None where it was nothing).
    epochs: list[dict[str, float | None]] = field(default_factory=list)
    # The harmonic means of ``epochs``: what NVIDIA's ResNet-50 script reports.
    rates: dict[str, float | None] = field(default_factory=dict)
    # What a training run ended with: its metrics, ``final_loss`` and ``seconds``.
    result: dict[str, float | None] = field(default_factory=dict)
    # Peaks in MiB, each of the process that needs most: ``allocated`` and ``reserved`` by PyTorch on the GPU;
    # ``driver``: in use on its GPU as the driver reports it at the end, whoever uses it (None on a CPU, and where
    # others took turns with it); ``process``: resident memory above that of the idle process with its libraries.
    memory_mb: dict[str, float | None] = field(default_factory=dict)
    # What a step computes and moves, and the limits of the machine as the same process measured them.
    work: dict[str, float | None] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    # For which part of the measurement some task of the machine waited for a processor, where the system tells.
    cpu_wait_percent: float | None = None
    group: str = ""  # the same in rows that took turns: sample i of one lies beside sample i of the others
    measured_at: str = ""  # UTC, ISO 8601

    def __post_init__(self) -> None:
        assert self.status in STATUSES and bool(self.reason) == (self.status != "ok"), self


def timed(samples_ms: list[float], batch_rows: int) -> dict[str, Any]:
    """The fields of an ``ok`` row that follow from its samples."""
    step_ms = summary(samples_ms)
    return {
        "samples_ms": samples_ms,
        "step_ms": step_ms,
        "samples_per_second": round(batch_rows / step_ms["p50"] * 1000, 3),
    }


class RowWriter(LineFile):
    """Appends rows to a file, one write a line: a killed sweep loses no row that was measured.

    A file that holds anything but rows is refused, and left as it is. No path: rows go nowhere.
    """

    def __init__(self, path: str | Path | None) -> None:
        super().__init__(Path(path) if path else None)
        if self.path is None:
            return
        try:
            file = self.open()
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror})") from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.truncate(_whole_bytes(self.path))
        except OSError:
            self.close()
            raise UserError(f"{path}: another sweep is writing into it; wait for it, or name another file") from None
        except UserError:
            self.close()
            raise

    def write(self, row: Row) -> None:
        """Raises UserError where there is no room for it; the file is then as it was."""
        try:
            self.append({"schema_version": SCHEMA_VERSION} | vars(row))
        except OSError as error:
            raise UserError(
                f"{self.path}: a line cannot be written ({error.strerror}); {make_room(error)}name another place"
            ) from None


def read_rows(path: str | Path) -> list[Row]:
    """Read a file of rows. A last line without its line feed was cut by a kill, and is left out.

    Raises UserError: an unreadable file, a line that is no row (with its number), a newer schema.
    """
    return [_row(record, where) for where, record, _ in read_lines(Path(path))]


def _whole_bytes(path: Path) -> int:
    """The length of a file without a line that a kill has cut. UserError for a file that holds anything but rows."""
    read_rows(path)
    content = path.read_bytes()
    rest = content[content.rfind(b"\n") + 1 :]
    if not any(rest.startswith(beginning[: len(rest)]) for beginning in _BEGINNINGS):
        raise UserError(f"{path}: its last line is not a row of a benchmark; name another file")
    return len(content) - len(rest)


def _row(record: dict[str, Any], where: str) -> Row:
    version = record.pop("schema_version", None)
    if not isinstance(version, int):
        raise UserError(f"{where}: not a row of a benchmark")
    check_version(version, SCHEMA_VERSION, where)
    try:
        return build(Row, record, where, "the row of a benchmark")
    except AssertionError:
        raise UserError(f"{where}: not a row of a benchmark: its status and reason do not agree") from None


def number(value: Any) -> float | None:
    """The value of a parameter, if it is a number."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def setting_text(value: Any) -> str:
    """The value of a setting as a command line says it."""
    return value if isinstance(value, str) else json.dumps(value)
