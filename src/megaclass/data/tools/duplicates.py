"""The same image more than once, found by 128 bits of hash an image.

Shapes: N = images.
"""

import hashlib
from collections.abc import Iterator

import numpy as np

HASH = np.dtype([("high", "<u8"), ("low", "<u8")])


def image_hash(encoded: bytes) -> np.ndarray:
    """128 bits that two images share only if their bytes are the same."""
    return np.frombuffer(hashlib.sha256(encoded).digest()[: HASH.itemsize], HASH)[0]


def duplicates(hashes_N: np.ndarray, known_N: np.ndarray) -> Iterator[tuple[int, int]]:
    """(first, other) for every image that was there before, by the number of the first one.

    ``known_N`` says for which images there is a hash. Memory: 24 bytes an image beyond the hashes.
    """
    images_N = np.flatnonzero(known_N)
    high_N = hashes_N["high"][images_N]
    order_N = np.argsort(high_N)
    same_N = high_N[order_N][1:] == high_N[order_N][:-1]
    del high_N
    # Few are left: those that share half of their bits with another.
    shared_N = np.zeros(len(images_N), bool)
    shared_N[1:] |= same_N
    shared_N[:-1] |= same_N
    candidates = images_N[order_N[shared_N]]
    candidates = candidates[
        np.lexsort((candidates, hashes_N["low"][candidates], hashes_N["high"][candidates]))
    ]
    found = []
    first = -1
    for image in candidates.tolist():
        if first >= 0 and hashes_N[image] == hashes_N[first]:
            found.append((first, image))
        else:
            first = image
    return iter(sorted(found))
