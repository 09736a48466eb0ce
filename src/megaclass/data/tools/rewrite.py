"""Data sets written anew as record sets: shuffled, split by identity, merged. Images keep their very bytes.

Shapes: N = images, K = classes.
"""

import contextlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from megaclass.data.dataset import DamagedSampleError, Dataset, Sample, class_names
from megaclass.data.decode import check_header
from megaclass.data.open import open_dataset, open_together, split_paths
from megaclass.data.records.writer import RecordWriter
from megaclass.data.threads import in_order, ranges
from megaclass.errors import UserError, make_room
from megaclass.parallel.seeding import KeyedPermutation, derive_key

Progress = Callable[[int, int], None]

_READS = 16  # at once: the images of a shuffled set lie all over the disk
_PIECE_IMAGES = 4  # a read; twice as many pieces as reads are in memory, and images may be large
_TELL_EVERY = 64
_DRAWN = 4096  # numbers of a permutation at once
_PARTS, _TABLE = ("train", "test"), "split.tsv"


@dataclass(frozen=True)
class Written:
    """A record set that was written."""

    path: Path
    images: int
    classes: int


def shuffle(
    path: str | Path, output: str | Path, *, seed: int = 0, progress: Progress = lambda done, total: None
) -> Written:
    """Write the images of the set under ``path`` to ``output/train.rec`` in an order that ``seed`` gives.

    The layout is im2rec's, without index or identity records: what reads records in the order of the file, as
    DALI and MXNet's ImageRecordIter do, gets shuffled images. Memory does not grow with the set, but for its
    index. Raises UserError for a set that cannot be read whole; ``output`` then holds nothing new.
    """
    dataset = open_dataset(path)
    permutation = KeyedPermutation(len(dataset), derive_key("shuffle", seed))
    order = (
        index
        for numbers in ranges(len(dataset), _DRAWN)
        for index in permutation(torch.arange(numbers.start, numbers.stop)).tolist()
    )
    writer = RecordWriter(output, index_record=False, classes=class_names(dataset))
    writer.num_classes = dataset.num_classes
    with writer:
        _copy(dataset, order, lambda label: (writer, label), progress)
    return _written(writer)


def merge(
    paths: Sequence[str | Path],
    output: str | Path,
    *,
    same_classes: bool = False,
    progress: Progress = lambda done, total: None,
) -> Written:
    """Write the sets under ``paths`` to ``output/train.rec``: what ``open_dataset`` of all of them gives.

    ``same_classes`` matches classes by name; without it, the classes of each set are numbered behind those
    before. Raises UserError as :func:`shuffle` does.
    """
    dataset = open_together([part for path in paths for part in split_paths(path)], same_classes=same_classes)
    writer = RecordWriter(output, classes=class_names(dataset))
    writer.num_classes = dataset.num_classes
    with writer:
        _copy(dataset, range(len(dataset)), lambda label: (writer, label), progress)
    return _written(writer)


def split(
    path: str | Path,
    output: str | Path,
    *,
    classes: int | None = None,
    share: float | None = None,
    seed: int = 0,
    progress: Progress = lambda done, total: None,
) -> tuple[Written, Written]:
    """Split the set under ``path`` by class into ``output/train`` and ``output/test``.

    ``classes`` of them, or that ``share``, go to the second part, drawn by ``seed`` among those with two images
    or more: pairs of one identity need two. The others go to the first part. Classes are numbered from 0 in
    both, in their old order; those without images are left out. ``output/split.tsv`` tells which went where.
    Raises UserError as :func:`shuffle` does, and where there are too few classes; ``output`` then holds neither part.
    """
    dataset = open_dataset(path)
    labels_N = dataset.labels()
    counts_K = np.bincount(labels_N, minlength=dataset.num_classes)
    second_K = _drawn_classes(counts_K, classes, share, seed, str(path))
    # What becomes of each class: its part, and its number there.
    held_K = counts_K > 0
    numbers_K = np.where(second_K, np.cumsum(second_K), np.cumsum(held_K & ~second_K)) - 1
    table = Path(output) / _TABLE
    if table.exists():
        raise UserError(f"{table} exists and is not overwritten; remove it or name another directory")
    names = class_names(dataset)
    writers = []
    for name, chosen_K in zip(_PARTS, (held_K & ~second_K, second_K), strict=True):
        kept = [names[label] for label in np.flatnonzero(chosen_K)] if names else None
        writers.append(RecordWriter(Path(output) / name, classes=kept))
    unnamed = table.with_name(f".{_TABLE}.{os.getpid()}.part")
    try:
        with writers[0] as first, writers[1] as second:
            both, order = (first, second), range(len(dataset))
            _copy(dataset, order, lambda label: (both[int(second_K[label])], int(numbers_K[label])), progress)
            # All is written before anything gets its name: a part alone, or without the table, would look whole.
            first.prepare()
            second.prepare()
            _write_table(unnamed, names, held_K, second_K, numbers_K)
        unnamed.replace(table)
    finally:
        with contextlib.suppress(OSError):
            unnamed.unlink()
    return _written(first), _written(second)


def _copy(
    dataset: Dataset,
    order: Iterable[int],
    place: Callable[[int], tuple[RecordWriter, int]],
    progress: Progress,
) -> None:
    """Write the samples ``order``: ``place`` says to which writer those of a label go, and under which label."""
    for done, (encoded, label) in enumerate(_read(dataset, order), 1):
        size = None
        # An image that is damaged is copied as it is: training decides what to do about it.
        with contextlib.suppress(DamagedSampleError):
            size = check_header(encoded, "")
        writer, number = place(label)
        writer.write(encoded, number, size)
        if done % _TELL_EVERY == 0 or done == len(dataset):
            progress(done, len(dataset))


def _written(writer: RecordWriter) -> Written:
    return Written(writer.path, writer.count, writer.num_classes)


def _read(dataset: Dataset, indices: Iterable[int]) -> Iterator[Sample]:
    """The samples ``indices``, read ahead by threads, in order."""

    def read(piece: list[int]) -> list[Sample]:
        return [dataset.read(index) for index in piece]

    following = iter(indices)
    pieces = iter(lambda: list(itertools.islice(following, _PIECE_IMAGES)), [])
    for samples in in_order(read, pieces, _READS):
        yield from samples


def _drawn_classes(
    counts_K: np.ndarray, classes: int | None, share: float | None, seed: int, path: str
) -> np.ndarray:
    """Which classes go to the second part, bool (K,)."""
    if (classes is None) == (share is None):
        raise UserError("give one of classes and share: how many classes, or what part of them, is split off")
    held = int((counts_K > 0).sum())
    if share is not None and not 0 < share < 1:
        raise UserError(f"share: {share} is not between 0 and 1, e.g. 0.1 for a tenth of the classes")
    wanted = round(held * share) if share is not None else classes or 0
    fit = np.flatnonzero(counts_K >= 2)
    if wanted < 1 or wanted >= held:
        raise UserError(
            f"{path}: {wanted} of its {held} classes cannot be split off; take from 1 to {held - 1} of them"
        )
    if wanted > len(fit):
        raise UserError(
            f"{path}: {wanted} classes are wanted, but only {len(fit)} have the two images that a pair takes"
        )
    second_K = np.zeros(len(counts_K), bool)
    permutation = KeyedPermutation(len(fit), derive_key("split", seed))
    second_K[fit[permutation(torch.arange(wanted)).numpy()]] = True
    return second_K


def _write_table(
    path: Path,
    names: list[str] | None,
    held_K: np.ndarray,
    second_K: np.ndarray,
    numbers_K: np.ndarray,
) -> None:
    lines = ["class\tpart\tnew_class\tname"]
    for label in np.flatnonzero(held_K).tolist():
        name = names[label] if names else ""
        lines.append(f"{label}\t{_PARTS[int(second_K[label])]}\t{numbers_K[label]}\t{name}")
    try:
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {error.strerror}; {make_room(error)}name another directory"
        ) from None
