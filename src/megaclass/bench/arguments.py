"""What a user writes for a list of counts, rates or names, and how the cores of the machine are shared."""

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar

from megaclass.errors import UserError
from megaclass.parallel import groups
from megaclass.results.machine import usable_cores

T = TypeVar("T", bound=Any)

_MOST = 10**15  # beyond it sizes in bytes leave 64 bits
_SUFFIXES = {"K": 10**3, "M": 10**6, "B": 10**9}


def counts(flag: str, text: str) -> list[int]:
    """``100K,1.5M,7`` as numbers; K, M and B are thousands, millions and (American) billions."""
    return list(dict.fromkeys(_count(flag, word.strip()) for word in text.split(",")))


def _count(flag: str, word: str) -> int:
    factor = _SUFFIXES.get(word[-1:].upper(), 1)
    digits = word[:-1] if factor > 1 else word
    try:
        # Digits without a point stay exact whatever their number.
        value = int(digits) * factor if digits.isdecimal() else float(digits) * factor
    except ValueError:
        value = 0.5
    if isinstance(value, float) and not value.is_integer():
        raise UserError(f"--{flag}: {word!r} is not a whole number such as 128, 100K or 10M")
    return int(value)


def rates(flag: str, text: str) -> list[float]:
    try:
        return list(dict.fromkeys(float(word) for word in text.split(",")))
    except ValueError:
        raise UserError(f"--{flag}: {text!r} is not a list of numbers such as 1,0.1") from None


def names(text: str) -> list[str]:
    """What stands between the commas, each once; an empty text is one empty name."""
    found = list(dict.fromkeys(word.strip() for word in text.split(",")))
    if (len(found) > 1 and "" in found) or text.strip() == ",":
        raise UserError(f"{text!r}: a name is missing beside a comma")
    return found


def crowded(device: str, processes: int) -> str:
    """Why so many processes are not started on a CPU, or an empty string."""
    cores = usable_cores()
    if device == "cpu" and processes > max(8, 4 * cores):
        return f"{processes} processes are too many for {cores} cores"
    return ""


def share_of_cores(processes: int) -> int:
    """Of one process; alone it follows ``OMP_NUM_THREADS``, as training does."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if processes == 1 and asked.isdecimal() and int(asked) > 0:
        return int(asked)
    return max(1, usable_cores() // processes)


def on_cores(cases: Iterable[T], threads: int) -> list[T]:
    """The cases with ``threads`` for each of their processes, or where that is 0 with their share of the cores."""
    if threads < 0:
        raise UserError(f"--threads: {threads} is below 0; 0 takes the share of the cores")
    return [replace(case, threads=threads or share_of_cores(case.world_size)) for case in cases]


def check_counts(case: Any, zeros: Collection[str], limits: Mapping[str, tuple[int, int]] = {}) -> None:
    """UserError for a whole number of a case below 1 (those of ``zeros``: below 0), or outside its ``limits``."""
    for field in fields(case):
        value = getattr(case, field.name)
        low, high = limits.get(field.name, (int(field.name not in zeros), _MOST))
        if field.type is int and not low <= value <= high:
            flag = field.name.removesuffix("_bytes").replace("_", "-")
            raise UserError(f"--{flag}: {value} is outside [{low}, {high:g}]")


def device_type(name: str) -> str:
    """``cpu`` or ``cuda`` for what ``--device`` says. UserError: not on this machine."""
    if name.startswith("cuda:"):
        number = name.removeprefix("cuda:")
        raise UserError(
            f"--device: {name!r} names one GPU, and a benchmark takes them from the first on; set CUDA_VISIBLE_DEVICES="
            f"{number} and say cuda"
        )
    try:
        return groups.pick_device(name).type
    except UserError as error:
        raise UserError(str(error).replace("run.device", "--device")) from None


def check_timeout(seconds: float) -> None:
    if not seconds > 0:
        raise UserError(f"--timeout: {seconds:g} is not a positive number of seconds")
