"""``glyphs``: the embedded data set, drawn from the typefaces that matplotlib ships.

An identity is a character; its samples are typefaces under small affine changes. Characters that are
drawn alike (Latin A, Greek Alpha, Cyrillic A; a letter and its superscript) are one identity, since
nobody could tell them apart in an image that is centred and scaled to its ink. Whole identities are held
out for verification. Everything is written once as RecordIO with JPEG images, so that the default run
goes through the reader that reads public face sets.

Shapes: F = typefaces, C = characters, K = drawings of one identity, P = pixels of a thumbnail,
N = drawings in all, V = variants of a drawing.
"""

import contextlib
import itertools
import json
import shutil
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg

from megaclass.data.records.writer import RecordWriter
from megaclass.errors import UserError

VERSION = 1  # raise it when the same parameters would give other images
_SEED = 0
STAMP = "glyphs.json"
VARIANTS = 3  # affine variants of each drawing
MIN_DRAWINGS = 6  # an identity needs at least as many typefaces that draw it differently

_GRID = 32  # side of the thumbnails that are compared; the ink fills 28 of it
_SAME_DRAWING = 0.01  # squared distance relative to the ink: typefaces that share one outline
_SOLID = 0.9  # share of its convex hull that a shapeless character fills
_CANDIDATE = 0.15  # the same measure as a cheap filter before characters are compared closely
# Closely: the largest difference of any 3x3 neighbourhood, as a share of full ink, averaged over typefaces.
# Below 0.2 lie A and Alpha, up to 0.38 the two Greek breathings, from 0.4 on acute and grave. A subscript is
# drawn with heavier strokes than its letter, so pairs that Unicode relates may differ more.
_ALIKE = 0.38
_ALIKE_RELATED = 0.72

_INK = 0.76  # longest side of the ink as a share of the image
_OVERSAMPLE = 2  # drawings are rendered larger than they are stored, so that the warp resamples cleanly


class Drawing(NamedTuple):
    """One typeface's picture of one character."""

    face: int
    codepoint: int


class Typeface:
    """One font file and the characters that may be taken from it."""

    def __init__(self, path: Path) -> None:
        from matplotlib.ft2font import FT2Font  # not at import: only the first run draws

        self._font = FT2Font(str(path))
        codepoints = [c for c, glyph in self._font.get_charmap().items() if glyph != 0 and _is_printable(c)]
        if path.stem.startswith("cm"):
            # TeX's own encodings agree with Unicode on plain letters and digits only.
            codepoints = [c for c in codepoints if c < 128 and chr(c).isalnum()]
        self.codepoints = frozenset(codepoints)

    def ink(self, codepoint: int, longest: float) -> np.ndarray | None:
        """The glyph as uint8 HxW (255 = ink), cropped to its ink, the longest side ``longest`` pixels.

        Returns None for a blank glyph.
        """
        from matplotlib.ft2font import LoadFlags

        em = 100.0
        for _ in range(2):  # once to measure, once at the size that gives the asked-for extent
            self._font.set_size(em, 72)
            glyph = self._font.load_char(codepoint, LoadFlags.NO_HINTING)
            left, bottom, right, top = (side / 64 for side in glyph.bbox)
            extent = max(right - left, top - bottom)
            if extent < 0.5:
                return None
            em *= longest / extent
        canvas = np.zeros((int(top - bottom) + 4, int(right - left) + 4), np.uint8)
        self._font.draw_glyph_to_bitmap(canvas, 1 - int(np.floor(left)), 1, glyph, antialiased=True)
        rows, columns = np.flatnonzero(canvas.any(1)), np.flatnonzero(canvas.any(0))
        if len(rows) == 0:
            return None
        return canvas[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def ensure(directory: Path, image_size: int, held_out: int, max_characters: int | None = None) -> Path:
    """Make the data set under ``directory`` unless it is there already, and return that path.

    ``directory/train`` and ``directory/test`` are record sets of grey JPEG images of ``image_size`` pixels
    square; ``test`` holds ``held_out`` identities that ``train`` has not. ``classes.txt`` in each names the
    characters, one line a class. ``max_characters`` takes the first code points only: a small set for tests.

    The set appears in one rename, so a killed process leaves no half of it. Raises UserError if the directory holds
    something else or a set made with other parameters. One process at a time may call this.
    """
    if image_size < 16:
        raise UserError(f"image_size: {image_size} is too small to draw a character; use 16 or more")
    parameters = {
        "format": "megaclass glyphs",
        "version": VERSION,
        "image_size": image_size,
        "held_out": held_out,
        "seed": _SEED,
        "max_characters": max_characters,
    }
    if directory.exists():
        _require_same(directory, parameters)
        return directory
    directory.parent.mkdir(parents=True, exist_ok=True)
    building = directory.with_name(f".{directory.name}.part")
    shutil.rmtree(building, ignore_errors=True)  # of a killed process
    building.mkdir()
    try:
        counts = _build(building, image_size, held_out, max_characters)
        (building / STAMP).write_text(json.dumps(parameters | counts, indent=2) + "\n", encoding="utf-8")
        building.rename(directory)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return directory


def _require_same(directory: Path, parameters: dict[str, object]) -> None:
    """UserError unless a set of these parameters is there."""
    try:
        stamp = dict(json.loads((directory / STAMP).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        stamp = {}
    differing = [f"{k} {stamp.get(k)} instead of {v}" for k, v in parameters.items() if stamp.get(k) != v]
    if differing:
        raise UserError(
            f"{directory} is not this glyphs data set ({', '.join(differing)}); name another directory, or for "
            "images of your own set data.source to folder or records"
        )


def _build(directory: Path, image_size: int, held_out: int, max_characters: int | None) -> dict[str, int]:
    """Draw, group, split and write. Returns the counts that the stamp records."""
    faces = typefaces()
    groups = identities(faces, max_characters)
    if not 0 < held_out < len(groups):
        raise UserError(f"held_out: {held_out} of {len(groups)} identities cannot be held out")
    rng = np.random.default_rng(_SEED)
    is_test = np.zeros(len(groups), bool)
    is_test[rng.permutation(len(groups))[:held_out]] = True
    counts: dict[str, int] = {}
    for name, chosen in (("train", np.flatnonzero(~is_test)), ("test", np.flatnonzero(is_test))):
        classes = [_class_name(drawing.codepoint for drawing in groups[group]) for group in chosen]
        size = (image_size, image_size)
        with RecordWriter(directory / name, classes=classes) as writer:
            for label, group in enumerate(chosen):
                matrices_NV23 = _variant_matrices(rng, len(groups[group]))
                for drawing, matrices_V23 in zip(groups[group], matrices_NV23, strict=True):
                    for encoded in _encode_variants(faces, drawing, matrices_V23, image_size):
                        writer.write(encoded, label, size)
        counts |= {f"{name}_identities": len(chosen), f"{name}_images": writer.count}
    return counts


# --- which drawings make an identity ----------------------------------------------------------------


def typefaces() -> list[Typeface]:
    """The text typefaces that matplotlib ships, by file name. UserError if they were stripped from it."""
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    patterns = ("DejaVuSans*.ttf", "DejaVuSerif*.ttf", "STIXGeneral*.ttf", "cm[brst]*.ttf")
    paths = sorted(path for pattern in patterns for path in folder.glob(pattern))
    # Left out: display cuts with a few dozen glyphs, and TeX's symbol fonts.
    faces = [Typeface(path) for path in paths if "Display" not in path.stem and path.stem != "cmsy10"]
    if len(faces) < MIN_DRAWINGS:
        raise UserError(f"{folder} has {len(faces)} typefaces; glyphs needs matplotlib's own fonts")
    return faces


def identities(faces: list[Typeface], max_characters: int | None = None) -> list[list[Drawing]]:
    """Group drawings into identities, ordered by their first code point.

    A character counts if at least ``MIN_DRAWINGS`` typefaces draw it differently: the symbols that one
    font lends to all its cuts would make an identity without any variation.
    """
    from scipy.sparse import coo_array  # not at import: only the first run draws
    from scipy.sparse.csgraph import connected_components

    seen: dict[int, int] = defaultdict(int)
    for codepoint in itertools.chain.from_iterable(face.codepoints for face in faces):
        seen[codepoint] += 1
    codepoints = sorted(c for c, count in seen.items() if count >= MIN_DRAWINGS)[:max_characters]
    thumbs_FCP = _thumbnails(faces, codepoints)
    usable = [
        len(_distinct(thumbs_FCP[:, i])) >= MIN_DRAWINGS and _has_shape(thumbs_FCP[:, i])
        for i in range(len(codepoints))
    ]
    thumbs_FCP = thumbs_FCP[:, usable]
    codepoints = list(itertools.compress(codepoints, usable))
    members: dict[int, list[int]] = defaultdict(list)
    first_M, second_M = _alike_pairs(codepoints, thumbs_FCP).T
    shape = (len(codepoints), len(codepoints))
    alike = coo_array((np.ones(len(first_M)), (first_M, second_M)), shape)
    for i, component in enumerate(connected_components(alike, directed=False)[1]):
        members[component].append(i)
    groups = []
    for indices in members.values():
        # Typeface by typeface, so that of equal drawings the one of the first character is kept.
        thumbs_KP = thumbs_FCP[:, indices].transpose(1, 0, 2).reshape(-1, _GRID * _GRID)
        drawn = [Drawing(face, codepoints[i]) for i in indices for face in range(len(faces))]
        groups.append([drawn[k] for k in _distinct(thumbs_KP)])
    return groups


def _is_printable(codepoint: int) -> bool:
    # C: control, format, private use, surrogate, unassigned. Z: spaces and separators.
    return codepoint < 0x110000 and unicodedata.category(chr(codepoint))[0] not in "CZ"


def _thumbnails(faces: list[Typeface], codepoints: list[int]) -> np.ndarray:
    """uint8 FxCxP: each glyph centred in a small square, all zero where the typeface lacks it."""
    side = 2 * _GRID
    thumbs_FCP = np.zeros((len(faces), len(codepoints), _GRID * _GRID), np.uint8)
    for f, face in enumerate(faces):
        for c, codepoint in enumerate(codepoints):
            ink = face.ink(codepoint, longest=side - 8) if codepoint in face.codepoints else None
            if ink is None:
                continue
            canvas = np.zeros((side, side), np.uint8)
            height, width = ink.shape
            top, left = (side - height) // 2, (side - width) // 2
            canvas[top : top + height, left : left + width] = ink
            thumbs_FCP[f, c] = cv2.resize(canvas, (_GRID, _GRID), interpolation=cv2.INTER_AREA).ravel()
    return thumbs_FCP


def _relative_distances(thumbs_KP: np.ndarray) -> np.ndarray:
    """KxK squared distances as a share of the two inks: 0 = equal, 1 = no ink in common; NaN if blank."""
    thumbs_KP = thumbs_KP.astype(np.float32) / 255
    products_KK = thumbs_KP @ thumbs_KP.T
    norms_K = products_KK.diagonal().copy()
    norms_K[norms_K == 0] = np.nan
    return 1 - 2 * products_KK / (norms_K[:, None] + norms_K)


def _distinct(thumbs_KP: np.ndarray) -> list[int]:
    """Indices of the drawings that differ from each one before them, blank ones left out."""
    distances_KK = _relative_distances(thumbs_KP)
    kept: list[int] = []
    for k in np.flatnonzero(~np.isnan(distances_KK.diagonal())):
        if not (distances_KK[k, kept] <= _SAME_DRAWING).any():
            kept.append(int(k))
    return kept


def _has_shape(thumbs_KP: np.ndarray) -> bool:
    """False for bars, dots, blocks and bare accents: filled convex shapes, told apart by aspect alone."""
    solidity = []
    for thumb_P in thumbs_KP[thumbs_KP.any(1)]:
        ink = (thumb_P.reshape(_GRID, _GRID) > 96).astype(np.uint8)
        hull = cv2.convexHull(cv2.findNonZero(ink))
        solidity.append(ink.sum() / cv2.fillConvexPoly(np.zeros_like(ink), hull, 1).sum())
    return float(np.median(solidity)) < _SOLID


def _alike_pairs(codepoints: list[int], thumbs_FCP: np.ndarray) -> np.ndarray:
    """Mx2 index pairs of characters that are drawn alike in the typefaces that have both."""
    total_CC = np.zeros((len(codepoints), len(codepoints)), np.float32)
    shared_CC = np.zeros_like(total_CC)
    for thumbs_CP in thumbs_FCP:
        distances_CC = _relative_distances(thumbs_CP)
        shared_CC += ~np.isnan(distances_CC)
        total_CC += np.nan_to_num(distances_CC, copy=False)
    comparable_CC = np.triu(shared_CC >= MIN_DRAWINGS // 2, 1)
    close = np.argwhere(comparable_CC & (total_CC < _CANDIDATE * shared_CC))
    related = [pair for pair in _related_pairs(codepoints) if comparable_CC[pair]]
    related_M2 = np.array(related, np.int64).reshape(-1, 2)
    pairs_M2 = np.concatenate([close, related_M2])
    limit_M = np.repeat([_ALIKE, _ALIKE_RELATED], [len(close), len(related_M2)])
    return pairs_M2[_local_differences(thumbs_FCP, pairs_M2) < limit_M]


def _local_differences(thumbs_FCP: np.ndarray, pairs_M2: np.ndarray) -> np.ndarray:
    """For each pair the largest difference of any 3x3 neighbourhood, averaged over shared typefaces."""
    total_M = np.zeros(len(pairs_M2))
    shared_M = np.zeros(len(pairs_M2))
    first_M, second_M = pairs_M2.T
    for thumbs_CP in thumbs_FCP:
        has_C = thumbs_CP.any(1)
        blurred_CP = np.stack([cv2.blur(t.reshape(_GRID, _GRID), (3, 3)).ravel() for t in thumbs_CP])
        both_M = has_C[first_M] & has_C[second_M]
        for chunk in np.array_split(np.flatnonzero(both_M), 1 + len(pairs_M2) // 4096):
            a, b = blurred_CP[first_M[chunk]], blurred_CP[second_M[chunk]]
            total_M[chunk] += (np.maximum(a, b) - np.minimum(a, b)).max(1, initial=0) / 255
        shared_M += both_M
    return total_M / shared_M


def _related_pairs(codepoints: list[int]) -> list[tuple[int, int]]:
    """Index pairs (low, high) of characters that Unicode calls cases, sizes or positions of one another."""
    stems: dict[str, list[int]] = defaultdict(list)
    for i, codepoint in enumerate(codepoints):
        text = unicodedata.normalize("NFKC", chr(codepoint))  # superscripts, fullwidth, Roman numerals
        name = unicodedata.name(text, "") if len(text) == 1 else ""
        if "LETTER SMALL CAPITAL " in name:
            with contextlib.suppress(KeyError):  # some, such as the turned ones, have no capital
                text = unicodedata.lookup(name.replace("LETTER SMALL CAPITAL ", "CAPITAL LETTER "))
        stems[text.casefold()].append(i)
    return [pair for indices in stems.values() for pair in itertools.combinations(indices, 2)]


# --- images -----------------------------------------------------------------------------------------


def _variant_matrices(rng: np.random.Generator, drawings: int) -> np.ndarray:
    """NxVx2x3: linear part and shift (as a share of the image) of small random affine changes."""
    shape = (drawings, VARIANTS)
    turn = np.deg2rad(rng.uniform(-8, 8, shape))
    shear = np.tan(np.deg2rad(rng.uniform(-6, 6, shape)))
    scale = rng.uniform(0.85, 1.05, shape)
    matrices_NV23 = np.empty((*shape, 2, 3))
    matrices_NV23[..., 0, 0] = scale * np.cos(turn)
    matrices_NV23[..., 1, 0] = scale * np.sin(turn)
    matrices_NV23[..., 0, 1] = scale * (shear * np.cos(turn) - np.sin(turn))
    matrices_NV23[..., 1, 1] = scale * (shear * np.sin(turn) + np.cos(turn))
    matrices_NV23[..., 2] = rng.uniform(-0.03, 0.03, (*shape, 2))
    return matrices_NV23


def _encode_variants(
    faces: list[Typeface], drawing: Drawing, matrices_V23: np.ndarray, image_size: int
) -> Iterable[bytes]:
    """Dark ink on white, one grey JPEG a matrix."""
    ink = faces[drawing.face].ink(drawing.codepoint, longest=_OVERSAMPLE * _INK * image_size)
    assert ink is not None, "blank drawings were left out"
    centre = (np.array(ink.shape[::-1]) - 1) / 2
    for matrix_23 in matrices_V23:
        warp_23 = matrix_23.copy()
        warp_23[:, :2] /= _OVERSAMPLE
        warp_23[:, 2] = (matrix_23[:, 2] + 0.5) * image_size - 0.5 - warp_23[:, :2] @ centre
        image = 255 - cv2.warpAffine(ink, warp_23, (image_size, image_size), flags=cv2.INTER_LINEAR)
        yield simplejpeg.encode_jpeg(image[..., None], quality=90, colorspace="GRAY")


def _class_name(codepoints: Iterable[int]) -> str:
    names = (f"{chr(c)} U+{c:04X} {unicodedata.name(chr(c), '?')}" for c in dict.fromkeys(codepoints))
    return " | ".join(names)
