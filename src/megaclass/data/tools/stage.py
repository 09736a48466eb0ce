"""Copy a data set to a local disk before training, as jobs on a cluster do.

A file is copied in blocks, by several threads. Each block is forced to the disk, read back from there and
compared by checksum with what was read from the source; then a line in a journal says that it is done. So a copy
that was broken off goes on where it stopped, and what is whole is not copied again. Processes that stage the
same set at once take turns: the first one copies, the others find it done.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

from megaclass.data.open import check_paths, record_file, split_paths
from megaclass.data.records.reader import side_file
from megaclass.data.threads import in_order
from megaclass.errors import UserError

# Hidden, so that an image folder does not hold them.
JOURNAL, LOCK, PARTS = ".stage.jsonl", ".stage.lock", ".stage.parts"
BLOCK_BYTES = 16 << 20
# Enough for a network file system, where each read waits, and few enough for a disk that seeks.
_COPIES = 8


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


class _Block(NamedTuple):
    file: _File
    start: int
    size: int
    there: bool  # a file of that name is there: it is compared, not written


def stage(
    path: str | Path,
    directory: str | Path,
    *,
    verify: bool = False,
    progress: Callable[[int, int], None] | None = None,
    waiting: Callable[[Path], None] | None = None,
) -> list[Staged]:
    """Copy the set under ``path``, or several (see ``open_dataset``), each to a directory of its name in ``directory``.

    Of a record set its four files are copied, of an image folder all files that are not hidden, with what links
    lead to.

    - ``verify``: compare what is there with the source byte for byte. Without it size and time of change tell
      whether a file that was staged before is still the same.
    - ``progress``: called with (bytes done, bytes in all) of each set.
    - ``waiting``: called with the directory of a set that another process is staging, before this one waits.

    Raises UserError where there is no set or no room, for a file that changed meanwhile, and for a file that is there
    and differs: nothing is overwritten. Copied blocks stay, for the next call.
    """
    sources = split_paths(path)
    check_paths(sources)
    roots = {_root(source).resolve() for source in sources}
    if len({root.name for root in roots}) < len(roots):
        raise UserError(
            f"{path}: two of the directories have the same name; stage them one by one into directories of their own"
        )
    return [
        _stage_one(
            source, Path(directory), verify, progress or (lambda *_: None), waiting or (lambda _: None)
        )
        for source in sources
    ]


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
    with _alone(target, waiting):
        names = _names(root, rec)
        if others := sorted(
            {*_names(target, rec), *_directories(target, rec)} - {*names, *_directories(root, rec)}
        ):
            raise UserError(
                f"{target / others[0]} is there, but not in {root}: another set? "
                "Remove it or name another directory"
            )
        files = [_stat(root, name) for name in names]
        copy = _Copy(root, target, files, verify)
        copy.check_room()
        started = time.perf_counter()
        total, done = sum(file.size for file in files), copy.kept_bytes
        progress(done, total)
        with contextlib.closing(copy), _failures(target):
            for size in in_order(copy, copy.blocks, _COPIES):
                done += size
                progress(done, total)
        seconds = time.perf_counter() - started
    path = target / rec.name if rec is not None and rec.stem != "train" else target
    return Staged(path, len(files), copy.copied_bytes, total - copy.copied_bytes, seconds)


class _Copy:
    """The blocks that are left to do, and how one is done (in any thread)."""

    def __init__(self, root: Path, target: Path, files: list[_File], verify: bool) -> None:
        self.root, self.target = root, target
        self._lock = threading.Lock()
        self._journal: IO[str] | None = None
        self.copied_bytes = 0
        noted = _read_journal(target / JOURNAL)
        self.blocks: list[_Block] = []
        self._left: Counter[str] = Counter()  # blocks of each file
        with _failures(target):
            for file in files:
                self._plan(file, noted.get(file, set()), verify)
            self._remove_parts_of_other_times(files)
        self.kept_bytes = sum(file.size for file in files) - sum(block.size for block in self.blocks)

    def _plan(self, file: _File, noted: set[int], verify: bool) -> None:
        path, part = self.target / file.name, self._part(file)
        there, done = path.exists(), noted
        if there:
            found = path.stat()
            if found.st_size != file.size:
                raise _differs(path, self.root / file.name)
            if found.st_mtime_ns != file.mtime_ns:
                done = set()  # whoever touched it: the bytes decide
        elif not part.exists() or part.stat().st_size != file.size:
            done = set()
            if noted:
                self._note(file, None)  # else these lines would count for the part that is begun anew
        # An empty file has a block too, which makes it.
        whole = range(0, max(file.size, 1), BLOCK_BYTES)
        starts = [start for start in whole if verify or start not in done]
        if not starts and not there:
            starts = [0]  # all was copied, but not renamed
        self.blocks += [_Block(file, start, min(BLOCK_BYTES, file.size - start), there) for start in starts]
        self._left[file.name] = len(starts)

    def _remove_parts_of_other_times(self, files: list[_File]) -> None:
        """What was begun while a file of the source was another one is of no use, and takes room."""
        parts = self.target / PARTS
        if parts.is_dir():
            wanted = {self._part(file).name for file in files}
            prefixes = {name.partition("-")[0] for name in wanted}
            for part in parts.iterdir():
                if part.name not in wanted and part.name.partition("-")[0] in prefixes:
                    part.unlink()

    def check_room(self) -> None:
        needed = sum(block.size for block in self.blocks if not block.there)
        free = shutil.disk_usage(self.target).free
        if needed > free:
            raise UserError(
                f"{self.target}: {_amount(needed)} are left to copy, but {_amount(free)} are free; "
                "make room or name another directory"
            )

    def __call__(self, block: _Block) -> int:
        file = block.file
        path = self.target / file.name if block.there else self._part(file)
        source = self.root / file.name
        with source.open("rb", buffering=0) as opened:
            data = _read(opened.fileno(), block)
        if len(data) < block.size or _stat(self.root, file.name) != file:
            raise UserError(f"{source} changed while it was copied; start again once it stays as it is")
        if not block.there:
            self._write(path, block, data)
        with path.open("rb", buffering=0) as opened:
            with contextlib.suppress(AttributeError):  # not every system can forget what it has in memory
                os.posix_fadvise(opened.fileno(), block.start, block.size, os.POSIX_FADV_DONTNEED)
            back = _read(opened.fileno(), block)
        if hashlib.sha256(back).digest() != hashlib.sha256(data).digest():
            if block.there:
                raise _differs(path, source)
            raise UserError(
                f"{path}: the disk gives back other bytes from byte {block.start} on than were written; "
                "use another disk"
            )
        self._finish(block, path)
        return block.size

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()
        with contextlib.suppress(OSError):  # it holds what was not finished
            (self.target / PARTS).rmdir()

    def _write(self, path: Path, block: _Block, data: bytes) -> None:
        path.parent.mkdir(exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            if os.fstat(descriptor).st_size != block.file.size:
                os.ftruncate(descriptor, block.file.size)
            view, at = memoryview(data), block.start
            while view:
                written = os.pwrite(descriptor, view, at)
                view, at = view[written:], at + written
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _finish(self, block: _Block, path: Path) -> None:
        """Note the block; the last one of a file gives it its name."""
        file = block.file
        with self._lock:
            self._note(file, block.start)
            self.copied_bytes += 0 if block.there else block.size
            self._left[file.name] -= 1
            if self._left[file.name] == 0:
                os.utime(path, ns=(file.mtime_ns, file.mtime_ns))
                named = self.target / file.name
                named.parent.mkdir(parents=True, exist_ok=True)
                path.replace(named)

    def _note(self, file: _File, start: int | None) -> None:
        """Add to the journal that a block is done, or (None) that those noted so far no longer are."""
        if self._journal is None:
            self._journal = (self.target / JOURNAL).open("a", encoding="utf-8")
            self._journal.write("\n")  # a crash may have left half a line
        self._journal.write(json.dumps([*file, start]) + "\n")
        self._journal.flush()
        if start is None:  # it must be on the disk before the part is; else the order does no harm
            os.fsync(self._journal.fileno())

    def _part(self, file: _File) -> Path:
        """Of this file at this time: what was copied before the source changed is another part."""
        # A name may have as many bytes as a file system allows, and so no room for more.
        name = hashlib.blake2b(os.fsencode(file.name), digest_size=16).hexdigest()
        return self.target / PARTS / f"{name}-{file.size}-{file.mtime_ns}"


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


def _names(root: Path, rec: Path | None) -> list[str]:
    """The files in ``root`` that belong to a set, relative to it: to the record set ``rec``, or to a folder."""
    if rec is None:
        return sorted(_walk(root))
    files = (rec, rec.with_suffix(".idx"), side_file(rec, "property"), side_file(rec, "classes.txt"))
    return [file.name for file in files if (root / file.name).is_file()]


def _directories(root: Path, rec: Path | None) -> list[str]:
    """The directories in ``root`` of a record set: none is of the set, and they may be the classes of another."""
    if rec is None:
        return []
    return [entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")]


def _walk(root: Path) -> Iterator[str]:
    """The files below ``root`` that are not hidden; links are followed, but not in circles."""
    seen = set()
    for directory, subdirectories, files in os.walk(root, followlinks=True):
        seen.add(os.path.realpath(directory))
        subdirectories[:] = sorted(
            name
            for name in subdirectories
            if not name.startswith(".") and os.path.realpath(f"{directory}/{name}") not in seen
        )
        for name in files:
            path = Path(directory, name)
            if not name.startswith(".") and path.is_file():  # no pipe, and no link to nothing
                yield str(path.relative_to(root))


def _stat(root: Path, name: str) -> _File:
    try:
        found = (root / name).stat()
    except OSError as error:
        raise UserError(f"{root / name} cannot be read: {error.strerror}; mend that and try again") from None
    return _File(name, found.st_size, found.st_mtime_ns)


def _read(descriptor: int, block: _Block) -> bytes:
    data = b""
    while len(data) < block.size and (
        more := os.pread(descriptor, block.size - len(data), block.start + len(data))
    ):
        data = data + more if data else more
    return data


def _read_journal(path: Path) -> dict[_File, set[int]]:
    """The starts of the blocks that are done, by file. Lines that a crash cut short are left out."""
    done: dict[_File, set[int]] = {}
    if path.is_file():
        with path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                with contextlib.suppress(ValueError, TypeError):
                    name, size, mtime_ns, start = json.loads(line)
                    if start is None:
                        done.pop(_File(name, size, mtime_ns), None)
                    else:
                        done.setdefault(_File(name, size, mtime_ns), set()).add(start)
    return done


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
