"""Loading: by any number of ranks, each of which reads the rows that it asks for."""

import contextlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megaclass.checkpoint import manifest, tensorfile, tree
from megaclass.checkpoint.manifest import Manifest, blaming
from megaclass.errors import UserError, lookup
from megaclass.results.machine import usable_cores


class Checkpoint:
    """An opened checkpoint. Its replicated state is in memory, its rows are read when asked for.

    state: what was given to :meth:`megaclass.checkpoint.Saver.save`, tensors on the CPU.
    sharded: name -> dtype and global shape.
    step, world_size, metric, identity: as saved.
    """

    def __init__(self, path: Path, contents: Manifest, state: Any, verified: bool) -> None:
        self.path, self.state = path, state
        self.step, self.world_size, self.metric = contents.step, contents.world_size, contents.metric
        self.identity, self.sharded = contents.identity, contents.sharded
        self._files, self._shards = contents.files, contents.shards()
        self._checked = set(contents.files) if verified else set()

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows ``[start, stop)`` of a sharded tensor, all by default, assembled from the shard files, on the CPU.

        Each file that is touched is checked against its CRC32 once. UserError for an unknown name or
        damage, ValueError for rows outside the tensor.
        """
        dtype, (total, *columns) = lookup(self.sharded, name, "sharded tensor")
        stop = total if stop is None else stop
        if not 0 <= start <= stop <= total:
            raise ValueError(f"rows [{start}, {stop}) of {name!r}, which has {total}")
        needed = [shard for shard in self._shards if shard.start < stop and start < shard.stop]
        # All headers first: what the manifest claims is not allocated before the files bear it out.
        for shard in needed:
            with blaming(self.path, shard.name) as file:
                tensorfile.check_rows(file, name, dtype, (shard.stop - shard.start, *columns))
        result = torch.empty((stop - start, *columns), dtype=dtype)
        for shard in needed:
            first, last = max(start, shard.start), min(stop, shard.stop)
            with blaming(self.path, shard.name) as file:
                if shard.name not in self._checked:
                    tensorfile.check_crc32(file, self._files[shard.name])
                    self._checked.add(shard.name)
                target = result[first - start : last - start]
                tensorfile.copy_rows(file, name, first - shard.start, last - shard.start, target)
        return result


def load(path: Path, *, identity: Mapping[str, Any] | None = None, verified: bool = False) -> Checkpoint:
    """Open a checkpoint that any number of ranks wrote.

    Each rank calls this, and ``rows``, on its own. Damage may show on one rank only, so a caller of several
    ranks shares the outcome (``groups.together``).

    identity: what this run expects; keys that are not in it are not compared.
    verified: the files were compared with their checksums a moment ago, see :func:`verify`.

    Raises UserError, naming the file and the remedy, where the path is no checkpoint, a file is missing,
    damaged or malformed, or the checkpoint is of another model.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path} is not a checkpoint directory; give the path of a step-NNNNNNNN directory")
    contents = _contents(path)
    found = contents.identity
    differing = [
        f"{key} is {repr(found[key]) if key in found else 'absent'} there and {value!r} in this run"
        for key, value in (identity or {}).items()
        if key not in found or found[key] != value
    ]
    if differing:
        raise UserError(
            f"{path} is a checkpoint of another model: {'; '.join(differing)}; "
            "restore these settings, or choose another run directory"
        )
    with blaming(path, manifest.REPLICATED) as file:
        if not verified:
            tensorfile.check_crc32(file, contents.files[manifest.REPLICATED])
        tensors = tensorfile.read_tensors(file)
    with blaming(path, manifest.NAME):
        return Checkpoint(path, contents, tree.unflatten(contents.state, tensors), verified)


def verify(path: Path) -> None:
    """Compare every file of a checkpoint with its size and its checksum. UserError for the first that differs."""
    path = Path(path)
    contents = _contents(path)

    def check(name: str) -> None:
        with blaming(path, name) as file:
            tensorfile.check_crc32(file, contents.files[name])

    with ThreadPoolExecutor(min(8, usable_cores())) as pool:  # zlib lets other threads run
        list(pool.map(check, contents.files))


def _contents(path: Path) -> Manifest:
    """The manifest, whose files are there in their sizes."""
    contents = manifest.read(path)
    for name, entry in contents.files.items():
        with blaming(path, name) as file:
            tensorfile.check_size(file, entry.bytes)
    return contents


@contextlib.contextmanager
def expecting(otherwise: str) -> Iterator[None]:
    """A part of a checkpoint that is missing or of another type becomes a UserError that begins with ``otherwise``."""
    try:
        yield
    except (UserError, torch.OutOfMemoryError):
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{otherwise} ({type(error).__name__}: {reason})") from None
