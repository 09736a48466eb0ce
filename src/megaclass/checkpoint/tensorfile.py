"""safetensors files: written as a stream with their checksum, read only after it was checked.

The files are written here rather than by the safetensors package, because a head shard may fill most of a
machine: tensors leave their device in blocks, the CRC32 is that of the bytes in memory instead of those read
back, and a full disk is an OSError with its cause. Reading goes through the package, which checks the header; what is
damaged raises any of :data:`megaclass.checkpoint.manifest.DAMAGE`.
"""

import contextlib
import json
import math
import os
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

BLOCK_BYTES = 16 << 20

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class FileEntry(NamedTuple):
    """What the manifest knows of a file."""

    bytes: int
    crc32: int


def write_bytes(path: Path, blocks: Iterator[Any]) -> FileEntry:
    """Write buffers to a new file and flush them to the disk. Raises OSError."""
    crc32 = size = 0
    with path.open("xb") as file:
        for block in blocks:
            file.write(block)
            crc32 = zlib.crc32(block, crc32)
            size += len(block)
        file.flush()
        os.fsync(file.fileno())
    return FileEntry(size, crc32)


@dataclass(frozen=True)
class Blocks:
    """A tensor that need not be in memory as a whole: ``blocks()`` yields its rows in order."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    blocks: Callable[[], Iterable[Tensor]]


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor | Blocks], metadata: Mapping[str, str] | None = None
) -> FileEntry:
    """Write tensors of any device, shape and stride as one safetensors file. Raises OSError."""
    # Wide types first: then each tensor starts at a multiple of its item size and can be mapped in place.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, tensor in ordered:
        end = offset + math.prod(tensor.shape) * tensor.dtype.itemsize
        dtype, shape = DTYPE_NAMES[tensor.dtype], list(tensor.shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 64)

    def blocks() -> Iterator[Any]:
        yield len(text).to_bytes(8, "little") + text
        for _, tensor in ordered:
            for part in [tensor] if isinstance(tensor, Tensor) else tensor.blocks():
                yield from _blocks(part)

    return write_bytes(path, blocks())


def _blocks(tensor: Tensor) -> Iterator[Any]:
    if tensor.numel() == 0:
        return
    raw = tensor.detach().contiguous().view(-1).view(torch.uint8)
    for start in range(0, len(raw), BLOCK_BYTES):
        yield raw[start : start + BLOCK_BYTES].cpu().numpy()


def check_size(path: Path, size: int | None = None) -> None:
    """A link could lead anywhere and a pipe would block: only a regular file passes, of that size if one is given."""
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("is a link or a special file, not a regular file")
    if size is not None and found.st_size != size:
        raise ValueError(f"has {found.st_size} bytes instead of {size}")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The package takes names in UTF-8 alone; a file of any other is opened by its descriptor."""
    with path.open("rb") as held:
        plain = str(path).encode(errors="ignore").decode() == str(path)
        with safe_open(path if plain else f"/dev/fd/{held.fileno()}", framework="pt") as file:
            yield file


def crc32_of(path: Path) -> int:
    """The checksum of a file, which is read whole (3.9 GB/s from the page cache)."""
    crc32 = 0
    with path.open("rb", buffering=0) as file:
        block = bytearray(BLOCK_BYTES)
        while count := file.readinto(block):
            crc32 = zlib.crc32(memoryview(block)[:count], crc32)
    return crc32


def check_crc32(path: Path, entry: FileEntry) -> None:
    """Read the whole file and compare its checksum."""
    if (crc32 := crc32_of(path)) != entry.crc32:
        raise ValueError(f"has checksum {crc32:08x} instead of {entry.crc32:08x}")


def read_tensors(path: Path, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a file whose names begin so, named by the rest, on the CPU, in memory of their own."""
    with _opened(path) as file:
        names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
        # get_tensor returns a view of the mapped file; a clone outlives the file's deletion.
        return {name.removeprefix(prefix): file.get_tensor(name).clone() for name in names}


def map_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a file as views of it, on the CPU, and its metadata. The file may be deleted, never cut."""
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Of every tensor of a file, from its header alone."""
    with _opened(path) as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def check_rows(path: Path, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Compare the file's own header with what the manifest says of a tensor, without reading its data."""
    with _opened(path) as file:
        rows = file.get_slice(name)
        found = rows.get_dtype(), tuple(rows.get_shape())
    if found != (DTYPE_NAMES[dtype], shape):
        raise ValueError(f"holds {name!r} as {found}, not as {(DTYPE_NAMES[dtype], shape)}")


def copy_rows(path: Path, name: str, start: int, stop: int, out: Tensor) -> Tensor:
    """Copy rows ``[start, stop)``, counted within the file, to ``out`` on any device, and return it."""
    with _opened(path) as file:
        return out.copy_(file.get_slice(name)[start:stop])
