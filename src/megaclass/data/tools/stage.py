"""Copy a data set to a local disk before training, as jobs on a cluster do.

Each file is copied under a hidden name beside its own, forced to the disk, read back from there and compared by
checksum with what was read from the source; then it gets its name. So a copy that was broken off goes on with the
files that are missing. Processes that stage the same set at once take turns: the first copies, the others find it done.
"""

import contextlib
import os
import shutil
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

from megaclass.data.folder import FolderDataset
from megaclass.data.open import check_paths, record_file, split_paths
from megaclass.data.records.reader import RecordDataset, side_file
from megaclass.data.shards import shard_files
from megaclass.data.threads import in_order
from megaclass.errors import UserError, in_bytes
from megaclass.files import locked, regular_size

_CHUNK_BYTES = 16 << 20
_COPIES = 8  # files at once: on a network file system each read waits


class Staged(NamedTuple):
    """A set on the local disk. ``path`` is what to train on; bytes are those copied by this call, and those
    that were there already."""

    path: Path
    files: int
    copied_bytes: int
    kept_bytes: int


def stage(path: str | Path, directory: Path, progress: Callable[[int, int], None]) -> list[Staged]:
    """Copy the set under ``path``, or several (see ``open_dataset``), each to a directory of its name in ``directory``.

    Of a record set its four files are copied, else the tars or the images. A file that is there with the size and
    the time of change of its source is kept. ``progress``: called with (bytes done, bytes in all) of each set, from
    several threads in turn.

    Raises UserError where there is no set or no room, for a file that changed meanwhile, and for a file that is there
    and differs: nothing is overwritten. Files that were copied stay, for the next call.
    """
    sources = split_paths(path)
    check_paths(sources)
    roots = {(rec.parent if (rec := record_file(source)) else source).resolve() for source in sources}
    if len({root.name for root in roots}) < len(roots):
        raise UserError(
            f"{path}: two of the sets have directories of one name; stage them into directories of their own"
        )
    return [_stage_one(source, directory, progress) for source in sources]


def _stage_one(source: Path, directory: Path, progress: Callable[[int, int], None]) -> Staged:
    root, names, classes = _files(source)
    target = directory / root.resolve().name
    if target.resolve().is_relative_to(root.resolve()):
        raise UserError(f"{target} lies within {root}, which is staged; name a directory elsewhere")
    with _alone(target):
        if others := sorted(_visible(target) - _visible(root)):
            raise UserError(
                f"{target / others[0]} is there, but not in {root}: another set? Remove it or name another directory"
            )
        for name in classes:
            (target / name).mkdir(exist_ok=True)
        sizes = {name: (root / name).stat().st_size for name in names}
        left = [name for name in names if not _is_kept(root / name, target / name)]
        total, new_bytes = sum(sizes.values()), sum(sizes[name] for name in left)
        free = shutil.disk_usage(target).free
        if new_bytes > free:
            raise UserError(
                f"{target}: {in_bytes(new_bytes)} are left to copy, but {in_bytes(free)} are free; "
                "make room or name another directory"
            )
        lock, done = threading.Lock(), total - new_bytes

        def tell(count: int) -> None:
            nonlocal done
            with lock:
                done += count
                progress(done, total)

        tell(0)
        for _ in in_order(lambda name: _copy(root / name, target / name, tell), left, _COPIES):
            pass
    named = source.suffix == ".tar" or (source.suffix == ".rec" and source.stem != "train")
    return Staged(target / source.name if named else target, len(names), new_bytes, total - new_bytes)


def _files(source: Path) -> tuple[Path, list[str], list[str]]:
    """The directory of a set, its files in there, and directories that it has even if they are empty: classes."""
    if record_file(source) is not None:
        rec = RecordDataset(source).path
        files = (rec, rec.with_suffix(".idx"), side_file(rec, "property"), side_file(rec, "classes.txt"))
        return rec.parent, [file.name for file in files if file.is_file()], []
    if shards := shard_files(source):
        return shards[0].parent, [shard.name for shard in shards], []
    folder = FolderDataset(source)
    names = [str(folder.path(index).relative_to(source)) for index in range(len(folder))]
    return source, names, folder.classes


def _copy(source: Path, target: Path, tell: Callable[[int], None]) -> None:
    before = source.stat()
    part = target.with_name(f".{target.name}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    try:
        with part.open("wb") as output:
            checksum = _checksum(source, tell, output)
        after = source.stat()
        if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            raise UserError(f"{source} changed while it was copied; start again once it stays as it is")
        if _checksum(part, lambda count: None) != checksum:
            raise UserError(f"{target}: the disk gives back other bytes than were written; use another disk")
        os.utime(part, ns=(before.st_mtime_ns, before.st_mtime_ns))
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _checksum(path: Path, tell: Callable[[int], None], output: IO[bytes] | None = None) -> tuple[int, int]:
    """Size and CRC of a file as the disk has it, which is copied to ``output``."""
    size = crc = 0
    regular_size(path)  # OSError
    with path.open("rb", buffering=0) as file:
        if hasattr(os, "posix_fadvise"):  # to forget what memory has of it
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while chunk := file.read(_CHUNK_BYTES):
            size, crc = size + len(chunk), zlib.crc32(chunk, crc)
            if output is not None:
                output.write(chunk)
            tell(len(chunk))
    if output is not None:
        output.flush()
        os.fsync(output.fileno())
    return size, crc


def _is_kept(source: Path, target: Path) -> bool:
    """Whether the file is there. UserError if it is another one, by size or time of change (in seconds: some file
    systems have no finer ones)."""
    if not target.exists():
        return False
    wanted, found = source.stat(), target.stat()
    if (found.st_size, int(found.st_mtime)) != (wanted.st_size, int(wanted.st_mtime)):
        raise UserError(
            f"{target} is there and differs from {source}; it is not overwritten: remove it or name another directory"
        )
    return True


def _visible(root: Path) -> set[str]:
    return {entry.name for entry in root.iterdir() if not entry.name.startswith(".")}


@contextlib.contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Be the only process that stages into ``target``; wait for one that does. What the system refuses: UserError."""
    try:
        target.mkdir(parents=True, exist_ok=True)
        with locked(target / ".stage.lock"):
            yield
    except OSError as error:
        raise UserError(
            f"{error.filename or target}: {error.strerror}; mend that, and start again to go on where it stopped"
        ) from None
