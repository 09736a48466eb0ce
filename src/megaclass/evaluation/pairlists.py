"""Lists of pairs in files as LFW's pairs.txt, which name images.

The first line holds the number of folds and of same-identity pairs a fold. Each fold is that many lines of
such pairs, then as many of pairs of two identities (README of Labeled Faces in the Wild, 3c).

Shapes: N = samples, P = pairs.
"""

import os
import re
import zipfile
from pathlib import Path

import numpy as np

from megaclass.data.dataset import read_text
from megaclass.data.imagelist import ImageList
from megaclass.data.open import record_file
from megaclass.data.remote import local
from megaclass.errors import UserError
from megaclass.evaluation.pairs import PairSet, balanced


def open_listed_pairs(pairs_txt: str | Path, path: Path) -> tuple[ImageList, PairSet]:
    """Read a pairs.txt as LFW's and check that its images are under ``path``, a folder or zip file.

    Returns the images, each once, and the pairs as indices into these. Raises UserError: a damaged line (with
    its number), missing images (the first, and how many).
    """
    path = local(path)
    if record_file(path) is not None:
        raise UserError(
            f"{pairs_txt} names images, but the records of {path} have no names; make a .bin from the folder "
            "they were packed from: megaclass data pairs FOLDER --from PAIRS.txt --output FILE.bin"
        )
    folds, same, body = _read_lines(Path(pairs_txt))
    index: dict[str, int] = {}  # image name -> its index, in order of appearance
    pairs = np.empty((len(body), 2), dtype=np.int64)
    for row, (number, line) in enumerate(body):
        names = _image_names(line, bool(same[row]), f"{pairs_txt} line {number}")
        pairs[row] = [index.setdefault(name, len(index)) for name in names]
    images = ImageList(path, list(index))
    if images.root.is_dir():
        # Unlike Path's, this one says no to a name that is too long for any file.
        missing = [name for name in index if not os.path.isfile(images.root / name)]  # noqa: PTH113
    else:
        with zipfile.ZipFile(images.root) as archive:
            missing = sorted(index.keys() - archive.namelist())
    if missing:
        raise UserError(f"{images.root}: {missing[0]} is missing, and {len(missing) - 1} more of {len(index)} images")
    return images, PairSet(pairs[:, 0], pairs[:, 1], same, folds)


# Lines

_NUMBERS = re.compile(r"\s*[0-9]{1,18}\s+[0-9]{1,18}\s*")
_LFW_LINE = re.compile(r"\s*(\S+)\s+0*([1-9][0-9]{0,8})(?:\s+(\S+))?\s+0*([1-9][0-9]{0,8})\s*")


def _read_lines(path: Path) -> tuple[int, np.ndarray, list[tuple[int, str]]]:
    """Folds, which pairs are of one identity, and the lines of all pairs with their numbers."""
    lines = read_text(path, "pairs").splitlines()
    header = lines[0].split() if lines and _NUMBERS.fullmatch(lines[0]) else [0, 0]
    folds, per_fold = map(int, header)
    if folds < 2 or per_fold < 1:
        raise UserError(
            f"{path} line 1: expected the number of folds, two or more, and of same-identity pairs a fold, as "
            "'10 300' (the development lists of LFW have no folds)"
        )
    body = [(number, line) for number, line in enumerate(lines[1:], start=2) if line.strip()]
    expected = folds * 2 * per_fold
    if len(body) != expected:
        raise UserError(f"{path}: {len(body)} pairs, but line 1 announces {folds} x 2 x {per_fold} = {expected}")
    return folds, balanced(folds, per_fold), body


def _image(person: str, number: int) -> str:
    return f"{person}/{person}_{number:04d}.jpg"


def _image_names(line: str, same: bool, where: str) -> list[str]:
    """The two image names of one line of pairs.txt."""
    if found := _LFW_LINE.fullmatch(line):
        one, number, other, second = found.groups()
        names = [_image(one, int(number)), _image(other or one, int(second))]
        if (other is None) == same and other != one and names[0] != names[1]:
            return names
    form = "name n1 n2" if same else "name1 n1 name2 n2"
    raise UserError(
        f"{where}: expected {form!r}, the numbers of two images from 1 on, of {'one person' if same else 'two'}, found "
        f"{line.strip()[:40]!r}"
    )
