"""A ``.rec`` file: its records one at a time, and its words all at once.

A record is read by one ``pread``, for the reasons of :mod:`megaclass.data.storedfile`. Only scans over whole files map
them.
"""

import mmap

import numpy as np

from megaclass.data.records import recordio
from megaclass.data.records.recordio import DamageError
from megaclass.data.storedfile import StoredFile, unreadable

# Without a better guess: most faces of 112 pixels take less.
_GUESS_BYTES = 1 << 14
# What lies between two records of an index may be far more than the first of them.
_MOST_EXPECTED = 1 << 24


class RecordFile(StoredFile):
    """The records of a file, read from several threads at once."""

    @property
    def words_W(self) -> np.ndarray:  # noqa: N802 - an array, named as one
        """The file as little-endian uint32 (W,), mapped as long as the array lives."""
        try:
            mapped = mmap.mmap(self.descriptor, 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise unreadable(self.path, error) from None
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
            return self.read_at(offset, count)
        except OSError as error:
            raise DamageError(f"it cannot be read ({error.strerror})") from None
