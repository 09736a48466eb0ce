"""``manifest.json``: read without trust.

It is written last, carries the CRC32 of its own content, and gives each file's size and CRC32. File names are
matched against the two patterns that :mod:`megaclass.checkpoint.writer` makes, so none leads out of the
directory; a shard's row range is part of its name.
"""

import contextlib
import json
import math
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megaclass.checkpoint import tensorfile
from megaclass.checkpoint.tensorfile import DTYPE_NAMES, DTYPES, DamageError, FileEntry
from megaclass.errors import UserError

NAME = "manifest.json"
REPLICATED = "replicated.safetensors"
FORMAT = "megaclass-checkpoint"
VERSION = 1
MAX_BYTES = 256 << 20

_SHARD = re.compile(r"shard-(\d{10,18})-(\d{10,18})\.safetensors")


@dataclass(frozen=True)
class ShardedEntry:
    """The dtype and global shape of a tensor whose rows lie in the shard files."""

    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Shard:
    """A file with rows ``[start, stop)`` of every sharded tensor."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True)
class Manifest:
    step: int
    world_size: int
    metric: float | None
    identity: dict[str, Any]
    state: Any  # the skeleton of tree.flatten
    files: dict[str, FileEntry]
    sharded: dict[str, ShardedEntry]

    def shards(self) -> list[Shard]:
        """The shard files by rising start. ValueError unless they hold each row exactly once."""
        shards = sorted((_shard(name) for name in self.files if name != REPLICATED), key=lambda s: s.start)
        end = 0
        for shard in shards:
            if shard.start != end or shard.stop <= shard.start:
                raise ValueError(f"row {end} is missing or stored twice: {shard.name} does not start there")
            end = shard.stop
        for name, entry in self.sharded.items():
            if entry.shape[0] != end:
                raise ValueError(f"tensor {name!r} has {entry.shape[0]} rows, but the files hold {end}")
        if shards and not self.sharded:
            raise ValueError("files with rows, but no sharded tensors")
        return shards


def shard_name(start: int, stop: int) -> str:
    return f"shard-{start:010d}-{stop:010d}.safetensors"


def _shard(name: str) -> Shard:
    match = _SHARD.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r:.80} is not the name of a checkpoint file")
    return Shard(name, int(match[1]), int(match[2]))


def write(directory: Path, manifest: Manifest) -> None:
    """Write ``manifest.json`` and flush it to the disk. Raises OSError."""
    content = {
        "format": FORMAT,
        "version": VERSION,
        "step": manifest.step,
        "world_size": manifest.world_size,
        "metric": manifest.metric,
        "identity": manifest.identity,
        "state": manifest.state,
        "files": {name: {"bytes": f.bytes, "crc32": f.crc32} for name, f in manifest.files.items()},
        "sharded": {
            name: {"dtype": DTYPE_NAMES[t.dtype], "shape": list(t.shape)}
            for name, t in manifest.sharded.items()
        },
    }
    text = json.dumps({**content, "crc32": _crc32(content)}, indent=1, allow_nan=False)
    tensorfile.write_bytes(directory / NAME, iter([text.encode()]))


def read(directory: Path) -> Manifest:
    """Read and check ``manifest.json``. UserError where it is missing, damaged or of another version."""
    path = directory / NAME
    try:
        if not path.exists():
            raise DamageError("is missing, so the checkpoint is not complete")
        size = path.stat().st_size
        tensorfile.check_size(path, FileEntry(size, 0))
        if size > MAX_BYTES:
            raise DamageError(f"has {size} bytes, more than any manifest")
        content = json.loads(path.read_bytes(), parse_constant=_refuse_constant)
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise DamageError("is not the manifest of a checkpoint")
        if content.pop("crc32") != _crc32(content):
            raise DamageError("does not match its checksum")
        if content["version"] != VERSION:
            raise UserError(
                f"{path}: format version {content['version']!r:.40}, but this release reads {VERSION}; "
                "use the release that wrote it"
            )
        return _parse(content)
    except UserError:
        raise
    except (DamageError, OSError) as error:
        raise damaged(directory, NAME, str(error)) from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise damaged(directory, NAME, f"is malformed ({type(error).__name__}: {error})") from None


def _parse(content: dict[str, Any]) -> Manifest:
    metric, identity = content["metric"], content["identity"]
    if metric is not None and not (isinstance(metric, float) and math.isfinite(metric)):
        raise ValueError(f"metric {metric!r:.40}")
    if not isinstance(identity, dict):
        raise ValueError("identity is not an object")
    files = {
        name: FileEntry(_count(entry["bytes"], "bytes"), _count(entry["crc32"], "crc32"))
        for name, entry in content["files"].items()
    }
    if REPLICATED not in files:
        raise ValueError(f"no {REPLICATED} among the files")
    sharded = {}
    for name, entry in content["sharded"].items():
        shape = tuple(_count(size, "shape") for size in entry["shape"])
        # The sizes of the files bound what is allocated; this keeps an empty range of an absurd shape away
        # from arithmetic that overflows.
        if not shape or math.prod(max(size, 1) for size in shape) >= 1 << 60:
            raise ValueError(f"tensor {name!r:.80} has an impossible shape")
        sharded[name] = ShardedEntry(DTYPES[entry["dtype"]], shape)
    step, world_size = _count(content["step"], "step"), _count(content["world_size"], "world_size")
    manifest = Manifest(step, world_size, metric, identity, content["state"], files, sharded)
    manifest.shards()
    return manifest


def _crc32(content: dict[str, Any]) -> int:
    # Over the parsed content rather than the text: a manifest may be reformatted, not altered.
    return zlib.crc32(json.dumps(content, separators=(",", ":"), allow_nan=False).encode())


def _count(value: Any, what: str) -> int:
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise ValueError(f"{what} {value!r:.40} is not a count")
    return value


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def damaged(directory: Path, name: str, reason: str) -> UserError:
    """The error for a file that is not as it was written, with what to do about it."""
    others = [
        path.parent.name for path in directory.parent.glob(f"step-*/{NAME}") if path.parent != directory
    ]
    if others:
        remedy = f"delete {directory} and resume from {max(others)}"
    else:
        remedy = f"delete {directory} and start the run anew, there is no other checkpoint beside it"
    return UserError(f"{directory / name}: {' '.join(reason.split())[:300]}; {remedy}")


@contextlib.contextmanager
def blaming(directory: Path, name: str) -> Iterator[Path]:
    """Give the path of a file of the checkpoint; damage found in it becomes a UserError."""
    try:
        yield directory / name
    except DamageError as error:
        raise damaged(directory, name, str(error)) from None
