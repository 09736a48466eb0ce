"""Files that commands write beside data sets: when that fails, one line tells."""

import contextlib
import os
from collections.abc import Callable, Iterator
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


@contextlib.contextmanager
def new_lines(option: str, path: Path) -> Iterator[Callable[[str], None]]:
    """Yields what appends a line to a new text file: what was written stays, however the block ends."""
    with _failures(option, path), path.open("x", encoding="utf-8") as file:
        yield lambda line: print(line, file=file)


@contextlib.contextmanager
def _failures(option: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{option}: {path} cannot be written: {error.strerror or error}; {make_room(error)}name another file"
        ) from None
