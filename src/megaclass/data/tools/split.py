"""A data set split by identity into two record sets. Images keep their very bytes.

Shapes: N = images, K = classes.
"""

import contextlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from megaclass.data.dataset import DamagedSampleError, class_names
from megaclass.data.decode import check_header
from megaclass.data.open import open_dataset
from megaclass.data.records.writer import RecordWriter
from megaclass.data.sampler import drawn
from megaclass.data.threads import in_order
from megaclass.errors import UserError

Progress = Callable[[int, int], None]

_READS = 16  # at once
_PIECE_IMAGES = 4  # a read; twice as many pieces as reads are in memory, and images may be large


def split(
    path: str | Path, output: str | Path, share: float, seed: int, progress: Progress
) -> tuple[RecordWriter, RecordWriter]:
    """Split the set under ``path`` by class into ``output/train`` and ``output/test``.

    That ``share`` of the classes goes to the second part, drawn by ``seed`` among those with two images or more:
    pairs of one identity need two. The others go to the first part. Classes are numbered from 0 in both, in their
    old order; those without images are left out. ``classes.txt`` of each part has the names of its classes, or
    their old numbers if they have no names. Returns the closed writers, which say what they wrote: ``path``, ``count``
    and ``num_classes``. UserError for a set that cannot be read whole; ``output`` then holds nothing new. Memory: a few
    times 8 bytes an image.
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
        images, done = range(len(dataset)), 0
        pieces = (images[start : start + _PIECE_IMAGES] for start in images[::_PIECE_IMAGES])
        for samples in in_order(lambda numbers: [dataset.read(n) for n in numbers], pieces, _READS):
            for encoded, label in samples:
                size = None
                # An image that is damaged is copied as it is: training decides what to do about it.
                with contextlib.suppress(DamagedSampleError):
                    size = check_header(encoded, "")
                writer = second if second_K[label] else first
                writer.write(encoded, int(numbers_K[label]), size)
            done += len(samples)
            progress(done, len(dataset))
        # Both are written before either gets its name: one alone would look whole.
        first.prepare()
        second.prepare()
    return first, second
