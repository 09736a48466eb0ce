"""The ``.idx`` file of a record set: a line ``key<TAB>offset`` for each record.

Sets of 50 M records have a gigabyte of such text. Where lines are equally long, as they are for long stretches of a
set in the order of its keys, all of a piece are read at once: eight digits of each in a handful of operations on
whole arrays.

Shapes: L = lines of a piece, N = records.
"""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from megaclass.errors import UserError

# Small enough for the caches: every operation passes over the numbers of a whole piece.
_PIECE_BYTES = (1 << 17) - 4096
_LONGEST_LINE = 1 << 12
_MOST_RUNS = 64
_LINES = re.compile(rb"(?:[ \t]*+-?[0-9]++[ \t]++-?[0-9]++[ \t\r]*+\n)++")
_LIMITS = np.iinfo(np.int64)


class Index:
    """Keys and offsets of records, in the order of the file that lists them.

    Keys are kept as runs of consecutive numbers where these are few, as in public face sets: 1..N, 0, N+1...
    """

    def __init__(self, keys: "list[range] | np.ndarray", offsets_N: np.ndarray) -> None:
        self._keys = keys
        self.offsets_N = offsets_N

    def __len__(self) -> int:
        return len(self.offsets_N)

    def __getitem__(self, place: int) -> int:
        """The key at ``place``."""
        if not isinstance(self._keys, list):
            return int(self._keys[place])
        for run in self._keys:
            if place < len(run):
                return run[place]
            place -= len(run)
        raise IndexError(place)

    @property
    def keys(self) -> range | np.ndarray:
        """A range, or int64 of shape (N,)."""
        if isinstance(self._keys, list):
            if len(self._keys) == 1:
                return self._keys[0]
            return np.concatenate([np.empty(0, np.int64), *self._keys])
        steps = len(self._keys) and (np.diff(self._keys) == 1).all()
        return range(int(self._keys[0]), int(self._keys[-1]) + 1) if steps else self._keys

    def find(self, key: int) -> int | None:
        """The place at which ``key`` is listed first, if it is."""
        if not isinstance(self._keys, list):
            found = np.flatnonzero(self._keys == key)
            return int(found[0]) if len(found) else None
        place = 0
        for run in self._keys:
            if key in run:
                return place + run.index(key)
            place += len(run)
        return None

    def between(self, start: int, stop: int) -> "Index":
        """The records with keys from ``start`` to ``stop - 1``, in the order of their keys."""
        if not isinstance(self._keys, list):
            order = np.argsort(self._keys, kind="stable")
            order = order[slice(*np.searchsorted(self._keys, (start, stop), sorter=order))]
            return Index(self._keys[order], self.offsets_N[order])
        parts, place = [], 0
        for run in self._keys:
            low, high = max(start, run.start), min(stop, run.stop)
            if low < high:
                first = place + low - run.start
                parts.append((range(low, high), self.offsets_N[first : first + high - low]))
            place += len(run)
        parts.sort(key=lambda part: part[0].start)
        runs = [run for run, _ in parts]
        joined = (
            parts[0][1] if len(parts) == 1 else np.concatenate([self.offsets_N[:0], *(o for _, o in parts)])
        )
        return Index(runs, joined)


def read_index(path: Path) -> Index:
    """The index in the order of its lines.

    Memory: 8 bytes a record, and 8 more where keys are in no order. Raises UserError if a line is none of an index.
    """
    offsets_N = np.empty(0, np.int64)
    keys: list[range] | np.ndarray = []
    count = 0
    for lines in _pieces(path):
        keys_L, offsets_L = _equal_lines(lines) or _any_lines(lines, path)
        first, count = count, count + len(keys_L)
        if count > len(offsets_N):
            offsets_N.resize(count + count // 2, refcheck=False)  # large arrays grow without a copy
        offsets_N[first:count] = offsets_L
        if isinstance(keys, list):
            _extend(keys, keys_L)
            if len(keys) <= _MOST_RUNS:
                continue
            keys, keys_L = np.concatenate(keys), keys_L[:0]
        if count > len(keys):
            keys.resize(len(offsets_N), refcheck=False)
        keys[count - len(keys_L) : count] = keys_L
    offsets_N.resize(count, refcheck=False)
    return Index(keys if isinstance(keys, list) else keys[:count], offsets_N)


def _extend(runs: list[range], keys_L: np.ndarray) -> None:
    """Add keys to runs of consecutive numbers."""
    edges = [0, *(np.flatnonzero(np.diff(keys_L) != 1) + 1).tolist(), len(keys_L)]
    for begin, end in itertools.pairwise(edges):
        run = range(int(keys_L[begin]), int(keys_L[begin]) + end - begin)
        if runs and runs[-1].stop == run.start:
            run = range(runs.pop().start, run.stop)
        runs.append(run)


def _equal_lines(lines: bytes) -> tuple[np.ndarray, np.ndarray] | None:
    """Keys and offsets of lines that are all as long as the first, or None if they are not so or hold no numbers."""
    width, tab = lines.index(b"\n") + 1, lines.find(b"\t")
    if len(lines) % width or not 0 < tab < width - 2 or max(tab, width - tab - 2) > 18:
        return None
    text_LW = np.frombuffer(lines, np.uint8).reshape(-1, width)
    if (text_LW[:, tab] != ord("\t")).any() or (text_LW[:, -1] != ord("\n")).any():
        return None
    keys_L, offsets_L = _numbers(lines, 0, tab, width), _numbers(lines, tab + 1, width - 1, width)
    return None if keys_L is None or offsets_L is None else (keys_L, offsets_L)


def _numbers(lines: bytes, start: int, stop: int, width: int) -> np.ndarray | None:
    """The digits ``start`` to ``stop`` of every line of ``width`` bytes as int64 (L,); None if any is no digit."""
    count = len(lines) // width
    numbers_L = np.zeros(count, np.int64)
    while start < stop:
        digits = next(size for size in (8, 4, 2, 1) if size <= stop - start)
        words_L = np.ndarray(count, f"<u{digits}", lines, start, width).astype(np.uint64)
        value_L = _digits(words_L, digits)
        if value_L is None:
            return None
        numbers_L = numbers_L * 10**digits + value_L.astype(np.int64)
        start += digits
    return numbers_L


def _digits(words_L: np.ndarray, digits: int) -> np.ndarray | None:
    """Numbers of 1, 2, 4 or 8 digits, each a little-endian word of text; None if any is no digit.

    Neighbours are joined in all places at once: digits to pairs, pairs to fours, fours to eights.
    """
    ones = 0x0101010101010101 >> (64 - 8 * digits)
    # A byte that is no digit has its highest bit set after the subtraction, or gets it when 0x76 is added.
    value_L = words_L - np.uint64(0x30 * ones)
    if ((value_L | (value_L + np.uint64(0x76 * ones))) & np.uint64(0x80 * ones)).any():
        return None
    for bits, mask in ((8, 0x00FF00FF00FF00FF), (16, 0x0000FFFF0000FFFF), (32, 0x00000000FFFFFFFF)):
        if 8 * digits > bits:
            ten = np.uint64(10 ** (bits // 8))
            value_L = (value_L & np.uint64(mask)) * ten + ((value_L >> np.uint64(bits)) & np.uint64(mask))
    return value_L


def _any_lines(lines: bytes, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Keys and offsets of any lines. Numbers beyond int64 come from NumPy as its limits, which are none of a set."""
    sound = _LINES.fullmatch(lines) is not None
    numbers = np.fromstring(lines if sound else b"", np.int64, sep=" ")
    if not sound or numbers.max() == _LIMITS.max or numbers.min() == _LIMITS.min:
        raise UserError(
            f"{path}: not every line is 'key<TAB>offset'; remove the file to have the records scanned"
        )
    return numbers[0::2], numbers[1::2]


def _pieces(path: Path) -> Iterator[bytes]:
    """The file in pieces of whole lines; the last line gets its end if it lacks one. Blank lines may follow."""
    try:
        with path.open("rb", buffering=0) as file:
            rest = b""
            while piece := file.read(_PIECE_BYTES):
                end = piece.rfind(b"\n") + 1
                lines, rest = (rest + piece[:end], piece[end:]) if end else (b"", rest + piece)
                if len(rest) > _LONGEST_LINE:
                    lines, rest = lines + rest, b""  # whoever reads the lines says what is wrong
                if lines.endswith(b"\n") and lines[-2:-1].isdigit():
                    yield lines
                elif lines := lines.rstrip():
                    yield lines + b"\n"
            if rest := rest.rstrip():
                yield rest + b"\n"
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; mend that and try again") from None
