"""Open whatever lies under a path, or under several."""

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

    Several paths with ``:`` between them, as PATH has them, are opened as one set (see :func:`open_together`).
    Raises UserError for what cannot be opened.
    """
    return open_together(split_paths(path))


def open_together(paths: Sequence[Path], *, same_classes: bool = False) -> Dataset:
    """The sets under ``paths`` as one: the samples of the first, then those of the next, whose classes are
    numbered on, or matched by name with ``same_classes`` (see ConcatDataset)."""
    check_paths(paths)
    parts: list[Dataset] = [
        FolderDataset(path) if record_file(path) is None else RecordDataset(path) for path in paths
    ]
    if len(parts) == 1:
        return parts[0]
    return ConcatDataset(parts, set_titles(paths), same_classes=same_classes)


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
