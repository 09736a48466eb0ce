"""A file that stays open, any bytes of which are read by one ``pread``.

That fetches what is needed in one request, which on a network file system counts, and a file that was cut or went
away gives an error, where a memory map would end the process.
"""

import functools
import os
from pathlib import Path
from typing import Any

from megaclass.errors import UserError


class StoredFile:
    """Reads from several threads at once. Opened anew in each process that unpickles it.

    Raises UserError where it cannot be opened. ``size`` is in bytes, as it was then.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = os.fstat(self.descriptor).st_size

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "size": self.size}

    def __del__(self) -> None:
        if "descriptor" in vars(self):
            os.close(self.descriptor)

    @functools.cached_property
    def descriptor(self) -> int:
        try:
            return os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise unreadable(self.path, error) from None

    def read_at(self, offset: int, count: int) -> bytes:
        """At most ``count`` bytes from byte ``offset`` on: fewer where the file ends. Raises OSError."""
        data = os.pread(self.descriptor, count, offset)
        while 0 < len(data) < count and (
            more := os.pread(self.descriptor, count - len(data), offset + len(data))
        ):
            data += more
        return data


def unreadable(path: Path, error: OSError) -> UserError:
    return UserError(f"{path} cannot be read: {error.strerror}; mend that and try again")
