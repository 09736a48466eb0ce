"""The directory of a gallery: what lies there, and how one generation follows another.

``manifest.json`` names the files of the present generation with their sizes and checksums: shards of embeddings
(:mod:`megaclass.inference.vectors`) and, where there is one, the index of faiss. A writer holds the lock, writes new
files under names that nobody uses, and renames the new manifest into its place: that is the switch. Then it deletes
what no manifest names. Readers take no lock: a file that is deleted stays with who has it open.
"""

import contextlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from megaclass.checkpoint import tensorfile
from megaclass.checkpoint.manifest import checksum
from megaclass.checkpoint.tensorfile import FileEntry
from megaclass.errors import UserError, first_line
from megaclass.files import locked, open_regular
from megaclass.results.rundir import write_whole

NAME = "manifest.json"
_FORMAT, _VERSION = "megaclass-gallery", 1
_FILES = re.compile(r"(vectors-\d{6,}\.safetensors|index-\d{6,}\.faiss)")
_MOST_BYTES = 1 << 26


class File(NamedTuple):
    name: str
    bytes: int
    crc32: int


@dataclass(frozen=True)
class Manifest:
    """``fingerprint``: of the model whose embeddings these are, called ``model``. ``template``: ``max`` or ``mean``.
    ``index``: ``exact``, ``hnsw`` or ``ivf``. ``threshold``: a cosine below it is of somebody unknown; ``measured``
    says where it is from."""

    generation: int = 0
    fingerprint: str = ""
    model: str = ""
    template: str = "max"
    index: str = "exact"
    threshold: float | None = None
    measured: str = ""
    shards: list[File] = field(default_factory=list)
    index_file: File | None = None

    def files(self) -> list[File]:
        return self.shards + ([self.index_file] if self.index_file else [])


def read(directory: Path) -> Manifest:
    """The present generation. UserError where there is none, or it is damaged."""
    path = directory / NAME
    if not path.exists():
        raise UserError(f"{directory}: no gallery there, it holds no {NAME}; `megaclass gallery build` makes one")
    try:
        with open_regular(path, _MOST_BYTES) as file:
            content = json.loads(file.read())
        if content.pop("format", "") != _FORMAT or content.pop("crc32") != checksum(content):
            raise ValueError("it does not match its checksum")
        if (version := content.pop("version")) != _VERSION:
            raise UserError(f"{path}: format version {version!r:.40}, this release reads {_VERSION}; use a newer one")
        content["shards"] = [File(*entry) for entry in content["shards"]]
        content["index_file"] = File(*content["index_file"]) if content["index_file"] else None
        found = Manifest(**content)
        if not all(_FILES.fullmatch(file.name) for file in found.files()):
            raise ValueError("it names files that are none of a gallery")
        return found
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path} is damaged: {first_line(error)}; take it from a copy, or build the gallery anew") from None


def checked(directory: Path, file: File) -> Path:
    """The path of a file that is as it was written. UserError where it is not."""
    path = directory / file.name
    try:
        tensorfile.check_size(path, file.bytes)
        tensorfile.check_crc32(path, FileEntry(file.bytes, file.crc32))
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path} is damaged: {why}; take it from a copy, or build the gallery anew") from None
    return path


def written(path: Path) -> File:
    """What the manifest says of a file, once it is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return File(path.name, path.stat().st_size, tensorfile.crc32_of(path))


@contextlib.contextmanager
def writing(directory: Path) -> Iterator[None]:
    """Within the block no other process writes into the gallery, which this one waits for; files that no manifest names,
    of a writer that was killed or has failed, go before it and after it. UserError for what the system refuses."""
    try:
        with locked(directory / ".lock"):
            _sweep(directory)
            try:
                yield
            finally:
                _sweep(directory)
    except OSError as error:
        why = error.strerror or first_line(error)
        raise UserError(f"{directory}: cannot be written: {why}; the gallery is as it was, mend that") from None


def switch(directory: Path, manifest: Manifest) -> Manifest:
    """Make it the present one, as the next generation. Raises OSError."""
    manifest = replace(manifest, generation=manifest.generation + 1)
    content = {"version": _VERSION, **json.loads(json.dumps(asdict(manifest), allow_nan=False))}
    text = json.dumps({"format": _FORMAT, **content, "crc32": checksum(content)}, indent=1)
    write_whole(directory / NAME, text + "\n")
    return manifest


def _sweep(directory: Path) -> None:
    kept = {file.name for file in read(directory).files()} if (directory / NAME).exists() else set()
    for path in directory.iterdir():
        if (_FILES.fullmatch(path.name) or path.match(".*.part")) and path.name not in kept:
            path.unlink()
