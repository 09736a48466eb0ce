"""Pairs of images to verify: read from a published list, or drawn from a labelled set.

Both follow view 2 of Labeled Faces in the Wild (Huang, Ramesh, Berg, Learned-Miller, UMass Amherst
technical report 07-49, 2007): as many pairs of one identity as of two, cut into folds that share no
identity, fold after fold, and in each the same-identity pairs first.

Shapes: N = images, P = pairs, M = drawn pairs of one kind.
"""

import logging
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path

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

    def __post_init__(self) -> None:
        assert self.first.shape == self.second.shape == self.same.shape and self.first.ndim == 1
        assert self.first.dtype == self.second.dtype == np.int64 and self.same.dtype == np.bool_

    def __len__(self) -> int:
        return len(self.first)


# Drawing pairs from a labelled set


def generate_pairs(labels: np.ndarray, count: int, seed: int, folds: int = 10) -> PairSet:
    """Draw ``count`` different pairs from a labelled set (labels: (N,)), half of them of one identity.

    Identities are drawn before images, as for LFW, so that one with many images does not rule the result:
    same-identity pairs spread as evenly as possible over the identities, and the two of a different-identity
    pair are drawn uniformly. One seed gives one list of pairs.

    - ``count`` is rounded down to a multiple of ``2 * folds``. Where a fold has fewer different pairs than
      its share, every fold gets that fewer, so the result may be shorter: ask ``len``.
    - The identities are dealt to the folds, so that folds share none, if each fold can then hold two
      identities and one of them has two images. With fewer identities than that, folds are dealt pairs of
      the whole set instead: no pair occurs twice, but a threshold is then chosen on identities of the tested
      fold too, which flatters the accuracy slightly; a warning says so.

    Raises UserError if the set has no two identities, or no two images of one, or ``count`` is too small.
    """
    if folds < 2 or count < 2 * folds:
        raise UserError(
            f"evaluate.pairs: {count} pairs cannot fill evaluate.folds {folds}; use two folds or more, and two "
            "pairs or more for each"
        )
    rng = np.random.default_rng(seed)
    labels = np.asarray(labels)
    identities = _images_by_identity(labels, rng)
    pairable = sum(len(images) > 1 for images in identities)
    if len(identities) < 2 or pairable == 0:
        raise UserError(
            f"verification: pairs need two identities and two images of one; the set has {len(identities)} "
            f"identities, {pairable} of them with two images or more"
        )
    wanted = count // (2 * folds)
    if pairable >= folds and len(identities) >= 2 * folds:
        groups = [_dealt(identities, fold, folds) for fold in range(folds)]
        wanted = min(wanted, *(min(_positives(group), _negatives(group)) for group in groups))
        positives = [_draw_positives(group, wanted, rng) for group in groups]
        negatives = [_draw_negatives(group, wanted, rng) for group in groups]
    else:
        logger.warning(
            "verification: %d identities (%d with two images) are too few for %d folds without a common one; "
            "the folds share them",
            len(identities),
            pairable,
            folds,
        )
        wanted = min(wanted, _positives(identities) // folds, _negatives(identities) // folds)
        if wanted == 0:
            raise UserError(f"verification: the set has too few different pairs for {folds} folds")
        positives = np.split(_draw_positives(identities, wanted * folds, rng), folds)
        negatives = np.split(_draw_negatives(identities, wanted * folds, rng), folds)

    pairs = np.concatenate([half for fold in zip(positives, negatives, strict=True) for half in fold])
    same = np.tile(np.repeat([True, False], wanted), folds)
    return PairSet(pairs[:, 0].copy(), pairs[:, 1].copy(), same, folds)


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
    if (
        _negatives(identities) <= 4 * wanted
    ):  # drawing anew would take long: number all pairs, and draw numbers
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
        drawn = (
            (ends[low] - 1 - rng.integers(sizes[low])) * len(images)
            + ends[high]
            - 1
            - rng.integers(sizes[high])
        )
        codes = np.concatenate([codes, drawn])
        codes = codes[np.sort(np.unique(codes, return_index=True)[1])]  # the first of each, as drawn
    codes = codes[:wanted]
    return np.stack([images[codes // len(images)], images[codes % len(images)]], axis=1)


# Reading the pairs of LFW


def read_lfw_pairs(pairs_txt: str | Path, images_root_or_zip: str | Path) -> tuple[list[str], PairSet]:
    """Read a ``pairs.txt`` of LFW; return the names of its images and the pairs of indices into them.

    The first line holds the number of folds and of same-identity pairs a fold. Each fold is that many lines
    ``name n1 n2``, then as many ``name1 n1 name2 n2``. Image ``n`` of a person is ``Name/Name_000n.jpg``
    under the folder or inside the zip file.

    Raises UserError: a damaged line (with its number), missing images (the first, and how many).
    """
    path = Path(pairs_txt)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    folds, per_fold = _read_header(path, lines)
    body = [(number, line.split()) for number, line in enumerate(lines[1:], start=2) if line.strip()]
    expected = folds * 2 * per_fold
    if len(body) != expected:
        raise UserError(
            f"{path}: {len(body)} pairs, but line 1 announces {folds} x 2 x {per_fold} = {expected}"
        )

    index: dict[str, int] = {}  # image name -> its index, in order of appearance
    pairs = np.empty((expected, 2), dtype=np.int64)
    same = np.tile(np.repeat([True, False], per_fold), folds)
    for row, (number, fields) in enumerate(body):
        names = _image_names(fields, bool(same[row]), f"{path} line {number}")
        pairs[row] = [index.setdefault(name, len(index)) for name in names]
    _check_present(list(index), Path(images_root_or_zip))
    return list(index), PairSet(pairs[:, 0].copy(), pairs[:, 1].copy(), same, folds)


def _read_header(path: Path, lines: list[str]) -> tuple[int, int]:
    numbers = [_number(field) for field in lines[0].split()] if lines else []
    if len(numbers) != 2 or min(numbers) < 1:
        raise UserError(
            f"{path} line 1: expected the number of folds and of same-identity pairs a fold, as '10 300' "
            "(the development lists of LFW have no folds)"
        )
    folds, per_fold = numbers
    if folds < 2:
        raise UserError(
            f"{path} line 1: {folds} fold; two are needed, since the threshold of one is chosen on the others"
        )
    return folds, per_fold


def _number(text: str) -> int:
    """A number from 1 on, 0 for what is none or too long for one."""
    return int(text) if text.isdecimal() and len(text) <= 9 else 0


def _image_names(fields: list[str], same: bool, where: str) -> list[str]:
    """The two image names of one line of pairs.txt."""
    form = "name n1 n2" if same else "name1 n1 name2 n2"
    if len(fields) != len(form.split()):
        raise UserError(f"{where}: expected {len(form.split())} columns '{form}', found {len(fields)}")
    people = [fields[0], fields[0]] if same else [fields[0], fields[2]]
    numbers = fields[1:] if same else [fields[1], fields[3]]
    if not all(map(_number, numbers)):
        found = " and ".join(number[:20] for number in numbers)
        raise UserError(f"{where}: image numbers are whole numbers from 1, found {found}")
    names = [f"{name}/{name}_{int(number):04d}.jpg" for name, number in zip(people, numbers, strict=True)]
    if names[0] == names[1] or (not same and people[0] == people[1]):
        raise UserError(f"{where}: the pair names {names[0]} and {names[1]}, which is no {form!r} pair")
    return names


def _check_present(names: list[str], root: Path) -> None:
    if root.is_dir():
        missing = [name for name in names if not (root / name).is_file()]
    else:
        try:
            with zipfile.ZipFile(root) as archive:
                present = set(archive.namelist())
        except (OSError, RuntimeError, ValueError, struct.error, zipfile.BadZipFile) as error:
            raise UserError(f"{root}: neither a folder nor a readable zip file of images ({error})") from None
        missing = [name for name in names if name not in present]
    if missing:
        raise UserError(
            f"{root}: {missing[0]} is missing, and {len(missing) - 1} more of {len(names)} images"
        )
