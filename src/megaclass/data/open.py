"""Open whatever lies under a path, or under several."""

import hashlib
import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from megaclass.data.dataset import Dataset
from megaclass.data.folder import FolderDataset
from megaclass.data.records.reader import RecordDataset
from megaclass.data.remote import local, split_addresses
from megaclass.data.shards import ShardDataset, shard_files
from megaclass.data.views import ConcatDataset
from megaclass.errors import UserError


def open_dataset(path: str | Path) -> Dataset:
    """A record set (a ``.rec`` file, or a directory with one), WebDataset tars (one, a pattern ``{000..099}.tar`` or a
    directory) or a directory of class directories, on this machine or at an address (see :mod:`megaclass.data.remote`).

    Several paths with ``:`` between them, as PATH has them, are opened as one set (see :class:`ConcatDataset`).
    Raises UserError for what cannot be opened.
    """
    paths = split_paths(path)
    check_paths(paths)
    parts = [_OPENERS[kind_of(one)](one) for one in paths]
    return parts[0] if len(parts) == 1 else ConcatDataset(parts, set_titles(paths))


def kind_of(path: Path) -> str:
    """``record set``, ``WebDataset tars`` or ``image folder``: as what a path is opened."""
    if record_file(path) is not None:
        return "record set"
    return "WebDataset tars" if shard_files(path) else "image folder"


_OPENERS: dict[str, Callable[[Path], Dataset]] = {
    "record set": RecordDataset,
    "WebDataset tars": ShardDataset,
    "image folder": FolderDataset,
}


def split_paths(path: str | Path) -> list[Path]:
    """The paths of the sets that ``path`` names: itself if it exists, else what stands between the ``:``.

    Sets at addresses are fetched, and their paths are those of the copies.
    """
    words = split_addresses(str(path))
    if len(words) == 1 or Path(path).exists():
        return [local(path)]
    if "" in words:
        raise UserError(f"{path}: a path is empty; put one {os.pathsep!r} between two paths, and none at the ends")
    return [local(word) for word in words]


def check_paths(paths: Sequence[Path]) -> None:
    """UserError for a path of a set that does not exist or is named twice."""
    for number, path in enumerate(paths):
        if missing := next((one for one in (shard_files(path) or [path]) if not one.exists()), None):
            raise UserError(
                f"{missing}: no such file or directory; give a record set or a directory of class directories"
            )
        if path.resolve() in (other.resolve() for other in paths[:number]):
            raise UserError(f"{path}: named twice, so each of its classes would be two; name it once")


def set_titles(paths: Sequence[Path]) -> list[str]:
    """A title for each set: the name, in its path, by which it differs from all others, else as much of its path's end
    as does."""
    names = [path.absolute().parts for path in paths]
    alone = ([parts[-depth] for parts in names] for depth in range(1, 1 + min(map(len, names))))
    ends = (["/".join(parts[-length:]) for parts in names] for length in range(2, max(map(len, names))))
    unlike = (titles for titles in itertools.chain(alone, ends) if len(set(titles)) == len(titles))
    return next(unlike, [str(path) for path in paths])


def record_file(path: Path) -> Path | None:
    """The ``.rec`` file that ``path`` names, itself or as its directory; None for a set of another kind."""
    if path.suffix == ".rec":
        return path
    return path / "train.rec" if any(path.glob("*.rec")) else None


def shared_sets(first: str, second: str) -> list[Path]:
    """The sets of ``second`` that ``first`` names too: by the same place, or as a file or record set of the same
    content. Of ``first`` only what lies on this machine is looked at."""
    mine = [Path(word) for word in split_addresses(first) if word and Path(word).exists()]
    places = {part.resolve() for part in mine}
    seen = {fingerprint(str(part)) for part in mine if not _is_folder(part)}
    return [
        part
        for part in split_paths(second)
        if part.resolve() in places or (part.exists() and not _is_folder(part) and fingerprint(str(part)) in seen)
    ]


def _is_folder(path: Path) -> bool:
    return path.is_dir() and kind_of(path) == "image folder"


_LOOKS, _LOOK_BYTES = 3, 1 << 16


def fingerprint(path: str) -> str:
    """A short text by which machines see whether they have the same set, or file, under a name, from a glance: the
    sizes of files and some of their bytes, the names in a directory of classes."""
    digest = hashlib.blake2b(digest_size=6)
    for part in split_paths(path):
        if _is_folder(part):
            digest.update("\0".join(sorted(found.name for found in part.iterdir())).encode(errors="surrogateescape"))
            continue
        records = sorted([*part.glob("*.rec"), *part.glob("*.idx")])
        for name in [part] if part.is_file() else records or shard_files(part):
            with name.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                digest.update(str(size).encode())
                for look in range(_LOOKS):
                    file.seek(size * look // _LOOKS)
                    digest.update(file.read(_LOOK_BYTES))
    return digest.hexdigest()
