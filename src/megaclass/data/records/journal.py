"""A journal beside half-written files: what is being written, and how far it has safely come.

It is a text file of JSON, a line an entry; the first says what is being written, the *plan*. Lines are only ever
appended, so that a process killed at any moment leaves whole lines and perhaps the beginning of one more, which is
dropped. The journal is locked while it is open, and so keeps two writers from one set.
"""

import fcntl
import json
import os
from pathlib import Path
from typing import Any

from megaclass.errors import UserError

Plan = dict[str, Any]


class Journal:
    """The journal at ``path`` for ``plan``; ``entries`` are those that an earlier writer left.

    Raises UserError if another process has it open, or if it was left by another plan, unless ``restart``.
    """

    def __init__(self, path: Path, plan: Plan, *, restart: bool = False) -> None:
        self.path = path
        self.entries: list[Any] = []
        self._file = path.open("a+b")  # appends, whatever another writer may have done in between
        try:
            self._lock()
            lines = [] if restart else self._whole_lines()
            if lines:
                _check(path, lines[0], plan)
                self.entries = lines[1:]
            else:
                self._file.truncate(0)
                self.append(plan)
        except BaseException:
            self._file.close()
            raise

    def append(self, entry: Any) -> None:
        """Add an entry; it is on the disk when this returns."""
        self._file.write(json.dumps(entry).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def remove(self) -> None:
        """Delete the file, while it is still locked, and close it."""
        self.path.unlink(missing_ok=True)
        self._file.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever held it may have finished and removed it between the opening and the lock.
            gone = os.fstat(self._file.fileno()).st_nlink == 0
        except BlockingIOError:
            gone = True
        if gone:
            raise UserError(
                f"{self.path.parent}: another process is writing this set; wait for it or name another directory"
            )

    def _whole_lines(self) -> list[Any]:
        self._file.seek(0)
        lines: list[Any] = []
        sound = 0
        for line in self._file:
            try:
                lines.append(json.loads(line if line.endswith(b"\n") else b""))
            except ValueError:
                break
            sound += len(line)
        self._file.truncate(sound)
        return lines


def _check(path: Path, found: Any, plan: Plan) -> None:
    # Through JSON, so that a tuple equals the list that it became.
    wanted = json.loads(json.dumps(plan))
    if found == wanted:
        return
    found = found if isinstance(found, dict) else {}
    changes = [
        f"{key} ({_shown(found.get(key))} there, {_shown(wanted.get(key))} now)"
        for key in {**wanted, **found}
        if found.get(key) != wanted.get(key)
    ]
    raise UserError(
        f"{path.parent} holds a half-written set of another plan: {', '.join(changes)}; give the same again to "
        "continue it, or --restart to throw it away"
    )


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)
