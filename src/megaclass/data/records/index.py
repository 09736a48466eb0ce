"""The ``.idx`` file of a record set: a line ``key<TAB>offset`` for each record.

Sets of 50 M records have a gigabyte of such text. Where lines are equally long, as they are for long stretches of a
set in the order of its keys, all of a piece are read at once: eight digits of each in a handful of operations on
whole arrays.

Shapes: L = lines of a piece, N = records.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from megaclass.errors import UserError

# Small enough for the caches: every operation passes over the numbers of a whole piece.
_PIECE_BYTES = (1 << 17) - 4096
_LONGEST_LINE = 1 << 12


def read_index(path: Path) -> tuple[Sequence[int] | np.ndarray, np.ndarray]:
    """Keys and offsets in the order of the lines: a range where the keys count up, else int64 (N,); int64 (N,).

    Memory: 8 bytes a record, and 8 more where keys are no range. Raises UserError naming the first bad line.
    """
    offsets_N = np.empty(0, np.int64)
    keys: range | np.ndarray = range(0)
    count = 0
    for lines in _pieces(path):
        keys_L, offsets_L = _equal_lines(lines) or _any_lines(lines, path)
        first, count = count, count + len(keys_L)
        if count > len(offsets_N):
            offsets_N.resize(count + count // 2, refcheck=False)  # large arrays grow without a copy
        offsets_N[first:count] = offsets_L
        if first == 0:
            keys = range(int(keys_L[0]), int(keys_L[0]))
        if isinstance(keys, range):
            counted = range(keys.start, keys.start + count)
            if np.array_equal(keys_L, np.arange(counted[first], counted.stop)):
                keys = counted
                continue
            keys = np.array(keys, np.int64)
        if count > len(keys):
            keys.resize(len(offsets_N), refcheck=False)
        keys[first:count] = keys_L
    offsets_N.resize(count, refcheck=False)
    return keys[:count], offsets_N


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
    """Keys and offsets of any lines."""
    try:
        numbers = np.fromstring(lines, np.int64, sep=" ")
    except ValueError:
        numbers = np.empty(0, np.int64)
    if len(numbers) != 2 * lines.count(b"\n"):
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
