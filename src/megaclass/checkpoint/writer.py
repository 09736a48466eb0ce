"""Saving: every rank writes its rows, rank 0 the rest, and the checkpoint appears in one step at the end."""

import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from megaclass.checkpoint import directory, manifest, tensorfile, tree
from megaclass.checkpoint.manifest import Manifest, ShardedEntry
from megaclass.checkpoint.tensorfile import FileEntry
from megaclass.errors import UserError
from megaclass.parallel import groups

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


# What one rank wrote, as rank 0 needs it for the manifest: its files, and the tensors whose rows they hold.
_Written = tuple[dict[str, FileEntry], dict[str, ShardedEntry]]


def save(
    root: Path,
    step: int,
    *,
    state: Mapping[str, Any],
    sharded: Mapping[str, Sharded],
    identity: Mapping[str, Any],
    keep_last: int,
    metric: float | None = None,
) -> Path:
    """Write ``root/step-NNNNNNNN`` and delete checkpoints that are no longer wanted. Called by all ranks.

    root: a directory that all ranks see; made if missing.
    state: nested dicts, lists and tuples of tensors and scalars. Rank 0's is stored: what differs between
        ranks (random state) is gathered by the caller into a list.
    sharded: name -> this rank's rows. All tensors of one rank have the same row range; a rank may have none.
    identity: JSON scalars by which :func:`megaclass.checkpoint.load` recognises the model.
    keep_last: 1 or more.
    metric: higher is better; the best so far is kept too. Not-a-number counts as None.

    The new checkpoint appears whole or not at all: a kill or a power cut at any moment leaves the earlier
    ones as they were. An error on one rank is raised on all: UserError for what the disk refuses.
    """
    root = Path(root)
    final = root / f"step-{step:08d}"
    temporary = root / f".tmp-{final.name}"
    is_main = groups.rank() == 0

    def prepare() -> None:
        if is_main:
            root.mkdir(parents=True, exist_ok=True)
            for unfinished in root.glob(".tmp-*"):  # what a killed save or deletion left
                shutil.rmtree(unfinished, ignore_errors=True)
            temporary.mkdir()

    def write() -> tuple[_Written, Any]:
        written = _write_rows(temporary, sharded)
        if not is_main:
            return written, None
        skeleton, tensors = tree.flatten(state)
        written[0][manifest.REPLICATED] = tensorfile.write_tensors(temporary / manifest.REPLICATED, tensors)
        return written, skeleton

    def publish() -> None:
        if is_main:
            score = float(metric) if metric is not None and math.isfinite(metric) else None
            whole = Manifest(step, len(parts), score, dict(identity), skeleton, *_joined(temporary, parts))
            manifest.write(temporary, whole)
            directory.sync_directory(temporary)
            directory.publish(temporary, final)
            directory.prune(root, keep_last=keep_last, saved=final)

    try:
        _together(prepare, final)
        written, skeleton = _together(write, final)
        parts = groups.gather_objects(written)
        _together(publish, final)
    except Exception:
        if is_main:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    return final


def _together(work: Callable[[], T], final: Path) -> T:
    """Do ``work`` on every rank; if it fails on any, raise on all, so that none waits for another."""

    def told() -> T:
        try:
            return work()
        except OSError as failure:
            raise UserError(
                f"cannot write checkpoint {final}: {failure.strerror or failure}; make room or permit writing "
                "there, or choose another run directory; earlier checkpoints are untouched"
            ) from failure

    return groups.together(told)


def _write_rows(temporary: Path, sharded: Mapping[str, Sharded]) -> _Written:
    table = {
        name: ShardedEntry(part.tensor.dtype, (part.total, *part.tensor.shape[1:]))
        for name, part in sharded.items()
    }
    files: dict[str, FileEntry] = {}
    row_bytes = sum(part.tensor[:1].numel() * part.tensor.element_size() for part in sharded.values())
    rows_per_file = max(1, MAX_SHARD_BYTES // max(1, row_bytes))
    for start, stop in {(part.start, part.start + len(part.tensor)) for part in sharded.values()}:
        for first in range(start, stop, rows_per_file):
            last = min(first + rows_per_file, stop)
            name = manifest.shard_name(first, last)
            rows = {key: part.tensor[first - start : last - start] for key, part in sharded.items()}
            files[name] = tensorfile.write_tensors(temporary / name, rows)
    directory.sync_directory(temporary)
    return files, table


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
