"""The directory of a gallery, and how one generation follows another.

``manifest.json`` tells of the present generation, whose embeddings and index lie in files called by its number, with
their sizes and checksums. A writer holds the lock, writes the files of the next number, and renames the new manifest
into its place; then it deletes the old files. Readers take no lock: a file that is deleted stays with who has it open.
"""

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from megaclass.checkpoint import tensorfile
from megaclass.checkpoint.manifest import checksum, faults_of
from megaclass.checkpoint.tensorfile import FileEntry
from megaclass.errors import UserError
from megaclass.files import locked, open_regular
from megaclass.results.rundir import write_whole

NAME = "manifest.json"
VECTORS, INDEX = ".safetensors", ".faiss"
_FORMAT = "megaclass-gallery-1"
_ADVICE = "take it from a copy, or build the gallery anew"


@dataclass(frozen=True)
class Manifest:
    """``fingerprint``: of the model whose embeddings these are, called ``model``. ``index``: ``exact`` or ``ivf``.
    ``threshold``: a cosine below it is of somebody unknown; ``measured`` says where it is from. ``files``: by suffix,
    their bytes and CRC32."""

    fingerprint: str = ""
    model: str = ""
    index: str = "exact"
    threshold: float | None = None
    measured: str = ""
    generation: int = 0
    files: dict[str, tuple[int, int]] = field(default_factory=dict)

    def path(self, directory: Path, suffix: str) -> Path:
        return directory / f"{self.generation:06d}{suffix}"

    def checked(self, directory: Path, suffix: str) -> Path:
        """The path of a file that is as it was written. UserError where it is not."""
        with faults_of(self.path(directory, suffix), _ADVICE) as path:
            entry = FileEntry(*self.files[suffix])
            tensorfile.check_size(path, entry.bytes)
            tensorfile.check_crc32(path, entry)
        return path

    def take(self, directory: Path, suffix: str) -> None:
        """A file that is written becomes one of this generation. Raises OSError."""
        with self.path(directory, suffix).open("rb") as file:
            os.fsync(file.fileno())
            self.files[suffix] = os.fstat(file.fileno()).st_size, tensorfile.crc32_of(Path(file.name))


def read(directory: Path) -> Manifest:
    """The present generation. UserError where there is none, or it is damaged."""
    if not (path := directory / NAME).exists():
        raise UserError(f"{directory}: no gallery there, it holds no {NAME}; `megaclass gallery build` makes one")
    with faults_of(path, _ADVICE), open_regular(path, 1 << 20) as file:
        content = json.loads(file.read())
        if content.pop("crc32") != checksum(content) or content.pop("format") != _FORMAT:
            raise ValueError("it does not match its checksum, or is of another version")
        return Manifest(**content)


def switch(directory: Path, manifest: Manifest) -> None:
    """Make it the present one. Raises OSError."""
    content = json.loads(json.dumps({**asdict(manifest), "format": _FORMAT}, allow_nan=False))
    write_whole(directory / NAME, json.dumps({**content, "crc32": checksum(content)}, indent=1) + "\n")


@contextlib.contextmanager
def writing(directory: Path) -> Iterator[None]:
    """Within the block no other process writes into the gallery: this one waits for its turn. Files of another
    generation than the present one, as a writer leaves that is killed, go before and after it. UserError for what the
    system refuses."""

    def sweep() -> None:
        present = read(directory) if (directory / NAME).exists() else Manifest()
        for path in directory.glob("[0-9]*[0-9].*"):
            if path.suffix in (VECTORS, INDEX) and path != present.path(directory, path.suffix):
                path.unlink()

    try:
        with locked(directory / ".lock"), contextlib.ExitStack() as after:
            sweep()
            after.callback(sweep)
            yield
    except OSError as error:
        raise UserError(f"{directory}: cannot be written: {error.strerror or error}; it is as it was") from None
