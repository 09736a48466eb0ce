"""The ``.rec`` and ``.idx`` files of a record set: records one at a time, all words at once, keys and offsets.

A record is read by one ``pread`` of a file that stays open: that fetches what is needed in one request, which on a
network file system counts, and a file that was cut or went away gives an error, where a memory map would end the
process. Only scans over whole files map them.

Shapes: N = records, W = 4-byte words.
"""

import functools
import mmap
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megaclass.data.records import recordio
from megaclass.data.records.recordio import DamageError
from megaclass.errors import UserError

# Without a better guess: most faces of 112 pixels take less.
_GUESS_BYTES = 1 << 14
# What lies between two records of an index may be far more than the first of them.
_MOST_EXPECTED = 1 << 24


class RecordFile:
    """The records of a file, read from several threads at once. Opened anew in each process that unpickles it.

    Raises UserError where it cannot be opened. ``size`` is in bytes, as it was then.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = os.fstat(self._descriptor).st_size

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "size": self.size}

    def __del__(self) -> None:
        if "_descriptor" in vars(self):
            os.close(self._descriptor)

    @functools.cached_property
    def _descriptor(self) -> int:
        try:
            return os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise UserError(
                f"{self.path} cannot be read: {error.strerror}; mend that and try again"
            ) from None

    @property
    def words_W(self) -> np.ndarray:  # noqa: N802 - an array, named as one
        """The file as little-endian uint32 (W,), mapped as long as the array lives."""
        if not self.size:
            return np.empty(0, "<u4")  # nothing can be mapped
        mapped = mmap.mmap(self._descriptor, 0, access=mmap.ACCESS_READ)
        return np.frombuffer(mapped, "<u4", count=len(mapped) // 4)

    def plain(self, offset: int, bytes_expected: int) -> tuple[float, bytes] | None:
        """Label and image of the record at byte ``offset`` by one read of ``bytes_expected``, or None: see there."""
        if offset < 0 or offset % 4 or bytes_expected > _MOST_EXPECTED:
            return None
        return recordio.plain_record(
            self._read(offset, bytes_expected if bytes_expected > 0 else _GUESS_BYTES)
        )

    def payload(self, offset: int) -> memoryview:
        """The payload of the record at byte ``offset``, its parts joined. Raises DamageError."""
        return recordio.read_payload(self._read, self.size, offset)

    def key_range(self, offset: int, pictured: int = 0) -> tuple[int, int] | None:
        """The labels (a, b) of the index or identity record at ``offset``, or None if it is an image or damaged.

        One with a picture counts if a is ``pictured``.
        """
        try:
            labels, image = recordio.unpack_payload(self.payload(int(offset)))
        except DamageError:
            return None  # reading it as an image will tell
        if len(labels) != 2 or not all(1 <= value < 2**31 for value in labels):
            return None
        return None if len(image) and labels[0] != pictured else (int(labels[0]), int(labels[1]))

    def _read(self, offset: int, count: int) -> bytes:
        """At most ``count`` bytes: fewer where the file ends."""
        try:
            data = os.pread(self._descriptor, count, offset)
            while 0 < len(data) < count and (
                more := os.pread(self._descriptor, count - len(data), offset + len(data))
            ):
                data += more
        except OSError as error:
            raise DamageError(f"it cannot be read ({error.strerror})") from None
        return data


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
        chosen = chosen[np.argsort(self.keys_N[chosen], kind="stable")]
        return Index(self.keys_N[chosen], self.offsets_N[chosen])

    def double_keys(self) -> np.ndarray:
        """The keys that more than one line has, ascending."""
        keys_N = np.sort(self.keys_N, kind="stable")  # takes no time where they are sorted
        return np.unique(keys_N[1:][keys_N[1:] == keys_N[:-1]])

    def index_range(self, file: RecordFile) -> tuple[int, int] | None:
        """The labels (a, b) of record 0 if it is the index record of a face set."""
        zero = self.find(0)
        # Some converters put a picture there: the label of an image would be less than the number of records.
        return None if zero is None else file.key_range(self.offsets_N[zero], pictured=len(self))


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


def scan(file: RecordFile) -> Index:
    """All records of a file, for want of an index. Empty if there is none."""
    words_W = file.words_W
    offsets_N = recordio.find_records(words_W)
    # Writers of face sets give a record its key as its id, and put record 0 behind the images.
    ids_N = recordio.ids_in_some_order(words_W, offsets_N)
    return Index(np.arange(len(offsets_N)) if ids_N is None else ids_N, offsets_N)


def rounding(key: int) -> int:
    """How far a float32 may lie from a key near this one: 0 up to 2**24."""
    return int(np.spacing(np.float32(key)))
