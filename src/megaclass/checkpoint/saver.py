"""Saving: every rank writes its rows, rank 0 the rest, and the checkpoint appears in one step at the end.

Beside the training where there is memory for it: training stops while the tensors are copied, and a thread of each
rank writes the copies. Its collectives go over a group of their own.
"""

import math
import platform
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from megaclass.checkpoint import directory, manifest, tensorfile, tree
from megaclass.checkpoint.manifest import Manifest, ShardedEntry
from megaclass.checkpoint.tensorfile import FileEntry
from megaclass.errors import UserError, in_bytes
from megaclass.files import sync_directory
from megaclass.parallel import groups
from megaclass.results.machine import available_memory

# Small enough that a rank at another world size checks little more than the rows it takes, large enough that
# 100 M classes are some hundreds of files.
MAX_SHARD_BYTES = 1 << 30

T = TypeVar("T")


@dataclass(frozen=True)
class Sharded:
    """This rank's rows ``[start, start + len(tensor))`` of a tensor of ``total`` rows over all ranks."""

    tensor: Tensor
    start: int
    total: int


@dataclass(frozen=True)
class Saved:
    """A save that has ended, alike on every rank but for the times."""

    step: int
    path: Path
    error: str | None  # one line: what the disk refused, or that it was given up; earlier ones are untouched
    stall_s: float  # how long training stood still for it
    seconds: float  # from the beginning to the last byte on the disk
    bytes: int  # of all ranks


class Saver:
    """Saves checkpoints into ``root``, a directory that all ranks see, made if missing. Every rank makes one.

    keep_last: 1 or more. keep_every: also the first checkpoint at or after each multiple of so many steps stays for
    good; 0: none. The one with the best metric stays in any case.
    beside: copy all tensors, and write the copies in a thread; else training waits until all is written.

    A checkpoint appears whole or not at all: a kill or a power cut at any moment leaves the earlier ones as they were.
    A thread that is still writing must be waited for before the process group ends.
    """

    def __init__(self, root: Path, *, keep_last: int, keep_every: int, beside: bool) -> None:
        self._root, self._beside = Path(root), beside
        self._prune = lambda saved: directory.prune(self._root, keep_last=keep_last, keep_every=keep_every, saved=saved)
        self._group = groups.new_side_group() if beside else None
        self._writing: _Writing | None = None
        self._ended: deque[Saved] = deque()
        if groups.rank() == 0:
            directory.tidy(self._root)

    def save(
        self,
        step: int,
        *,
        state: Mapping[str, Any],
        sharded: Mapping[str, Sharded],
        identity: Mapping[str, Any],
        metric: float | None = None,
    ) -> str:
        """Begin to write ``root/step-NNNNNNNN``, once the save before has ended. Every rank calls.

        Returns why it was not written beside the training, where that was wanted; else an empty text.

        state: nested dicts, lists and tuples of tensors and scalars. Rank 0's is stored: what differs between
            ranks (random state) is gathered by the caller into a list.
        sharded: name -> this rank's rows. All tensors of one rank have the same row range; a rank may have none.
        identity: JSON scalars by which :func:`megaclass.checkpoint.load` recognises the model.
        metric: higher is better. Not-a-number counts as None.

        An error that is none of the disk's (what cannot be stored, a lost rank) is raised here or by ``wait``, on
        every rank.
        """
        began = time.perf_counter()
        self._end()
        content = groups.together(lambda: _Content.of(state, sharded), self._group)
        demands = groups.gather_objects((platform.node(), content.bytes, available_memory()), self._group)
        warning = _lack_of_memory(demands) if self._beside else ""
        beside = self._beside and not warning
        if beside:
            content = groups.together(content.copied, self._group)
        score = float(metric) if metric is not None and math.isfinite(metric) else None
        # Files and tensors are known when they are written.
        draft = Manifest(step, groups.world_size(), score, dict(identity), content.skeleton, {}, {})
        size = sum(needed for _, needed, _ in demands)
        writing = _Writing(self._root, content, draft, size, self._prune, self._group, began)
        if beside:
            self._writing = writing
            writing.start()
        else:
            writing.run()
        writing.stall_s = time.perf_counter() - began
        if not beside:
            self._take(writing)
        return warning

    def done(self) -> Saved | None:
        """A save that has ended and was not told yet, at once. Another rank may see the end some moments later; so what
        is raised waits for ``wait`` or the next save, to which all ranks come."""
        if self._writing and not self._writing.is_alive() and not self._writing.failure:
            self._end()
        return self._ended.popleft() if self._ended else None

    def wait(self) -> Saved | None:
        """The same, once nothing is being written."""
        self._end()
        return self._ended.popleft() if self._ended else None

    def _end(self) -> None:
        if self._writing:
            self._writing.join()
            writing, self._writing = self._writing, None
            self._take(writing)

    def _take(self, writing: "_Writing") -> None:
        if writing.failure:
            raise writing.failure
        path, error = writing.final, writing.error
        self._ended.append(Saved(writing.draft.step, path, error, writing.stall_s, writing.seconds, writing.bytes))


# -- what is written ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Content:
    """What one rank writes: the state's skeleton on rank 0, the sharded tensors as all ranks have them together, and
    the tensors of each file by its name."""

    skeleton: Any
    sharded: dict[str, ShardedEntry]
    files: dict[str, dict[str, Tensor]]

    @staticmethod
    def of(state: Mapping[str, Any], sharded: Mapping[str, Sharded]) -> "_Content":
        parts = {name: part.tensor.detach() for name, part in sharded.items()}
        table = {name: ShardedEntry(rows.dtype, (sharded[name].total, *rows.shape[1:])) for name, rows in parts.items()}
        row_bytes = sum(rows[:1].numel() * rows.element_size() for rows in parts.values())
        rows_per_file = max(1, MAX_SHARD_BYTES // max(1, row_bytes))
        files: dict[str, dict[str, Tensor]] = {}
        for start, stop in {(part.start, part.start + len(part.tensor)) for part in sharded.values()}:
            for first in range(start, stop, rows_per_file):
                last = min(first + rows_per_file, stop)
                tensors = {name: rows[first - start : last - start] for name, rows in parts.items()}
                files[manifest.shard_name(first, last)] = tensors
        skeleton = None
        if groups.rank() == 0:
            skeleton, files[manifest.REPLICATED] = tree.flatten(state)
        return _Content(skeleton, table, files)

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensors in self.files.values() for tensor in tensors.values())

    def copied(self) -> "_Content":
        """The same in memory of its own, on the CPU. Not pinned: PyTorch would keep that for itself after the save."""
        files = {
            file: {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
            for file, tensors in self.files.items()
        }
        return replace(self, files=files)


def _lack_of_memory(demands: list[tuple[str, int, int]]) -> str:
    """Why the copies of all ranks (host, bytes, bytes free there) do not fit, or ``""``."""
    for host in {host for host, _, _ in demands}:
        needed = sum(size for name, size, _ in demands if name == host)
        free = min(free for name, _, free in demands if name == host)
        if needed > 0.9 * free:
            return (
                f"training waits until the checkpoint is written: a copy needs {in_bytes(needed)} of memory on {host}, "
                f"{in_bytes(free)} are free"
            )
    return ""


# -- writing --------------------------------------------------------------------------------------------


class _RefusedError(Exception):
    """The save ends on all ranks, and the run goes on."""


# What one rank wrote, as rank 0 needs it for the manifest: its files, and the tensors whose rows they hold.
_Written = tuple[dict[str, FileEntry], dict[str, ShardedEntry]]


class _Writing(threading.Thread):
    """One save from its content to its name, in a thread if it is started, or where ``run`` is called."""

    def __init__(
        self,
        root: Path,
        content: _Content,
        draft: Manifest,
        size: int,
        prune: Callable[[Path], None],
        group: Any,
        began: float,
    ) -> None:
        # A daemon: an interpreter that ends does not wait for ranks which may be gone.
        super().__init__(name="checkpoint", daemon=True)
        self.draft, self.bytes, self.final = draft, size, root / f"step-{draft.step:08d}"
        self.stall_s = self.seconds = 0.0
        self.error: str | None = None
        self.failure: Exception | None = None
        self._root, self._temporary = root, root / f".tmp-{self.final.name}"
        self._content, self._prune, self._group, self._began = content, prune, group, began
        self._is_main = groups.rank() == 0

    def run(self) -> None:
        try:
            self._on_all(self._prepare)
            parts = self._on_all(self._write)
            self._on_all(lambda: self._publish(parts))
        except Exception as failure:
            if isinstance(failure, _RefusedError):
                self.error = f"cannot write checkpoint {self.final}: {failure}; earlier checkpoints are untouched"
            else:
                self.failure = failure  # for the thread that trains
            if self._is_main:
                shutil.rmtree(self._temporary, ignore_errors=True)
        self._content.files.clear()
        self.seconds = time.perf_counter() - self._began

    def _on_all(self, work: Callable[[], T]) -> list[T]:
        """``work()`` on every rank; the results of all. What the system refuses on one is raised on all."""

        def told() -> tuple[Any, str]:
            try:
                return work(), ""
            except OSError as error:
                advice = "make room or permit writing there, or choose another run directory"
                return None, f"{error.strerror or error}; {advice}"
            except _RefusedError as refusal:
                return None, str(refusal)

        outcomes = groups.gather_objects(groups.together(told, self._group), self._group)
        for _, reason in outcomes:
            if reason:
                raise _RefusedError(reason)
        return [result for result, _ in outcomes]

    def _prepare(self) -> None:
        if not self._is_main:
            return
        self._root.mkdir(parents=True, exist_ok=True)
        directory.tidy(self._root)
        disk = shutil.disk_usage(self._root)
        if self.bytes > disk.free and disk.total:  # some network file systems do not know
            raise _RefusedError(f"needs {in_bytes(self.bytes)}, {in_bytes(disk.free)} are free; make room there")
        self._temporary.mkdir()

    def _write(self) -> _Written:
        files: dict[str, FileEntry] = {}
        for name in list(self._content.files):
            # Let go of as soon as it is written: the copies shrink file by file.
            tensors = self._content.files.pop(name)
            files[name] = tensorfile.write_tensors(self._temporary / name, tensors)
        sync_directory(self._temporary)
        return files, self._content.sharded

    def _publish(self, parts: list[_Written]) -> None:
        if self._is_main:
            files, sharded = _joined(self._temporary, parts)
            manifest.write(self._temporary, replace(self.draft, files=files, sharded=sharded))
            sync_directory(self._temporary)
            directory.publish(self._temporary, self.final)
            self._prune(self.final)


def _joined(temporary: Path, parts: list[_Written]) -> _Written:
    """What the ranks wrote, together."""
    _, sharded = parts[0]
    for rank, (_, theirs) in enumerate(parts):
        if theirs != sharded:
            raise ValueError(f"rank {rank} saves rows of {theirs}, rank 0 of {sharded}")
    files = {name: entry for written, _ in parts for name, entry in written.items()}
    for name, entry in files.items():
        if not (temporary / name).is_file() or (temporary / name).stat().st_size != entry.bytes:
            raise UserError(
                f"{temporary / name}: written by one rank, but rank 0 does not see it; "
                "choose a run directory on a file system that all machines share"
            )
    return files, sharded
