"""Class names and the numbers of classes: which label an image gets, and which names go into classes.txt."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from megaclass.errors import UserError, near_match

_WHOLE = re.compile(r"-?(0|[1-9][0-9]{0,17})", re.ASCII)
_DIGITS = re.compile(r"-?[0-9]+", re.ASCII)
_NAME_AND_NUMBER = re.compile(r"(\S+)\s+([0-9]{1,9})(\s.*)?", re.ASCII)


def are_numbers(labels: Iterable[str], known: Sequence[str] | None = None) -> bool:
    """Whether labels are mere numbers: all written as whole numbers (007 is a name), and no names of classes.

    ``known`` are the names of the classes. Where they consist of digits themselves, or one of them is among the
    labels, all labels are names: one that is not known must not turn the others into positions.
    """
    different = set(labels)
    if known is not None and (all(map(_DIGITS.fullmatch, known)) or not different.isdisjoint(known)):
        return False
    return all(_WHOLE.fullmatch(label) for label in different)


def read_names(path: Path, option: str) -> list[str]:
    """The lines of a file, each a class name. Raises UserError if it cannot be read, or names a class twice."""
    lines = [line.strip() for line in read_lines(path, option)]
    if not lines:
        raise UserError(f"{option}: {path} is empty; it needs a class name a line")
    seen: set[str] = set()
    for number, name in enumerate(lines, 1):
        if name in seen:
            raise UserError(
                f"{option}: {path} line {number} names {name!r} a second time; each class needs a name of its own"
            )
        seen.add(name)
    return lines


def read_lines(path: Path, option: str) -> list[str]:
    """The lines of a text file, without empty ones at its end."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"{option}: {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{option}: {path} is not text in UTF-8; convert it") from None
    while lines and not lines[-1].strip():
        lines.pop()
    return lines


def number_classes(
    labels_N: np.ndarray, classes: list[str] | None, given: list[str] | None
) -> tuple[np.ndarray, list[str] | None]:
    """Final labels, int64 of shape (N,), and the names for classes.txt.

    Classes that have images are numbered 0..K-1 in the order of their labels; labels without names that change
    on the way become the names. With ``given`` names, classes keep the numbers that they have there; labels
    without names are matched by name too, or are positions there: see ``are_numbers``.
    """
    kept_K, packed_N = np.unique(labels_N, return_inverse=True)
    names = [str(label) if classes is None else classes[label] for label in kept_K.tolist()]
    if given is None:
        unchanged = classes is None and (kept_K == np.arange(len(kept_K))).all()
        return packed_N, None if unchanged else names
    if classes is None and are_numbers(names, given):
        if kept_K[0] < 0 or kept_K[-1] >= len(given):
            raise UserError(
                f"classes: labels go from {kept_K[0]} to {kept_K[-1]}, but {len(given)} classes are named, from 0 on; "
                "give the file that belongs to these labels"
            )
        return labels_N.astype(np.int64), given
    number_of = {name: number for number, name in enumerate(given)}
    unknown = [name for name in names if name not in number_of]
    if unknown:
        raise UserError(
            f"classes: {unknown[0]!r}{_and_others(unknown)} is not among the {len(given)} named there"
            f"{near_match(unknown[0], given[:10_000])}; leave its images out or name it"
        )
    return np.array([number_of[name] for name in names], np.int64)[packed_N], given


def names_by_number(path: Path, numbers: Sequence[int]) -> dict[int, str]:
    """Class names by the numbers that a label file uses.

    The file has lines "name number", as ILSVRC's map_clsloc.txt, or a name a line in the order of the numbers. These
    count from 0 or from 1: which one, the ``numbers`` in use must tell. Raises UserError.
    """
    lines = read_names(path, "label_names")
    pairs = [_NAME_AND_NUMBER.fullmatch(line) for line in lines]
    by_number = {int(pair[2]): pair[1] for pair in pairs if pair}
    if len(by_number) < len(lines) or len(set(by_number.values())) < len(lines):
        first, last = min(numbers), max(numbers)
        if (first > 0) == (last < len(lines)):
            raise UserError(
                f"label_names: {path} has {len(lines)} names for numbers from {first} to {last}, and whether they "
                "count from 0 or from 1 does not show; write lines 'name number'"
            )
        by_number = dict(enumerate(lines, int(first > 0)))
    unknown = sorted(set(numbers) - by_number.keys())
    if unknown:
        raise UserError(
            f"label_names: {path} has no name for {unknown[0]}{_and_others(unknown)}; give the file that belongs to "
            "labels"
        )
    return by_number


def _and_others(found: Sequence[object]) -> str:
    return f" (and {len(found) - 1} more)" if len(found) > 1 else ""
