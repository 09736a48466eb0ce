"""A ``.rec`` file: its records one at a time, and its words all at once.

A record is read by one ``pread`` of a file that stays open: that fetches what is needed in one request, which on a
network file system counts, and a file that was cut or went away gives an error, where a memory map would end the
process. Only scans over whole files map them.
"""

import functools
import mmap
import os
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
            raise self._unreadable(error) from None

    @property
    def words_W(self) -> np.ndarray:  # noqa: N802 - an array, named as one
        """The file as little-endian uint32 (W,), mapped as long as the array lives."""
        if not self.size:
            return np.empty(0, "<u4")  # nothing can be mapped
        try:
            mapped = mmap.mmap(self._descriptor, 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise self._unreadable(error) from None
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

    def _unreadable(self, error: OSError) -> UserError:
        return UserError(f"{self.path} cannot be read: {error.strerror}; mend that and try again")
