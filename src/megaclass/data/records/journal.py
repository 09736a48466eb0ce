"""A journal beside half-written files: what is being written, and how far it has safely come.

It is a text file of JSON, a line an entry; the first says what is being written, the *plan*. Lines are only ever
appended, so that a process killed at any moment leaves whole lines and perhaps the beginning of one more, which is
dropped. The journal is locked while it is open, and so keeps two writers from one set.
"""

import fcntl
import io
import json
import os
from pathlib import Path
from typing import Any

from megaclass.errors import UserError

Plan = dict[str, Any]


class Journal:
    """The journal at ``path``, new or as an earlier writer left it: its ``plan`` (None: none) and ``entries``.

    Raises UserError if another process has it open.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.plan: Plan | None = None
        self.entries: list[Any] = []
        self._ends: list[int] = []  # where each line ends, in bytes
        # Without a buffer: what a full disk did not take would be tried once more when the file is closed.
        self._file = path.open("a+b", buffering=0)
        try:
            self._lock()
            self._read()
        except BaseException:
            self._file.close()
            raise

    def begin(self, plan: Plan) -> None:
        """Forget all there was."""
        self._file.truncate(0)
        self._ends = []
        self.entries = []
        self._write(plan)
        self.plan = _as_read(plan)

    def append(self, entry: Any) -> None:
        """Add an entry; it is on the disk when this returns."""
        self._write(entry)
        self.entries.append(entry)

    def keep(self, count: int) -> None:
        """Drop all entries but the first ``count``."""
        self._file.truncate(self._ends[count])
        del self.entries[count:], self._ends[count + 1 :]

    def require(self, plan: Plan) -> None:
        """Raise UserError, naming what differs, if the journal is of another plan than this one."""
        if changes := self.changes(plan):
            raise UserError(
                f"{self.path.parent} holds a half-written set that differs in {', '.join(changes)}; give what it was "
                "begun with to continue it, or --restart to throw it away"
            )

    def changes(self, plan: Plan) -> list[str]:
        """In what the journal's plan differs from this one."""
        wanted, found = _as_read(plan), self.plan or {}
        return [
            f"{key} ({_shown(found.get(key))} there, {_shown(wanted.get(key))} now)"
            for key in {**wanted, **found}
            if found.get(key) != wanted.get(key)
        ]

    def close(self) -> None:
        self._file.close()

    def remove(self) -> None:
        """Delete the file, while it is still locked, and close it."""
        try:
            self.path.unlink(missing_ok=True)
        finally:
            self._file.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever held it may have finished and removed it between the opening and the lock.
            taken = os.fstat(self._file.fileno()).st_nlink == 0
        except BlockingIOError:
            taken = True
        if taken:
            raise UserError(
                f"{self.path.parent}: another process is writing this set; wait for it or name another directory"
            )

    def _read(self) -> None:
        self._file.seek(0)
        lines: list[Any] = []
        for line in io.BytesIO(self._file.readall()):
            try:
                lines.append(json.loads(line if line.endswith(b"\n") else b""))
            except ValueError:
                break
            self._ends.append((self._ends[-1] if self._ends else 0) + len(line))
        self._file.truncate(self._ends[-1] if self._ends else 0)
        self.plan = lines[0] if lines and isinstance(lines[0], dict) else None
        self.entries = lines[1:]

    def _write(self, line: Any) -> None:
        encoded = json.dumps(line).encode() + b"\n"
        left = memoryview(encoded)
        while left:
            left = left[self._file.write(left) :]  # at the end of the file, wherever reading left off
        os.fsync(self._file.fileno())
        self._ends.append((self._ends[-1] if self._ends else 0) + len(encoded))


def _as_read(plan: Plan) -> Plan:
    """As it comes back from the file: a tuple is a list there."""
    return json.loads(json.dumps(plan))


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)
