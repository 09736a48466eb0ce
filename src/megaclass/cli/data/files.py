"""Files that commands write beside data sets: when that fails, one line tells."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from megaclass.errors import UserError, make_room


@contextlib.contextmanager
def new_picture(option: str, path: Path) -> Iterator[Path]:
    """Yields a hidden name to write to, which becomes ``path`` when the block ends well; else nothing is left.

    Raises UserError, which names the ``option``, for what the system does not let through.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with _failures(option, path):
        try:
            yield part
            part.replace(path)
        finally:
            with contextlib.suppress(OSError):
                part.unlink()


class NewLines(contextlib.AbstractContextManager["NewLines"]):
    """A text file that grows line by line: what was written stays, however the block ends. Raises UserError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._told():
            self._file = path.open("x", encoding="utf-8")

    def write(self, line: str) -> None:
        with self._told():
            self._file.write(f"{line}\n")

    def __exit__(self, *_: object) -> None:
        with self._told():
            self._file.close()

    def _told(self) -> contextlib.AbstractContextManager[None]:
        return _failures("--output", self._path)


@contextlib.contextmanager
def _failures(option: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{option}: {path} cannot be written: {error.strerror or error}; {make_room(error)}name another file"
        ) from None
