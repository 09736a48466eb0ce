"""From what a command line says to cases: a flag for each field of a case, and every combination of what they say."""

import dataclasses
import itertools
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable, Sequence
from typing import Any

from megaclass.bench.case import Case, fields_of, flags_of

_SUFFIXES = {"K": 10**3, "M": 10**6, "B": 10**9}


def add_flags(parser: ArgumentParser, case: type[Case]) -> None:
    """A flag for every field with a help; the options have its value, or the list of values, by the field's name."""
    for f in fields_of(case):
        if text := f.metadata["help"]:
            usual, many = f.metadata["given"] or str(f.default), "LIST" if f.metadata["sweeps"] else None
            parser.add_argument(*flags_of(f), dest=f.name, type=_reader(f), default=usual, metavar=many, help=text)


def _reader(f: "dataclasses.Field[Any]") -> Callable[[str], Any]:
    readers: dict[Any, Callable[[str], Any]] = {int: count, float: number}
    read = readers.get(f.type, str.strip)
    aliases = f.metadata["aliases"]

    def value(text: str) -> Any:
        return aliases.get(found := read(text), found)

    return one_or_more(value) if f.metadata["sweeps"] else value


def one_or_more(read: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """Reads the values between commas, each once."""
    return lambda text: list(dict.fromkeys(read(word) for word in text.split(",")))


def count(word: str) -> int:
    """``100K``, ``1.5M`` or ``7``; K, M and B are thousands, millions and (American) billions."""
    word = word.strip()
    factor = _SUFFIXES.get(word[-1:].upper(), 1)
    digits = word[:-1] if factor > 1 else word
    try:
        # Digits without a point stay exact whatever their number.
        value = int(digits) * factor if digits.lstrip("-").isdecimal() else float(digits) * factor
    except ValueError:
        value = 0.5
    if isinstance(value, float) and not value.is_integer():
        raise ArgumentTypeError(f"{word!r} is not a whole number such as 128, 100K or 10M")
    return int(value)


def number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise ArgumentTypeError(f"{word!r} is not a number such as 1 or 0.1") from None


counts, names = one_or_more(count), one_or_more(str.strip)


def cases_of(case: type[Case], options: Any, **instead: Sequence[Any]) -> list[Any]:
    """Every combination of what ``options`` say of the case's fields; the last field varies fastest. ``instead``: lists
    of values that come from elsewhere."""
    lists: dict[str, Sequence[Any]] = {}
    for f in fields_of(case):
        if f.name in instead:
            lists[f.name] = instead[f.name]
        elif f.metadata["help"]:
            value = getattr(options, f.name)
            lists[f.name] = value if f.metadata["sweeps"] else [value]
    return [case(**dict(zip(lists, values, strict=True))) for values in itertools.product(*lists.values())]
