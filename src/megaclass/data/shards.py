"""WebDataset's tars, read as they are: a sample is a run of files of one name, ``000123.jpg`` and ``000123.cls``.

``.cls`` holds the number of the class as text; without it the ``label`` of ``.json`` is that. The headers of all
tars are read once, and where each image lies is kept in the cache: after that a sample is one read at an offset, in any
order, as of a record set.

Shapes: N = samples.
"""

import hashlib
import itertools
import json
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from megaclass.data.dataset import DamagedSampleError, Sample
from megaclass.data.folder import MAX_BYTES
from megaclass.data.pack.tar import Member, members
from megaclass.errors import UserError, printable
from megaclass.files import cache_directory, locked

logger = logging.getLogger(__name__)

_IMAGES = ("jpg", "jpeg", "png", "webp")
_MOST = {"cls": 64, "json": 1 << 20}  # bytes of what holds a class
_MOST_NAMES = 1_000_000
_ROW = np.dtype([("shard", "<u4"), ("size", "<u4"), ("offset", "<i8"), ("label", "<i8")])


def braces(text: str) -> list[str]:
    """The names of a pattern such as ``train-{000..127}.tar``, as a shell expands it. UserError."""
    found = re.search(r"\{(\d{1,9})\.\.(\d{1,9})\}", text, re.ASCII)
    if not found:
        return [text]
    start, end = found.span()
    numbers, width, tails = range(int(found[1]), int(found[2]) + 1), len(found[1]), braces(text[end:])
    if not 0 < (many := len(numbers) * len(tails)) <= _MOST_NAMES:
        raise UserError(f"{text}: {many:,} names; write {{first..last}}, for {_MOST_NAMES:,} at most")
    return [f"{text[:start]}{number:0{width}}{tail}" for number in numbers for tail in tails]


def shard_files(path: Path) -> list[Path]:
    """The tars that ``path`` names: itself, those of its pattern, or of the directory; none for another kind of set."""
    if path.suffix == ".tar":
        return [Path(name) for name in braces(str(path))]
    shards = sorted(path.glob("*.tar"))
    return [] if shards and any(entry.is_dir() for entry in path.glob("[!.]*")) else shards


class ShardDataset:
    """The samples of WebDataset tars: see :func:`shard_files` for ``path``.

    Samples without an image or a class are left out, with a warning. Memory: 24 bytes a sample, which the processes of
    a machine share. Raises UserError, naming the tar, for one that is damaged or not of this kind.
    """

    def __init__(self, path: Path) -> None:
        self.shards = shard_files(path)
        series = sorted({re.sub(r"\d+", "*", shard.name) for shard in self.shards})
        if path.is_dir() and len(series) > 1:
            raise UserError(
                f"{path} holds several sets, {' and '.join(series[:3])}; name the shards of one, {{000..127}} for the *"
            )
        self._rows_N = _rows(self.shards)
        self.num_classes = int(self._rows_N["label"].max()) + 1

    def __len__(self) -> int:
        return len(self._rows_N)

    def read(self, index: int) -> Sample:
        """Return sample ``index``. Safe to call from several threads."""
        shard, size, offset, label = self._rows_N[index].tolist()
        try:
            with self.shards[shard].open("rb", buffering=0) as file:
                encoded = os.pread(file.fileno(), size, offset) if size <= MAX_BYTES else b""
        except OSError as error:
            raise DamagedSampleError(f"{self.describe(index)} cannot be read: {error.strerror}") from None
        if len(encoded) != size or not size:
            reason = f"{len(encoded):,} of {size:,} bytes can be read"
            raise DamagedSampleError(f"{self.describe(index)} is damaged: {reason}; copy the tar again")
        return Sample(encoded, label)

    def labels(self) -> np.ndarray:
        """All labels, int64 of shape (len,)."""
        return np.ascontiguousarray(self._rows_N["label"])

    def describe(self, index: int) -> str:
        shard, _, offset, _ = self._rows_N[index].tolist()
        return f"{self.shards[shard]} sample {index} (offset {offset})"


def _rows(shards: Sequence[Path]) -> np.ndarray:
    """The samples, ``_ROW`` (N,): from the cache if the tars are as they were."""
    kept = cache_directory() / "shards"
    try:
        found = [(str(shard.resolve()), shard.stat().st_size, shard.stat().st_mtime_ns) for shard in shards]
        kept /= f"{hashlib.sha256(repr(found).encode()).hexdigest()[:32]}.npy"
        kept.parent.mkdir(parents=True, exist_ok=True)
        with locked(kept.with_suffix(".lock")):
            if not kept.exists():
                part = kept.with_suffix(".part.npy")
                np.save(part, _read(shards))
                part.replace(kept)
        return np.load(kept, mmap_mode="r")
    except OSError as error:
        raise UserError(f"{error.filename or kept}: {error.strerror}; mend it, or set MEGACLASS_CACHE") from None


def _read(shards: Sequence[Path]) -> np.ndarray:
    parts, left_out, first = [], 0, ""
    for number, shard in enumerate(shards):
        rows = []
        with shard.open("rb") as file:
            for key, run in itertools.groupby(members(file, str(shard)), lambda member: _cut(member.name)[0]):
                where, named = f"{shard}/{printable(key)}", [(_cut(one.name)[1], one) for one in run]
                files = dict(named)
                if len(files) < len(named):
                    raise UserError(f"{where} is there twice; make the tar anew, with a name for each sample")
                image = next((files[suffix] for suffix in _IMAGES if suffix in files), None)
                label = _label(file.fileno(), files, where)
                if image is not None and label is not None:
                    rows.append((number, min(image.size, MAX_BYTES + 1), image.offset, label))
                else:
                    left_out, first = left_out + 1, first or where
        parts.append(np.array(rows, _ROW))
    if not sum(map(len, parts)):
        raise UserError(
            f"{shards[0]} holds no sample of WebDataset, KEY.jpg with KEY.cls; `data pack` packs other tars"
        )
    if left_out:
        logger.warning("%s: samples that have no image or no class are left out, %d in all", first, left_out)
    return np.concatenate(parts)


def _cut(name: str) -> tuple[str, str]:
    """Key and suffix of a file, as webdataset has them: the suffix begins at the first dot behind the directories."""
    directory, slash, last = name.rpartition("/")
    stem, _, suffix = last.partition(".")
    return directory + slash + stem, suffix.lower()


def _label(descriptor: int, files: dict[str, Member], where: str) -> int | None:
    """The class of a sample, or None if it has none. UserError for one that is no whole number."""
    kind = next((kind for kind in _MOST if kind in files), "")
    if not kind:
        return None
    text = os.pread(descriptor, min(files[kind].size, _MOST[kind]), files[kind].offset)
    try:
        label = int(text) if kind == "cls" else json.loads(text).get("label")
    except (ValueError, AttributeError, RecursionError):
        label = text[:40]
    if label is not None and (type(label) is not int or not 0 <= label < 1 << 31):
        raise UserError(f"{where}.{kind}: the class is {label!r}; it has to be a whole number from 0 on")
    return label
