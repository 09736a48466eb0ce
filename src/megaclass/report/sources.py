"""The raw rows that a report is made from: each knows the line that it stands in, and the machine that it is of.

Numbers of different machines never share a cell.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from megaclass.errors import UserError
from megaclass.results.rows import Row, number, read_rows
from megaclass.results.verdict import BUSY_PERCENT

# What tells machines apart. Memory in GiB: the last MiB of it changes with a kernel.
IDENTITY = ("system", "cpu", "cpu_threads", "memory in GiB", "gpu", "gpu_count")
Identity = tuple[Any, ...]
BUSY = f"other programs were busy: some task waited for a processor in more than {BUSY_PERCENT:g}% of the time"


@dataclass(frozen=True, eq=False)
class Source:
    """A row and where it stands. Two sources are equal only where they are the same line."""

    path: Path
    line: int  # from 1
    row: Row
    number: int  # its place among all rows of the report, from 1

    @cached_property
    def machine(self) -> Identity:
        return identity(self.row.environment)

    @property
    def ok(self) -> bool:
        return self.row.status == "ok"

    @property
    def busy(self) -> tuple[str, ...]:
        """The note on a number that was measured while other programs had work."""
        return (BUSY,) if (self.row.cpu_wait_percent or 0.0) > BUSY_PERCENT else ()

    @property
    def age(self) -> tuple[str, int]:
        """Rises with the time of measurement."""
        return self.row.measured_at, self.number

    def file_from(self, directory: Path) -> str:
        """The file as seen from where the report lies, with slashes."""
        return Path(os.path.relpath(self.path, directory.resolve())).as_posix()


def read_sources(paths: Sequence[str | Path]) -> list[Source]:
    """All rows of the files, and of the ``*.jsonl`` of the directories, in this order and each file once.

    Raises UserError: nothing there, not a row, a newer schema, no row at all.
    """
    files: dict[Path, Path] = {}
    for path in map(Path, paths):
        for file in sorted(filter(Path.is_file, path.glob("*.jsonl"))) if path.is_dir() else [path]:
            files.setdefault(file.resolve(), file)
    sources: list[Source] = []
    for resolved, file in files.items():
        for line, row in enumerate(read_rows(file), start=1):
            if not all(time > 0 for time in row.samples_ms):
                raise UserError(f"{file} line {line}: not a row of a benchmark: not all of samples_ms are above 0")
            sources.append(Source(resolved, line, row, 1 + len(sources)))
    if not sources:
        named = ", ".join(map(str, paths))
        raise UserError(f"{named}: no row of a benchmark; `megaclass bench ... --output FILE` writes them")
    return sources


# -- machines -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Machine:
    name: str  # short, and no other machine's
    spec: list[tuple[str, str]]  # what it is and what ran on it, as a server spec is published


def identity(environment: Mapping[str, Any]) -> Identity:
    """The values of ``IDENTITY``."""
    values, memory = dict(environment), number(environment.get("memory_mb"))
    values["memory in GiB"] = environment.get("memory_mb") if memory is None else round(memory / 1024)
    values["gpu_count"] = environment.get("gpu_count") or 0  # a count that is missing is none
    found = (values.get(key) for key in IDENTITY)
    return tuple(value if isinstance(value, str | int | float | None) else str(value) for value in found)


def machines_of(environments: Iterable[Mapping[str, Any]]) -> dict[Identity, Machine]:
    """The distinct machines, in order of appearance. Those of one name get a letter each."""
    found: dict[Identity, list[Mapping[str, Any]]] = {}
    for environment in environments:
        found.setdefault(identity(environment), []).append(environment)
    machines = {}
    for key, group in found.items():
        same = [other for other in found if _name(other) == _name(key)]
        letter = f" [{chr(65 + same.index(key))}]" if len(same) > 1 else ""
        machines[key] = Machine(_name(key) + letter, _spec(group))
    return machines


def _name(key: Identity) -> str:
    _, cpu, threads, _, gpu, gpu_count = key
    if gpu:
        return f"{gpu_count} x {_short(gpu)}"
    if not cpu:
        return "machine not recorded"
    return f"{_short(cpu)}, {threads} thread{'' if threads == 1 else 's'}"


def _short(model: Any) -> str:
    """A model without the signs and words that every model has."""
    text = re.sub(r"\((R|TM|C)\)|[®™]|@.*|\b(CPU|Processor|GPU)\b", " ", str(model), flags=re.IGNORECASE)
    return " ".join(text.split()) or str(model)


def _spec(environments: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Key and value, as published reports have them. Software that changed between rows is all named."""

    def named(name: str, key: str) -> str:
        values = dict.fromkeys(str(e[key]) for e in environments if e.get(key) not in (None, ""))
        return f"{name} {', '.join(values)}".strip() if values else ""

    def entries(key: str, between: str) -> str:
        found = (value for e in environments if isinstance(value := e.get(key), dict))
        return ", ".join(dict.fromkeys(f"{k}{between}{v}" for one in found for k, v in one.items()))

    first = environments[0]
    cores, threads, usable = map(first.get, ("cpu_cores", "cpu_threads", "cpu_threads_usable"))
    counts = ", ".join(f"{n} {what}" for n, what in ((cores, "cores"), (threads, "threads")) if n)
    fewer = f"{usable} of them usable" if usable and usable != threads else ""
    each = _gib(first.get("gpu_memory_mb"))
    gpu = f"{first.get('gpu_count') or 1} x {first.get('gpu')}" + (f", {each} each" if each else "")
    spec = [
        ("System", named("", "system")),
        ("CPU", "; ".join(filter(None, [str(first.get("cpu") or ""), counts, fewer]))),
        ("Memory", _gib(first.get("memory_mb"))),
        ("GPU", gpu if first.get("gpu") else "none" if first.get("cpu") else ""),
        ("OS", ", ".join(filter(None, [named("", "os"), named("kernel", "kernel")]))),
        ("Installation", named("NVIDIA driver", "driver")),
        ("Installation", ", ".join(filter(None, [named("CUDA", "cuda"), named("cuDNN", "cudnn")]))),
        ("Installation", named("NCCL", "nccl")),
        ("Installation", named("Python", "python")),
        ("Installation", named("PyTorch", "pytorch")),
        ("Installation", entries("packages", " ")),
        ("Variables", entries("variables", "=")),
        ("Source revision", named("", "revision")),
    ]
    return [(key, value) for key, value in spec if value]


def _gib(memory_mb: Any) -> str:
    known = number(memory_mb)
    return str(memory_mb or "") if known is None else f"{known / 1024:,.1f} GiB"
