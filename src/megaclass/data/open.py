"""Open whatever lies under a path, or under several."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from megaclass.data.dataset import Dataset
from megaclass.data.folder import FolderDataset
from megaclass.data.records.reader import RecordDataset
from megaclass.data.views import ConcatDataset
from megaclass.errors import UserError


def open_dataset(path: str | Path) -> Dataset:
    """A record set (a ``.rec`` file, or a directory with one) or a directory of class directories.

    Several paths with ``:`` between them, as PATH has them, are opened as one set (see :class:`ConcatDataset`).
    Raises UserError for what cannot be opened.
    """
    paths = split_paths(path)
    check_paths(paths)
    parts: list[Dataset] = [
        FolderDataset(one) if record_file(one) is None else RecordDataset(one) for one in paths
    ]
    return parts[0] if len(parts) == 1 else ConcatDataset(parts, set_titles(paths))


def split_paths(path: str | Path) -> list[Path]:
    """The paths of the sets that ``path`` names: itself if it exists, else what stands between the ``:``."""
    words = str(path).split(os.pathsep)
    if len(words) == 1 or Path(path).exists():
        return [Path(path)]
    if "" in words:
        raise UserError(
            f"{path}: a path is empty; put one {os.pathsep!r} between two paths, and none at the ends"
        )
    return [Path(word) for word in words]


def check_paths(paths: Sequence[Path]) -> None:
    """UserError for a path of a set that does not exist or is named twice."""
    for number, path in enumerate(paths):
        if not path.exists():
            raise UserError(
                f"{path}: no such file or directory; give a record set or a directory of class directories"
            )
        if path.resolve() in (other.resolve() for other in paths[:number]):
            raise UserError(f"{path}: named twice, so each of its classes would be two; name it once")


def set_titles(paths: Sequence[Path]) -> list[str]:
    """A title for each set: the name, in its path, by which it differs from all others, else the whole path."""
    names = [path.resolve().parts for path in paths]
    for depth in range(1, 1 + min(map(len, names))):
        titles = [parts[-depth] for parts in names]
        if len(set(titles)) == len(titles):
            return titles
    return [str(path) for path in paths]


def record_file(path: Path) -> Path | None:
    """The ``.rec`` file that ``path`` names, itself or as its directory; None for a set of another kind."""
    if path.suffix == ".rec":
        return path
    return path / "train.rec" if any(path.glob("*.rec")) else None


_LOOKS, _LOOK_BYTES = 3, 1 << 16


def fingerprint(path: str) -> str:
    """A short text by which machines see whether they have the same set, or file, under a name, from a glance: the
    sizes of files and some of their bytes, the names in a directory of classes."""
    digest = hashlib.blake2b(digest_size=6)
    for part in split_paths(path):
        if part.is_dir() and record_file(part) is None:
            digest.update(
                "\0".join(sorted(found.name for found in part.iterdir())).encode(errors="surrogateescape")
            )
            continue
        for name in [part] if part.is_file() else sorted([*part.glob("*.rec"), *part.glob("*.idx")]):
            with name.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                digest.update(str(size).encode())
                for look in range(_LOOKS):
                    file.seek(size * look // _LOOKS)
                    digest.update(file.read(_LOOK_BYTES))
    return digest.hexdigest()
