"""Pairs of images to verify, and how they are drawn from a labelled set.

They follow view 2 of Labeled Faces in the Wild (Huang, Ramesh, Berg, Learned-Miller, UMass Amherst
technical report 07-49, 2007): as many pairs of one identity as of two, cut into folds that share no
identity, fold after fold, and in each the same-identity pairs first.

Shapes: N = images, P = pairs, M = drawn pairs of one kind.
"""

import logging
from dataclasses import dataclass

import numpy as np

from megaclass.errors import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class PairSet:
    """P pairs of image indices, in fold order: the first P/folds pairs are fold 0, and so on."""

    first: np.ndarray  # int64 (P,)
    second: np.ndarray  # int64 (P,)
    same: np.ndarray  # bool (P,): both images show one identity
    folds: int = 10

    def __len__(self) -> int:
        return len(self.first)


def balanced(folds: int, per_fold: int) -> np.ndarray:
    """Which pairs are of one identity, as lists have them: in each fold the first half. Bool (P,)."""
    return np.tile(np.repeat([True, False], per_fold), folds)


def generate_pairs(labels: np.ndarray, count: int, seed: int, folds: int = 10) -> PairSet:
    """Draw ``count`` different pairs from a labelled set (labels: (N,)), half of them of one identity.

    Identities are drawn before images, as for LFW, so that one with many images does not rule the result:
    same-identity pairs spread as evenly as possible over the identities, and the two of a different-identity
    pair are drawn uniformly. One seed gives one list of pairs.

    - ``count`` is rounded down to a multiple of ``2 * folds``. Where a fold has fewer different pairs than
      its share, every fold gets that fewer, and a warning says so.
    - The identities are dealt to the folds, so that folds share none, if each fold can then hold two
      identities and one of them has two images. With fewer identities than that, folds are dealt pairs of
      the whole set instead: no pair occurs twice, but a threshold is then chosen on identities of the tested
      fold too, which flatters the accuracy slightly; a warning says so.

    Raises UserError if there is no pair of each kind for every fold, or ``count`` is too small.
    """
    if folds < 2 or count < 2 * folds:
        raise UserError(
            f"{count} pairs cannot fill {folds} folds; use two folds or more, and two pairs or more for each"
        )
    rng = np.random.default_rng(seed)
    identities = _images_by_identity(labels, rng)
    pairable = sum(len(images) > 1 for images in identities)
    groups = [identities]
    if pairable >= folds and len(identities) >= 2 * folds:
        groups = [_dealt(identities, fold, folds) for fold in range(folds)]
    shared = folds // len(groups)  # folds that have their pairs from one group
    possible = min(min(_positives(group), _negatives(group)) for group in groups) // shared
    found = f"{len(identities)} identities ({pairable} with two images)"
    if possible == 0:
        raise UserError(f"verification: {found} have too few pairs of one identity, or of two, for {folds} folds")
    if shared > 1:
        logger.warning(
            "verification: %s are too few for %d folds without a common one; the folds share them",
            found,
            folds,
        )
    wanted = count // (2 * folds)
    if possible < wanted:
        asked, drawn = (f"{2 * folds * number:,}" for number in (wanted, possible))
        logger.warning("verification: %s pairs asked for, %s drawn: some fold has no more different ones", asked, drawn)
        wanted = possible
    halves = [
        [part for group in groups for part in np.split(draw(group, wanted * shared, rng), shared)]
        for draw in (_draw_positives, _draw_negatives)
    ]
    pairs = np.concatenate([half for fold in zip(*halves, strict=True) for half in fold])
    return PairSet(pairs[:, 0], pairs[:, 1], balanced(folds, wanted), folds)


def _images_by_identity(labels: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """The image indices of each identity; identities in random order, then those with most images first."""
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.diff(labels[order])) + 1
    identities = np.split(order.astype(np.int64), starts) if len(labels) else []
    rng.shuffle(identities)
    return sorted(identities, key=len, reverse=True)


def _dealt(identities: list[np.ndarray], fold: int, folds: int) -> list[np.ndarray]:
    """Every ``folds``-th identity, back and forth, so that each fold gets its share of the large ones."""
    return [
        images
        for turn in range(0, len(identities), folds)
        for images in identities[turn : turn + folds][:: 1 if turn // folds % 2 == 0 else -1][fold : fold + 1]
    ]


def _positives(identities: list[np.ndarray]) -> int:
    return sum(len(images) * (len(images) - 1) // 2 for images in identities)


def _negatives(identities: list[np.ndarray]) -> int:
    total = sum(len(images) for images in identities)
    return (total * total - sum(len(images) ** 2 for images in identities)) // 2


def _draw_positives(identities: list[np.ndarray], wanted: int, rng: np.random.Generator) -> np.ndarray:
    """(M, 2): one random pair of each identity, then a second one of each that has one, and so on."""
    pairs, rounds = [], []
    for images in identities:
        possible = len(images) * (len(images) - 1) // 2
        drawn = rng.choice(possible, size=min(wanted, possible), replace=False)
        # Pair number t of the lower triangle is (row, column) with row * (row-1) / 2 <= t.
        row = np.floor((1 + np.sqrt(1 + 8 * drawn)) / 2).astype(np.int64)
        pairs.append(np.stack([images[row], images[drawn - row * (row - 1) // 2]], axis=1))
        rounds.append(np.arange(len(drawn)) + rng.random(len(drawn)))  # random order within a round
    chosen = np.argsort(np.concatenate(rounds))[:wanted]
    return rng.permutation(np.concatenate(pairs)[chosen])


def _draw_negatives(identities: list[np.ndarray], wanted: int, rng: np.random.Generator) -> np.ndarray:
    """(M, 2): two identities, then an image of each; a pair seen before is drawn anew."""
    images = np.concatenate(identities)
    sizes = np.array([len(group) for group in identities])
    ends = np.cumsum(sizes)
    # Drawing anew would take long: number all pairs, and draw numbers.
    if _negatives(identities) <= 4 * wanted:
        partners = len(images) - np.repeat(ends, sizes)  # of each image, all in the identities after its own
        last = np.cumsum(partners)
        number = rng.choice(last[-1], size=wanted, replace=False)
        one = np.searchsorted(last, number, side="right")
        return np.stack([images[one], images[len(images) - (last[one] - number)]], axis=1)
    codes = np.empty(0, dtype=np.int64)
    while len(codes) < wanted:
        one = rng.integers(len(identities), size=wanted)
        other = (one + rng.integers(1, len(identities), size=wanted)) % len(identities)
        low, high = np.minimum(one, other), np.maximum(one, other)
        drawn = (ends[low] - 1 - rng.integers(sizes[low])) * len(images) + ends[high] - 1 - rng.integers(sizes[high])
        codes = np.concatenate([codes, drawn])
        codes = codes[np.sort(np.unique(codes, return_index=True)[1])]  # the first of each, as drawn
    codes = codes[:wanted]
    return np.stack([images[codes // len(images)], images[codes % len(images)]], axis=1)
