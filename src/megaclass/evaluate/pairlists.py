"""Lists of pairs in files: LFW's pairs.txt, which names images, and the like with numbers of samples.

The first line holds the number of folds and of same-identity pairs a fold. Each fold is that many lines of
such pairs, then as many of pairs of two identities (README of Labeled Faces in the Wild, 3c). A record set has
no names of images: its pairs are lines of two sample numbers, counted from 0.

Shapes: N = samples, P = pairs.
"""

import re
import struct
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from megaclass.errors import UserError
from megaclass.evaluate.pairs import PairSet


def is_numbered(pairs_txt: str | Path) -> bool:
    """Whether the list holds numbers of samples instead of names."""
    *_, body = _read_lines(Path(pairs_txt))
    return all(_NUMBERS.fullmatch(line) for _, line in body[:1])


def read_numbered_pairs(pairs_txt: str | Path, labels: np.ndarray) -> PairSet:
    """Read pairs of sample numbers, of a set with these ``labels``, (N,).

    The labels decide whether list and set belong together: a pair of one identity must be of one class, and
    one of two of two. Raises UserError (with the number of the line) for a pair that is not, or is damaged.
    """
    path = Path(pairs_txt)
    folds, per_fold, body = _read_lines(path)
    pairs, same = np.empty((len(body), 2), dtype=np.int64), _same(folds, per_fold)
    for row, (number, line) in enumerate(body):
        if not _NUMBERS.fullmatch(line):
            raise UserError(f"{path} line {number}: expected two sample numbers, found {line[:40]!r}")
        pairs[row] = [int(field) for field in line.split()]
        if pairs[row].max() >= len(labels):
            raise UserError(
                f"{path} line {number}: sample {pairs[row].max()}, but the set has {len(labels):,}; was the list "
                "made for another set?"
            )
        if pairs[row, 0] == pairs[row, 1]:
            raise UserError(f"{path} line {number}: a pair of sample {pairs[row, 0]} with itself")
    wrong = np.flatnonzero((labels[pairs[:, 0]] == labels[pairs[:, 1]]) != same)
    if len(wrong):
        number, line = body[wrong[0]]
        one, other = labels[pairs[wrong[0]]].tolist()
        raise UserError(
            f"{path} line {number}: samples {' and '.join(line.split())} are of the classes {one} and {other}, but "
            f"stand among the pairs of {'one identity' if same[wrong[0]] else 'two'}; was the list made for another "
            "set?"
        )
    return PairSet(pairs[:, 0].copy(), pairs[:, 1].copy(), same, folds)


def write_numbered_pairs(path: str | Path, pairs: PairSet) -> None:
    """Write pairs as numbers of samples. UserError if the file exists."""
    _write_lines(Path(path), pairs, lambda row: f"{pairs.first[row]}\t{pairs.second[row]}")


def write_lfw_pairs(path: str | Path, names: Sequence[str], pairs: PairSet) -> None:
    """Write pairs as LFW does. ``names`` are all images, (N,), as ``Name/Name_0001.jpg``.

    Raises UserError for another name among the images of the pairs, and if the file exists.
    """

    def line(row: int) -> str:
        (one, i), (other, j) = (_person(names[index]) for index in (pairs.first[row], pairs.second[row]))
        return f"{one}\t{i}\t{j}" if pairs.same[row] else f"{one}\t{i}\t{other}\t{j}"

    _write_lines(Path(path), pairs, line)


def read_lfw_pairs(pairs_txt: str | Path, images_root_or_zip: str | Path) -> tuple[list[str], PairSet]:
    """Read a ``pairs.txt`` of LFW; return the names of its images and the pairs of indices into them.

    The first line holds the number of folds and of same-identity pairs a fold. Each fold is that many lines
    ``name n1 n2``, then as many ``name1 n1 name2 n2``. Image ``n`` of a person is ``Name/Name_000n.jpg``
    under the folder or inside the zip file.

    Raises UserError: a damaged line (with its number), missing images (the first, and how many).
    """
    path = Path(pairs_txt)
    folds, per_fold, body = _read_lines(path)
    index: dict[str, int] = {}  # image name -> its index, in order of appearance
    pairs = np.empty((len(body), 2), dtype=np.int64)
    same = _same(folds, per_fold)
    for row, (number, line) in enumerate(body):
        names = _image_names(line.split(), bool(same[row]), f"{path} line {number}")
        pairs[row] = [index.setdefault(name, len(index)) for name in names]
    _check_present(list(index), Path(images_root_or_zip))
    return list(index), PairSet(pairs[:, 0].copy(), pairs[:, 1].copy(), same, folds)


# Lines

_NUMBERS = re.compile(r"\s*[0-9]{1,18}\s+[0-9]{1,18}\s*")
_LFW_NAME = re.compile(r"([^\s/]+)/\1_([0-9]{4,9})\.jpg")


def _read_lines(path: Path) -> tuple[int, int, list[tuple[int, str]]]:
    """Folds, same-identity pairs a fold, and the lines of all pairs with their numbers."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    folds, per_fold = _read_header(path, lines)
    body = [(number, line) for number, line in enumerate(lines[1:], start=2) if line.strip()]
    expected = folds * 2 * per_fold
    if len(body) != expected:
        raise UserError(
            f"{path}: {len(body)} pairs, but line 1 announces {folds} x 2 x {per_fold} = {expected}"
        )
    return folds, per_fold, body


def _same(folds: int, per_fold: int) -> np.ndarray:
    """Which pairs are of one identity: in each fold the first half. Bool (P,)."""
    return np.tile(np.repeat([True, False], per_fold), folds)


def _write_lines(path: Path, pairs: PairSet, line: Callable[[int], str]) -> None:
    per_fold = len(pairs) // (2 * pairs.folds)
    if not np.array_equal(pairs.same, _same(pairs.folds, per_fold)):
        raise ValueError("a list has as many pairs of one identity as of two in each fold, and those first")
    text = "\n".join([f"{pairs.folds}\t{per_fold}", *map(line, range(len(pairs)))]) + "\n"
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}; name another file") from None


def _person(name: str) -> tuple[str, int]:
    """The person and the number in ``Name/Name_0001.jpg``."""
    found = _LFW_NAME.fullmatch(name)
    if not found or name != f"{found[1]}/{found[1]}_{int(found[2]):04d}.jpg" or int(found[2]) < 1:
        raise UserError(
            f"{name}: a pairs.txt as LFW's names images Name/Name_0001.jpg; rename them, or write numbers (--numbered)"
        )
    return found[1], int(found[2])


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
        missing = [name for name in names if not _is_file(root / name)]
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


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long for any file
        return False
