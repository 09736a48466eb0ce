"""Files that somebody names: regular ones alone are opened, no larger than they may be; written, they appear whole.

A pipe would keep a reader waiting for ever, a device gives bytes without end, and a link may lead to either. What is
refused is an OSError, so that callers tell it as they tell what the system refuses.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from megaclass.errors import UserError, make_room

# Of texts that are read whole: a line for each of fifty million images.
MAX_TEXT_BYTES = 1 << 32

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def regular_size(path: str | Path, most: int | None = None) -> int:
    """The bytes of a regular file, or of that to which a link leads. Nothing is opened.

    OSError for any other kind of file, and for more than ``most`` bytes.
    """
    found = os.stat(path)  # noqa: PTH116 - as fast as can be
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "a special file")
        raise OSError(errno.EINVAL, f"it is {kind}, not a regular file", str(path))
    if most is not None and found.st_size > most:
        raise OSError(errno.EFBIG, f"it has {found.st_size:,} bytes, the limit is {most:,}", str(path))
    return found.st_size


def open_regular(path: str | Path, most: int | None = None, **text: Any) -> IO[Any]:
    """A regular file of at most ``most`` bytes, to be read: as bytes, or as text where ``text`` says how. OSError."""
    regular_size(path, most)
    return Path(path).open("r" if text else "rb", **text)


def read_regular(path: str | Path, most: int) -> bytes:
    """The bytes of a regular file, at most ``most``, which is less than 2 GiB: more no system call gives. OSError."""
    size = regular_size(path, most)
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - images are many, and a Path's takes twice the time
        return file.read(size)


def sync_directory(path: Path) -> None:
    """Flush a directory's entries to the disk: a new name survives a power cut only after this."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cache_directory() -> Path:
    """What is made or fetched once for all runs of a user."""
    users = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "megaclass"
    return Path(os.environ.get("MEGACLASS_CACHE") or users)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Within the block this process alone has the lock file at ``path``; it waits for its turn. OSError."""
    with path.open("a") as lock:  # its end, or the process's, gives the lock back
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def whole_file(option: str, path: Path) -> Iterator[Path]:
    """Yields a path of the same name in a hidden directory, for a file or a directory. When the block ends well, all
    that was written there moves beside ``path``, and it last; else nothing is left.

    UserError, naming the ``option``, for what the system does not let through, and for a file beside it that exists.
    """
    hidden = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        # What a killed process left: in a container the next one has the same number.
        shutil.rmtree(hidden, ignore_errors=True)
        hidden.mkdir()
        yield hidden / path.name
        made = {path.with_name(part.name): part for part in sorted(hidden.iterdir()) if part.name != path.name}
        for beside in made:
            if beside.exists():
                raise UserError(f"{option}: {beside} exists; name another file")
        for there, part in [*made.items(), (path, hidden / path.name)]:
            part.replace(there)
    except OSError as error:
        why = f"{error.strerror or error}; {make_room(error)}"
        raise UserError(f"{option}: {path} cannot be written: {why}name another file") from None
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
