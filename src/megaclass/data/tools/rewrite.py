"""Data sets written anew as record sets: shuffled, split by identity, merged. Images keep their very bytes.

Each function returns the closed writer, which says what it wrote: ``path``, ``count`` and ``num_classes``. Raises
UserError for a set that cannot be read whole; ``output`` then holds nothing new. Memory: a few
times 8 bytes an image.

Shapes: N = images, K = classes.
"""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from megaclass.data.dataset import DamagedSampleError, Dataset, Sample, class_names
from megaclass.data.decode import check_header
from megaclass.data.open import open_dataset, open_together, split_paths
from megaclass.data.records.writer import RecordWriter
from megaclass.data.sampler import drawn
from megaclass.data.threads import in_order
from megaclass.errors import UserError

Progress = Callable[[int, int], None]

_READS = 16  # at once: the images of a shuffled set lie all over the disk
_PIECE_IMAGES = 4  # a read; twice as many pieces as reads are in memory, and images may be large


def shuffle(path: str | Path, output: str | Path, seed: int, progress: Progress) -> RecordWriter:
    """Write the images of the set under ``path`` to ``output/train.rec`` in an order that ``seed`` gives.

    The layout is im2rec's, without index or identity records: what reads records in the order of the file, as
    DALI and MXNet's ImageRecordIter do, gets shuffled images.
    """
    dataset = open_dataset(path)
    order_N = drawn(len(dataset), len(dataset), "shuffle", seed)
    return _copied(dataset, order_N, RecordWriter(output, index_record=False), progress)


def merge(
    paths: Sequence[str | Path], output: str | Path, same_classes: bool, progress: Progress
) -> RecordWriter:
    """Write the sets under ``paths`` to ``output/train.rec``: what ``open_together`` of all of them gives."""
    dataset = open_together([part for path in paths for part in split_paths(path)], same_classes=same_classes)
    return _copied(dataset, np.arange(len(dataset)), RecordWriter(output), progress)


def _copied(dataset: Dataset, order_N: np.ndarray, writer: RecordWriter, progress: Progress) -> RecordWriter:
    writer.classes, writer.num_classes = class_names(dataset), dataset.num_classes
    with writer:
        _copy(dataset, order_N, lambda label: (writer, label), progress)
    return writer


def split(
    path: str | Path, output: str | Path, share: float, seed: int, progress: Progress
) -> tuple[RecordWriter, RecordWriter]:
    """Split the set under ``path`` by class into ``output/train`` and ``output/test``.

    That ``share`` of the classes goes to the second part, drawn by ``seed`` among those with two images or more:
    pairs of one identity need two. The others go to the first part. Classes are numbered from 0 in both, in their
    old order; those without images are left out. ``classes.txt`` of each part has the names of its classes, or
    their old numbers if they have no names.
    """
    dataset = open_dataset(path)
    counts_K = np.bincount(dataset.labels(), minlength=dataset.num_classes)
    held_K, fit = counts_K > 0, np.flatnonzero(counts_K >= 2)
    held = int(held_K.sum())
    wanted = round(held * share) if 0 < share < 1 else 0
    if not 1 <= wanted <= min(held - 1, len(fit)):
        raise UserError(
            f"{path}: a share of {share:g} is {wanted} of its {held} classes; one class at least has to go to each "
            f"part, and of those to be split off, {len(fit)} have the two images that a pair takes"
        )
    second_K = np.zeros(len(counts_K), bool)
    second_K[fit[drawn(len(fit), wanted, "split", seed)]] = True
    first_K = held_K & ~second_K
    numbers_K = np.where(second_K, np.cumsum(second_K), np.cumsum(first_K)) - 1  # of each class in its part
    names = class_names(dataset) or [str(label) for label in range(dataset.num_classes)]
    writers = [
        RecordWriter(Path(output) / part, classes=[names[label] for label in np.flatnonzero(chosen_K)])
        for part, chosen_K in (("train", first_K), ("test", second_K))
    ]
    with writers[0] as first, writers[1] as second:
        _copy(
            dataset,
            np.arange(len(dataset)),
            lambda label: (second if second_K[label] else first, int(numbers_K[label])),
            progress,
        )
        # Both are written before either gets its name: one alone would look whole.
        first.prepare()
        second.prepare()
    return first, second


def _copy(
    dataset: Dataset,
    order_N: np.ndarray,
    place: Callable[[int], tuple[RecordWriter, int]],
    progress: Progress,
) -> None:
    """Write the samples ``order_N``: ``place`` says to which writer those of a label go, and under which label."""

    def read(start: int) -> list[Sample]:
        return [dataset.read(index) for index in order_N[start : start + _PIECE_IMAGES].tolist()]

    done = 0
    for samples in in_order(read, range(0, len(order_N), _PIECE_IMAGES), _READS):
        for encoded, label in samples:
            size = None
            # An image that is damaged is copied as it is: training decides what to do about it.
            with contextlib.suppress(DamagedSampleError):
                size = check_header(encoded, "")
            writer, number = place(label)
            writer.write(encoded, number, size)
        done += len(samples)
        progress(done, len(order_N))
