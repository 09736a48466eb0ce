"""The ``.rec`` and ``.idx`` files of a record set: records one at a time, all words at once, keys and offsets.

A record is read by one ``pread`` of a file that stays open: that fetches what is needed in one request, which on a
network file system counts, and a file that was cut or went away gives an error, where a memory map would end the
process. Only scans over whole files map them.

Shapes: N = records, W = 4-byte words.
"""

import mmap
import os
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from megaclass.data.records import recordio
from megaclass.data.records.recordio import DamageError
from megaclass.errors import UserError
from megaclass.files import MAX_TEXT_BYTES, open_regular

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
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}; mend that and try again") from None
        self.size = os.fstat(self._descriptor).st_size

    def __reduce__(self) -> tuple[Any, ...]:
        return RecordFile, (self.path,)

    def __del__(self) -> None:
        if "_descriptor" in vars(self):
            os.close(self._descriptor)

    @property
    def words_W(self) -> np.ndarray:  # noqa: N802 - an array, named as one
        """The file as little-endian uint32 (W,), mapped as long as the array lives."""
        if not self.size:
            return np.empty(0, "<u4")  # nothing can be mapped
        try:
            mapped = mmap.mmap(self._descriptor, 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            # Some file systems cannot; ValueError: the file was emptied meanwhile.
            raise UserError(f"{self.path} cannot be mapped ({error}); copy the set to a local disk") from None
        return np.frombuffer(mapped, "<u4", count=len(mapped) // 4)

    def plain(self, offset: int, bytes_expected: int) -> tuple[float, bytes] | None:
        """Label and image of the record at byte ``offset`` by one read of ``bytes_expected``, or None: see there."""
        if offset < 0 or offset % 4 or bytes_expected > _MOST_EXPECTED:
            return None
        return recordio.plain_record(self._read(offset, bytes_expected if bytes_expected > 0 else _GUESS_BYTES))

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
            while 0 < len(data) < count and (more := os.pread(self._descriptor, count - len(data), offset + len(data))):
                data += more
        except OSError as error:
            raise DamageError(f"it cannot be read ({error.strerror})") from None
        return data


class Index(NamedTuple):
    """Keys and offsets of records, int64 of shape (N,) each, in the order of the file that lists them."""

    keys_N: np.ndarray
    offsets_N: np.ndarray

    def between(self, start: int, stop: int) -> "Index":
        """The records with keys from ``start`` to ``stop - 1``, in the order of their keys."""
        chosen = np.flatnonzero((self.keys_N >= start) & (self.keys_N < stop))
        keys_N = self.keys_N[chosen]
        if (keys_N[1:] < keys_N[:-1]).any():  # hardly ever: to sort ten million takes a second
            chosen = chosen[np.argsort(keys_N, kind="stable")]
        return Index(self.keys_N[chosen], self.offsets_N[chosen])


def read_index(path: Path) -> Index:
    """The index in the order of its lines: ten million of them take about a second. Raises UserError."""
    try:
        with (
            open_regular(path, MAX_TEXT_BYTES, encoding="latin-1") as file,
            warnings.catch_warnings(action="ignore"),  # of a file without lines: whoever needs some tells it
        ):
            table_N2 = np.loadtxt(file, np.int64, comments=None, ndmin=2)
        keys_N, offsets_N = table_N2.T.copy() if table_N2.size else np.empty((2, 0), np.int64)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; mend that and try again") from None
    except (ValueError, OverflowError, MemoryError):
        raise UserError(
            f"{path}: not every line is 'key<TAB>offset'; remove the file to have the records scanned"
        ) from None
    return Index(keys_N, offsets_N)


def scan(file: RecordFile) -> Index:
    """All records of a file, for want of an index. Empty if there is none."""
    words_W = file.words_W
    offsets_N = recordio.find_records(words_W)
    # Writers of face sets give a record its key as its id, and put record 0 behind the images.
    ids_N = recordio.ids_in_some_order(words_W, offsets_N)
    return Index(np.arange(len(offsets_N)) if ids_N is None else ids_N, offsets_N)
