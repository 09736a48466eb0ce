"""Which machine a row was measured on: numbers of different ones never share a cell."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megaclass.report.page.words import number

Identity = tuple[Any, ...]


@dataclass(frozen=True)
class Machine:
    """name: short, and no other machine's. spec: what it is and what ran on it, as a server spec is published."""

    identity: Identity
    name: str
    spec: list[tuple[str, str]]


def identity(environment: Mapping[str, Any]) -> Identity:
    """What tells machines apart. Memory in GiB: the last MiB of it changes with a kernel."""
    memory_mb = environment.get("memory_mb")
    known = number(memory_mb)
    return (
        *(_plain(environment.get(key)) for key in ("system", "cpu", "cpu_threads")),
        _plain(memory_mb) if known is None else round(known / 1024),
        _plain(environment.get("gpu")),
        _plain(environment.get("gpu_count")) or 0,
    )


def machines_of(environments: Iterable[Mapping[str, Any]]) -> dict[Identity, Machine]:
    """The distinct machines, in order of appearance."""
    found: dict[Identity, list[Mapping[str, Any]]] = {}
    for environment in environments:
        found.setdefault(identity(environment), []).append(environment)
    names = _names(list(found))
    return {key: Machine(key, names[key], _spec(group)) for key, group in found.items()}


def _names(identities: Sequence[Identity]) -> dict[Identity, str]:
    """Short names; machines of one name get a letter each."""
    short = {key: _name(key) for key in identities}
    names = {}
    for name in dict.fromkeys(short.values()):
        same = [key for key in identities if short[key] == name]
        for place, key in enumerate(same):
            names[key] = name if len(same) == 1 else f"{name} [{_letters(place)}]"
    return names


def _letters(place: int) -> str:
    return chr(65 + place) if place < 26 else str(place + 1)


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

    def all_of(key: str) -> str:
        values = dict.fromkeys(str(e[key]) for e in environments if e.get(key) not in (None, ""))
        return ", ".join(values)

    def named(name: str, key: str) -> str:
        return f"{name} {values}" if (values := all_of(key)) else ""

    first = environments[0]
    variables = dict.fromkeys(
        f"{name}={value}" for e in environments for name, value in _mapping(e.get("variables")).items()
    )
    packages = dict.fromkeys(
        f"{name} {value}" for e in environments for name, value in _mapping(e.get("packages")).items()
    )
    spec = [
        ("System", all_of("system")),
        ("CPU", _cpu(first)),
        ("Memory", _memory(first.get("memory_mb"))),
        ("GPU", _gpu(first)),
        ("OS", ", ".join(filter(None, [all_of("os"), named("kernel", "kernel")]))),
        ("Installation", named("NVIDIA driver", "driver")),
        ("Installation", ", ".join(filter(None, [named("CUDA", "cuda"), named("cuDNN", "cudnn")]))),
        ("Installation", named("NCCL", "nccl")),
        ("Installation", named("Python", "python")),
        ("Installation", named("PyTorch", "pytorch")),
        ("Installation", ", ".join(packages)),
        ("Variables", ", ".join(variables)),
        ("Source revision", all_of("revision")),
    ]
    return [(key, value) for key, value in spec if value]


def _cpu(environment: Mapping[str, Any]) -> str:
    words = [str(environment.get("cpu") or "")]
    cores, threads = environment.get("cpu_cores"), environment.get("cpu_threads")
    if cores or threads:
        words.append(", ".join(f"{n} {what}" for n, what in ((cores, "cores"), (threads, "threads")) if n))
    usable = environment.get("cpu_threads_usable")
    if usable and usable != threads:
        words.append(f"{usable} of them usable")
    return "; ".join(filter(None, words))


def _memory(memory_mb: Any) -> str:
    known = number(memory_mb)
    return str(memory_mb or "") if known is None else f"{known / 1024:,.1f} GiB"


def _gpu(environment: Mapping[str, Any]) -> str:
    if not environment.get("gpu"):
        return "none" if environment.get("cpu") else ""
    each = number(environment.get("gpu_memory_mb"))
    memory = "" if each is None else f", {each / 1024:,.1f} GiB each"
    return f"{environment.get('gpu_count') or 1} x {environment['gpu']}{memory}"


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _plain(value: Any) -> Any:
    """As a key: whatever stands there."""
    return value if isinstance(value, str | int | float | None) else str(value)
