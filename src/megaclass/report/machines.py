"""Which machine a row was measured on: numbers of different ones never share a cell."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megaclass.report.words import number

# What tells machines apart. Memory in GiB: the last MiB of it changes with a kernel.
IDENTITY = ("system", "cpu", "cpu_threads", "memory in GiB", "gpu", "gpu_count")
Identity = tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class Machine:
    """name: short, and no other machine's. spec: what it is and what ran on it, as a server spec is published."""

    identity: Identity
    name: str
    spec: list[tuple[str, str]]


def identity(environment: Mapping[str, Any]) -> Identity:
    """The values of ``IDENTITY``."""
    known = number(environment.get("memory_mb"))
    values = dict(environment) | {"memory in GiB": environment.get("memory_mb")}
    if known is not None:
        values["memory in GiB"] = round(known / 1024)
    values["gpu_count"] = environment.get("gpu_count") or 0  # a count that is missing is none
    found = (values.get(key) for key in IDENTITY)
    return tuple(value if isinstance(value, str | int | float | None) else str(value) for value in found)


def machines_of(environments: Iterable[Mapping[str, Any]]) -> dict[Identity, Machine]:
    """The distinct machines, in order of appearance. Those of one name get a letter each."""
    found: dict[Identity, list[Mapping[str, Any]]] = {}
    for environment in environments:
        found.setdefault(identity(environment), []).append(environment)
    names: dict[str, list[Identity]] = {}
    for key in found:
        names.setdefault(_name(key), []).append(key)
    machines = {}
    for key, group in found.items():
        same = names[_name(key)]
        place = same.index(key)
        letter = f" [{chr(65 + place) if place < 26 else place + 1}]" if len(same) > 1 else ""
        machines[key] = Machine(key, _name(key) + letter, _spec(group))
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
    spec = [
        ("System", named("", "system")),
        ("CPU", _cpu(first)),
        ("Memory", _gib(first.get("memory_mb"))),
        ("GPU", _gpu(first)),
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


def _cpu(environment: Mapping[str, Any]) -> str:
    cores, threads = environment.get("cpu_cores"), environment.get("cpu_threads")
    usable = environment.get("cpu_threads_usable")
    words = [
        str(environment.get("cpu") or ""),
        ", ".join(f"{n} {what}" for n, what in ((cores, "cores"), (threads, "threads")) if n),
        f"{usable} of them usable" if usable and usable != threads else "",
    ]
    return "; ".join(filter(None, words))


def _gib(memory_mb: Any) -> str:
    known = number(memory_mb)
    return str(memory_mb or "") if known is None else f"{known / 1024:,.1f} GiB"


def _gpu(environment: Mapping[str, Any]) -> str:
    if not environment.get("gpu"):
        return "none" if environment.get("cpu") else ""
    each = _gib(environment.get("gpu_memory_mb"))
    return f"{environment.get('gpu_count') or 1} x {environment['gpu']}{f', {each} each' if each else ''}"
