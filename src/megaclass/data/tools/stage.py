"""Copy a data set to a local disk before training, as jobs on a cluster do.

Each file is copied under a hidden name, forced to the disk, read back from there and compared by checksum with what
was read from the source; then it gets its name. So a copy that was broken off goes on with the files that are
wanting. Processes that stage the same set at once take turns: the first one copies, the others find it done.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

from megaclass.data.folder import FolderDataset
from megaclass.data.open import check_paths, record_file, split_paths
from megaclass.data.records.reader import side_file
from megaclass.data.threads import in_order
from megaclass.errors import UserError

# Hidden, so that an image folder does not hold them.
LOCK, PARTS = ".stage.lock", ".stage.parts"
_CHUNK_BYTES = 16 << 20
_COPIES = 8  # files at once: on a network file system each read waits


@dataclass(frozen=True)
class Staged:
    """A set on the local disk. ``path`` is what to train on; bytes are those copied by this call, and those
    that were there already."""

    path: Path
    files: int
    copied_bytes: int
    kept_bytes: int
    seconds: float  # of the copying, with its verification

    @property
    def megabytes_per_second(self) -> float:
        return self.copied_bytes / 1e6 / self.seconds


class _File(NamedTuple):
    """A file of the source as it is now."""

    name: str  # relative to the source
    size: int
    mtime_ns: int


def stage(
    path: str | Path,
    directory: str | Path,
    *,
    verify: bool = False,
    progress: Callable[[int, int], None] | None = None,
    waiting: Callable[[Path], None] | None = None,
) -> list[Staged]:
    """Copy the set under ``path``, or several (see ``open_dataset``), each to a directory of its name in ``directory``.

    Of a record set its four files are copied, of an image folder the images.

    - ``verify``: compare what is there with the source byte for byte. Without it size and time of change tell
      whether a file that was staged before is still the same.
    - ``progress``: called with (bytes done, bytes in all) of each set, from several threads in turn.
    - ``waiting``: called with the directory of a set that another process is staging, before this one waits.

    Raises UserError where there is no set or no room, for a file that changed meanwhile, and for a file that is there
    and differs: nothing is overwritten. Files that were copied stay, for the next call.
    """
    sources = split_paths(path)
    check_paths(sources)
    roots = {_root(source).resolve() for source in sources}
    if len({root.name for root in roots}) < len(roots):
        raise UserError(
            f"{path}: two of the directories have the same name; stage them one by one into directories of their own"
        )
    tell, wait = progress or (lambda *_: None), waiting or (lambda _: None)
    return [_stage_one(source, Path(directory), verify, tell, wait) for source in sources]


def _stage_one(
    source: Path,
    directory: Path,
    verify: bool,
    progress: Callable[[int, int], None],
    waiting: Callable[[Path], None],
) -> Staged:
    root, rec = _root(source), record_file(source)
    target = directory / root.resolve().name
    if target.resolve().is_relative_to(root.resolve()):
        raise UserError(f"{target} lies within {root}, which is staged; name a directory elsewhere")
    with _failures(target):
        target.mkdir(parents=True, exist_ok=True)
    with _alone(target, waiting), _failures(target):
        if others := sorted(_visible(target) - _visible(root)):
            raise UserError(
                f"{target / others[0]} is there, but not in {root}: another set? "
                "Remove it or name another directory"
            )
        names = _record_files(rec) if rec else _images(root, target)
        copy = _Copy(root, target, [_stat(root, name) for name in names], verify, progress)
        started = time.perf_counter()
        copy.run()
        seconds = time.perf_counter() - started
    path = target / rec.name if rec is not None and rec.stem != "train" else target
    return Staged(path, len(names), copy.copied_bytes, copy.total - copy.copied_bytes, seconds)


class _Copy:
    """The files that are left to do, and how one is done (in any thread)."""

    def __init__(
        self, root: Path, target: Path, files: list[_File], verify: bool, progress: Callable[[int, int], None]
    ) -> None:
        self._root, self._target, self._progress = root, target, progress
        self._lock = threading.Lock()
        self.total = sum(file.size for file in files)
        self._left = [file for file in files if verify or not self._is_kept(file)]
        self._done = self.total - sum(file.size for file in self._left)
        self.copied_bytes = 0
        needed = sum(file.size for file in self._left if not (target / file.name).exists())
        free = shutil.disk_usage(target).free
        if needed > free:
            raise UserError(
                f"{target}: {_amount(needed)} are left to copy, but {_amount(free)} are free; "
                "make room or name another directory"
            )

    def run(self) -> None:
        parts = self._target / PARTS
        shutil.rmtree(parts, ignore_errors=True)  # of a copy that was broken off
        parts.mkdir()
        self._progress(self._done, self.total)
        try:
            for _ in in_order(self._bring, enumerate(self._left), _COPIES):
                pass
        finally:
            shutil.rmtree(parts, ignore_errors=True)

    def _is_kept(self, file: _File) -> bool:
        """Whether the file is there, and size and time say that it is the same."""
        path = self._target / file.name
        if not path.exists():
            return False
        found = path.stat()
        if found.st_size != file.size:
            raise _differs(path, self._root / file.name)
        return found.st_mtime_ns == file.mtime_ns

    def _bring(self, numbered: tuple[int, _File]) -> None:
        """Copy a file, or compare the one that is there."""
        number, file = numbered
        source, path = self._root / file.name, self._target / file.name
        there = path.exists()
        part = path if there else self._target / PARTS / str(number)
        with contextlib.nullcontext() if there else part.open("wb") as output:
            digest = self._read(source, output)
            if output is not None:
                output.flush()
                os.fsync(output.fileno())
        if _stat(self._root, file.name) != file:
            raise UserError(f"{source} changed while it was copied; start again once it stays as it is")
        if self._read(part, None, forget=True) != digest:
            if there:
                raise _differs(path, source)
            raise UserError(f"{path}: the disk gives back other bytes than were written; use another disk")
        os.utime(part, ns=(file.mtime_ns, file.mtime_ns))
        if not there:
            path.parent.mkdir(parents=True, exist_ok=True)
            part.replace(path)
            with self._lock:
                self.copied_bytes += file.size

    def _read(self, path: Path, output: IO[bytes] | None, forget: bool = False) -> bytes:
        """The checksum of a file, which is copied to ``output``. ``forget``: read what the disk has, not memory."""
        total = hashlib.sha256()
        with path.open("rb", buffering=0) as file:
            if forget:
                with contextlib.suppress(AttributeError):  # not every system can forget what it has in memory
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while chunk := file.read(_CHUNK_BYTES):
                total.update(chunk)
                if output is not None:
                    output.write(chunk)
                if not forget:
                    with self._lock:
                        self._done += len(chunk)
                        self._progress(self._done, self.total)
        return total.digest()


def _root(source: Path) -> Path:
    """The directory with the files of the set. UserError where there is no set."""
    rec = record_file(source)
    if rec is not None and rec.is_file():
        return rec.parent
    if rec is not None or not source.is_dir():
        raise UserError(
            f"{rec or source}: no such file or directory; give a record set or a directory of class directories"
        )
    return source


def _record_files(rec: Path) -> list[str]:
    """The names of the files of a record set."""
    files = (rec, rec.with_suffix(".idx"), side_file(rec, "property"), side_file(rec, "classes.txt"))
    return [file.name for file in files if file.is_file()]


def _images(root: Path, target: Path) -> list[str]:
    """The images of a folder, relative to it. Classes without images keep their directories, and so their numbers."""
    folder = FolderDataset(root)
    for name in folder.classes:
        (target / name).mkdir(exist_ok=True)
    return [str(folder.path(index).relative_to(root)) for index in range(len(folder))]


def _visible(root: Path) -> set[str]:
    return {entry.name for entry in root.iterdir() if not entry.name.startswith(".")}


def _stat(root: Path, name: str) -> _File:
    try:
        found = (root / name).stat()
    except OSError as error:
        raise UserError(f"{root / name} cannot be read: {error.strerror}; mend that and try again") from None
    return _File(name, found.st_size, found.st_mtime_ns)


@contextlib.contextmanager
def _alone(target: Path, waiting: Callable[[Path], None]) -> Iterator[None]:
    """Be the only process that stages into ``target``; wait for one that does."""
    with _failures(target):
        lock = (target / LOCK).open("a")
    with lock:  # closing, or the end of the process, however it comes, gives the lock back
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting(target)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _failures(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        what = error.filename or target
        raise UserError(
            f"{what}: {error.strerror}; mend that, and start again to go on where it stopped"
        ) from None


def _amount(size: int) -> str:
    return f"{size / 1e9:,.2f} GB" if size >= 1e9 else f"{size / 1e6:,.2f} MB"


def _differs(path: Path, source: Path) -> UserError:
    return UserError(
        f"{path} is there and differs from {source}; it is not overwritten: remove it or name another directory"
    )
