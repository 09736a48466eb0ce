"""``manifest.json``: read without trust.

It is written last, carries the CRC32 of its own content, and gives each file's size and CRC32. File names are
matched against the two patterns that :mod:`megaclass.checkpoint.saver` makes, so none leads out of the
directory; a shard's row range is part of its name.
"""

import contextlib
import errno
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError

from megaclass.checkpoint import tensorfile
from megaclass.checkpoint.tensorfile import DTYPE_NAMES, DTYPES, FileEntry
from megaclass.errors import UserError

NAME = "manifest.json"
REPLICATED = "replicated.safetensors"
FORMAT = "megaclass-checkpoint"
VERSION = 2  # 1 knew no rows that owe: it would take them for finished ones

COMPLETE = re.compile(r"(?:\.old-)?step-(\d{8,18})")
_SHARD = re.compile(r"shard-(\d{10,18})-(\d{10,18})\.safetensors")


class DamagedError(UserError):
    """A checkpoint is not as it was written. ``reason``: which file, and what is wrong with it."""

    reason = ""


# What a file may well be when the system does not let us read it: such an error says nothing about the file.
_NOT_DAMAGE = (errno.EACCES, errno.EPERM, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM)

# What is raised in a file that is not as it was written, by our checks, the file system, JSON and safetensors.
DAMAGE = (ValueError, OSError, SafetensorError, LookupError, TypeError, AttributeError, RuntimeError)


@contextlib.contextmanager
def faults_of(path: Path, advice: str) -> Iterator[Path]:
    """Give the path; what is wrong with the file becomes a UserError that ends with ``advice``."""
    try:
        yield path
    except (UserError, torch.OutOfMemoryError):
        raise
    except DAMAGE as error:
        raise UserError(f"{path}: damaged ({_reason(path, error)}); {advice}") from None


def _reason(path: Path, error: Exception) -> str:
    """What is wrong with a file. UserError where the system does not let us read it."""
    if isinstance(error, OSError) and error.errno in _NOT_DAMAGE:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
    return " ".join(reason.split())[:300]


class ShardedEntry(NamedTuple):
    """The dtype and global shape of a tensor whose rows lie in the shard files."""

    dtype: torch.dtype
    shape: tuple[int, ...]


class Shard(NamedTuple):
    """A file with rows ``[start, stop)`` of every sharded tensor."""

    start: int
    stop: int
    name: str


@dataclass(frozen=True)
class Manifest:
    step: int
    world_size: int
    metric: float | None
    identity: dict[str, Any]
    state: Any  # the skeleton of tree.flatten
    files: dict[str, FileEntry]
    sharded: dict[str, ShardedEntry]

    def __post_init__(self) -> None:
        self.shards()

    def shards(self) -> list[Shard]:
        """The shard files by rising start. ValueError unless they hold each row exactly once."""
        shards = []
        for name in self.files.keys() - {REPLICATED}:
            match = _SHARD.fullmatch(name)
            if match is None:
                raise ValueError(f"{name!r:.80} is not the name of a checkpoint file")
            shards.append(Shard(int(match[1]), int(match[2]), name))
        shards.sort()
        end = 0
        for shard in shards:
            if shard.start != end or shard.stop <= shard.start:
                raise ValueError(f"row {end} is missing or stored twice: {shard.name} does not start there")
            end = shard.stop
        for name, entry in self.sharded.items():
            if entry.shape[0] != end:
                raise ValueError(f"tensor {name!r} has {entry.shape[0]} rows, but the files hold {end}")
        return shards


def shard_name(start: int, stop: int) -> str:
    return f"shard-{start:010d}-{stop:010d}.safetensors"


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
        "files": {name: entry._asdict() for name, entry in manifest.files.items()},
        "sharded": {
            name: {"dtype": DTYPE_NAMES[entry.dtype], "shape": list(entry.shape)}
            for name, entry in manifest.sharded.items()
        },
    }
    text = json.dumps({**content, "crc32": checksum(content)}, indent=1, allow_nan=False)
    tensorfile.write_bytes(directory / NAME, iter([text.encode()]))


def read(directory: Path) -> Manifest:
    """Read and check ``manifest.json``. UserError where it is missing, damaged, of another version, or of another
    step than the directory's name says: a copy of an old checkpoint must not pass for a new one."""
    with blaming(directory, NAME) as path:
        tensorfile.check_size(path)
        content = json.loads(path.read_bytes())
        if content.get("format") != FORMAT:
            raise ValueError("is not the manifest of a checkpoint")
        if content.pop("crc32") != checksum(content):
            raise ValueError("does not match its checksum")
        if content["version"] not in (1, VERSION):
            raise UserError(
                f"{path}: format version {content['version']!r:.40}, but this release reads 1 and {VERSION}; "
                "use the release that wrote it"
            )
        found, named = _parse(content), COMPLETE.fullmatch(directory.name)
        if named and int(named[1]) != found.step:
            raise ValueError(f"is of step {found.step}: the directory is a copy, or was renamed")
        return found


def _parse(content: dict[str, Any]) -> Manifest:
    metric, identity = content["metric"], content["identity"]
    if not isinstance(metric, float | None) or not isinstance(identity, dict):
        raise ValueError("metric or identity is of another type")
    files = {
        name: FileEntry(_count(entry["bytes"]), _count(entry["crc32"])) for name, entry in content["files"].items()
    }
    sharded = {
        name: ShardedEntry(DTYPES[entry["dtype"]], tuple(map(_count, entry["shape"])))
        for name, entry in content["sharded"].items()
    }
    step, world_size = _count(content["step"]), _count(content["world_size"])
    return Manifest(step, world_size, metric, identity, content["state"], files, sharded)


def checksum(content: dict[str, Any]) -> int:
    """Over the parsed content rather than the text: a manifest may be reformatted, not altered."""
    return zlib.crc32(json.dumps(content, separators=(",", ":"), allow_nan=False).encode())


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise ValueError(f"{value!r:.40} is not a count")
    return value


@contextlib.contextmanager
def blaming(directory: Path, name: str) -> Iterator[Path]:
    """Give the path of a file of the checkpoint; damage found in it becomes a UserError that says what to do."""
    path = directory / name
    try:
        yield path
    except (UserError, torch.OutOfMemoryError):  # memory: of the device that takes the rows
        raise
    except DAMAGE as error:
        others = [found.parent.name for found in directory.parent.glob(f"step-*/{NAME}") if found.parent != directory]
        remedy = f"take {max(others)}, as a resume does" if others else "there is no other one beside it"
        reason = _reason(path, error)
        damaged = DamagedError(f"{path}: {reason}; {remedy}")
        damaged.reason = f"{name}: {reason}"
        raise damaged from None
