"""The identity records of a face set against the labels of its images.

Shapes: I = identity records, N = images.
"""

from collections.abc import Iterator

import numpy as np

from megaclass.data.records.reader import MAX_EXACT


def disagreements(
    bounds_I2: np.ndarray, keys_N: np.ndarray, labels_N: np.ndarray
) -> Iterator[tuple[int, str]]:
    """(number of the identity record, what is wrong) for each that disagrees with the images.

    ``bounds_I2``: the first key and one past the last of each identity's images; ``keys_N``: of all images,
    ascending; ``labels_N``: theirs, -1 where it is unknown. All int64. Keys from 2**24 on are not looked at: as
    float32 has it, the bounds are rounded there.
    """
    if len(keys_N) == 0 or int(keys_N[-1]) >= MAX_EXACT:
        return
    first_I, last_I = bounds_I2[:, 0], bounds_I2[:, 1]
    outside_I = (last_I < first_I) | (first_I < keys_N[0]) | (last_I > keys_N[-1] + 1)
    for number in np.flatnonzero(outside_I).tolist():
        yield (
            number,
            f"states the keys {first_I[number]} to {last_I[number] - 1}, images have {keys_N[0]} to {keys_N[-1]}",
        )
    inside = np.flatnonzero(~outside_I)
    known_N = labels_N >= 0
    yield from _labels(inside, bounds_I2[inside], keys_N[known_N], labels_N[known_N])
    yield from _cover(inside, bounds_I2[inside], int(keys_N[0]), int(keys_N[-1]) + 1)


def _labels(
    numbers_I: np.ndarray, bounds_I2: np.ndarray, keys_N: np.ndarray, labels_N: np.ndarray
) -> Iterator[tuple[int, str]]:
    """Identities whose images differ in label. (A label may have several identities: some public sets do.)"""
    if len(keys_N) == 0:
        return
    start_I, stop_I = np.searchsorted(keys_N, bounds_I2[:, 0]), np.searchsorted(keys_N, bounds_I2[:, 1])
    held = stop_I > start_I
    numbers_I, start_I, stop_I = numbers_I[held], start_I[held], stop_I[held]
    # So often the label has changed up to an image: within an identity it must not.
    changes_N = np.concatenate([[0], np.cumsum(labels_N[1:] != labels_N[:-1])])
    mixed_I = changes_N[start_I] != changes_N[stop_I - 1]
    for at in np.flatnonzero(mixed_I).tolist():
        start, stop = int(start_I[at]), int(stop_I[at])
        other = start + int(np.argmax(labels_N[start:stop] != labels_N[start]))
        yield (
            int(numbers_I[at]),
            f"of its images, record {keys_N[start]} has the label {labels_N[start]}, record {keys_N[other]} "
            f"the label {labels_N[other]}",
        )


def _cover(numbers_I: np.ndarray, bounds_I2: np.ndarray, start: int, stop: int) -> Iterator[tuple[int, str]]:
    """Keys of images, from ``start`` to ``stop - 1``, that belong to no identity or to two."""
    if len(numbers_I) == 0:
        return
    order = np.argsort(bounds_I2[:, 0], kind="stable")
    first_I, last_I = bounds_I2[order, 0], bounds_I2[order, 1]
    before_I = np.concatenate([[start], last_I[:-1]])
    for at in np.flatnonzero(before_I != first_I).tolist():
        low, high = sorted((int(before_I[at]), int(first_I[at])))
        whose = "no identity" if before_I[at] < first_I[at] else "two identities"
        yield int(numbers_I[order[at]]), f"before its images, the keys {low} to {high - 1} belong to {whose}"
    if last_I[-1] < stop:
        yield (
            int(numbers_I[order[-1]]),
            f"behind its images, the keys {last_I[-1]} to {stop - 1} belong to no identity",
        )
