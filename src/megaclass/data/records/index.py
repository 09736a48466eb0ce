"""The ``.idx`` file of a record set: a line ``key<TAB>offset`` for each record.

Shapes: N = records.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megaclass.errors import UserError


@dataclass(frozen=True)
class Index:
    """Keys and offsets of records, int64 of shape (N,) each, in the order of the file that lists them."""

    keys_N: np.ndarray
    offsets_N: np.ndarray

    def __len__(self) -> int:
        return len(self.keys_N)

    def find(self, key: int) -> int | None:
        """The place at which ``key`` is listed first, if it is."""
        found = np.flatnonzero(self.keys_N == key)
        return int(found[0]) if len(found) else None

    def between(self, start: int, stop: int) -> "Index":
        """The records with keys from ``start`` to ``stop - 1``, in the order of their keys."""
        chosen = np.flatnonzero((self.keys_N >= start) & (self.keys_N < stop))
        keys_N, offsets_N = self.keys_N[chosen], self.offsets_N[chosen]
        if (keys_N[1:] > keys_N[:-1]).all():
            return Index(keys_N, offsets_N)
        order = np.argsort(keys_N, kind="stable")
        return Index(keys_N[order], offsets_N[order])

    def double_keys(self) -> np.ndarray:
        """The keys that more than one line has, ascending."""
        if (self.keys_N[1:] > self.keys_N[:-1]).all():
            return self.keys_N[:0]
        keys_N = np.sort(self.keys_N)
        return np.unique(keys_N[1:][keys_N[1:] == keys_N[:-1]])


def read_index(path: Path) -> Index:
    """The index in the order of its lines: ten million of them take about a second. Raises UserError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a file without lines: whoever needs some tells it
            table_N2 = np.loadtxt(path, np.int64, comments=None, ndmin=2)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; mend that and try again") from None
    except (ValueError, OverflowError, MemoryError):
        table_N2 = np.empty((1, 0), np.int64)
    if (table_N2.size and table_N2.shape[1] != 2) or table_N2.shape == (1, 0):
        raise UserError(
            f"{path}: not every line is 'key<TAB>offset'; remove the file to have the records scanned"
        )
    keys_N, offsets_N = table_N2.reshape(-1, 2).T
    return Index(keys_N.copy(), offsets_N.copy())


def compact(keys_N: np.ndarray) -> range | np.ndarray:
    """Consecutive keys as a range, which takes no memory."""
    if len(keys_N) and (np.diff(keys_N) == 1).all():
        return range(int(keys_N[0]), int(keys_N[-1]) + 1)
    return keys_N
