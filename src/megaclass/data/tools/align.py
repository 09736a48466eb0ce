"""Photographs of people to aligned faces, ready to pack: a tree of files as that of the photographs.

Shapes: H, W = size of an image in pixels, C = 3 colours, RGB; P = five points.
"""

import csv
import itertools
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from megaclass.data.dataset import DamagedSampleError, read_text
from megaclass.data.faces import Face, Rules, cut, upright, warped
from megaclass.data.folder import images_under
from megaclass.data.imagelist import ImageList
from megaclass.data.threads import in_order, one_silent_thread
from megaclass.errors import UserError

_SHOWN, _ROW, _SIDE = 48, 6, 112  # of a sheet: photographs, how many in a row, pixels of a picture
_POINTS = [f"{axis}{number}" for number in range(1, 6) for axis in "xy"]
Finder = Callable[[str, np.ndarray], Sequence[Face]]
"""The faces of a photograph, by its name and its pixels."""


def find_photographs(raw: str) -> ImageList:
    """The images below a directory, or those of a list, a path a line, below where it lies. Raises UserError."""
    listed = not Path(raw).is_dir()
    base = Path(raw).parent if listed else Path(raw)
    lines = read_text(Path(raw), "RAW").splitlines() if listed else images_under(base)
    names = [os.path.relpath(base / line, base) for line in lines if line]
    if outside := next((name for name in names if name.startswith("..")), None):
        raise UserError(f"{raw}: {outside!r} is not below {base}; put the list where the photographs begin")
    if not names:
        raise UserError(f"{raw}: no images there; give a directory of photographs, or a list of their paths")
    return ImageList(base, names)


def landmarks(path: str) -> Finder:
    """Faces by a CSV with the columns path, x1, y1 .. x5, y5 and perhaps score, as align.csv has them: paths as below
    RAW. Raises UserError for any other file."""
    table = csv.DictReader(read_text(Path(path), "--landmarks").splitlines())
    if missing := {"path", *_POINTS} - {*(table.fieldnames or ())}:
        raise UserError(f"--landmarks: {path} has no column {min(missing)!r}; its first line names the columns")
    faces: dict[str, list[Face]] = {}
    for row in table:
        try:
            if row["x1"]:  # align.csv has lines of photographs without a face
                points_P2 = np.array([float(row[name]) for name in _POINTS]).reshape(5, 2)
                faces.setdefault(row["path"], []).append(Face(points_P2, float(row.get("score") or 1)))
        except (TypeError, ValueError):
            raise UserError(f"--landmarks: {path}, line {table.line_num}: not ten numbers; mend it") from None

    def find(name: str, image_HWC: np.ndarray) -> Sequence[Face]:
        for x, y in (face.points_P2.mean(0) for face in faces.get(name, [])):
            if not (0 <= x < image_HWC.shape[1] and 0 <= y < image_HWC.shape[0]):
                raise DamagedSampleError(f"{name}: its points in {path} lie outside of it; mend them")
        return faces.get(name, [])

    return find


def align(
    images: ImageList,
    part: Path,
    find: Finder,
    rules: Rules,
    size: int,
    quality: int,
    workers: int,
    progress: Callable[[int, int], None],
) -> tuple[Counter[str], np.ndarray]:
    """Write the faces of ``images`` to ``part``, a new directory, under the names of these, as JPEG files of a
    ``quality`` or, 0, as PNG; ``align.csv`` there has a line of each face found.

    Returns how many photographs are of each of ``KINDS`` (``more``: aligned, but of several faces), and a sheet of the
    first, uint8 (H, W, 3): each with its points beside its face. Raises OSError.
    """
    suffix, options = (".jpg", [cv2.IMWRITE_JPEG_QUALITY, quality]) if quality else (".png", [])

    def work(index: int) -> tuple[str, list[Face], list[bytes], list[np.ndarray]]:
        """What became of it, faces (those taken come first), files of those taken, a picture if for the sheet."""
        image_HWC, found, chosen = np.full((_SIDE, _SIDE, 3), 128, np.uint8), list[Face](), list[Face]()
        try:
            image_HWC = upright(images.read(index).encoded, images.describe(index))
            found = [*find(images.names[index], image_HWC)]
            chosen, status = rules.choose(found, image_HWC)
        except DamagedSampleError as error:
            status = f"damaged: {error}"
        aligned = [warped(image_HWC, face, size, size)[..., ::-1] for face in chosen]
        files = [cv2.imencode(suffix, face_HWC, options)[1].tobytes() for face_HWC in aligned]
        others = [face for face in found if face not in chosen]
        picture = [_picture(image_HWC, chosen, others)] if index < _SHOWN else []
        return status, chosen + others, files, picture

    counts, shown = Counter[str](), list[np.ndarray]()
    part.mkdir()
    with (
        one_silent_thread(),
        (part / "align.csv").open("x", newline="", errors="surrogateescape") as file,
    ):
        report = csv.writer(file, lineterminator="\n")
        report.writerow(["path", "status", "output", "score", "left", "top", "width", "height", *_POINTS])
        done = in_order(work, range(len(images)), workers)
        for number, (name, became) in enumerate(zip(images.names, done, strict=True), 1):
            status, found, files, picture = became
            counts.update([status.partition(":")[0], *(["more"] if files and found[1:] else [])])
            shown += picture
            for face, encoded in itertools.zip_longest(found, files):
                written = _write(part, name, suffix, encoded) if encoded else ""
                told = status if written or not files else "passed over"
                numbers = [*(face.box or [""] * 4), *face.points_P2.ravel().round(3)]
                report.writerow([name, told, written, round(face.score, 4), *numbers])
            if not found:
                report.writerow([name, status] + [""] * 16)
            progress(number, len(images))
    shown += [np.full_like(shown[0], 255)] * (-len(shown) % _ROW)
    return counts, np.vstack([np.hstack(shown[start : start + _ROW]) for start in range(0, len(shown), _ROW)])


def _write(part: Path, name: str, suffix: str, encoded: bytes) -> str:
    """Returns the name, that of the photograph; of a further face, or where it is taken, with a number behind it."""
    stem = (part / name).with_suffix("")
    path, number = stem.with_name(stem.name + suffix), 2
    while path.exists():
        path, number = stem.with_name(f"{stem.name}_{number}{suffix}"), number + 1
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded)
    return str(path.relative_to(part))


def _picture(image_HWC: np.ndarray, chosen: Sequence[Face], others: Sequence[Face]) -> np.ndarray:
    """A photograph made small, with the points of its faces, beside the first of those taken."""
    scale = np.diag([_SIDE / max(image_HWC.shape)] * 2 + [0])[:2]
    before_HWC = cut(image_HWC, scale, _SIDE, _SIDE)
    for faces, colour in ((others, (230, 160, 0)), (chosen, (0, 220, 90))):
        for x, y in (point for face in faces for point in face.points_P2 @ scale[:, :2]):
            cv2.circle(before_HWC, (round(x), round(y)), 2, colour, -1)
    after_HWC = warped(image_HWC, chosen[0], _SIDE, _SIDE) if chosen else np.full_like(before_HWC, 255)
    return np.pad(np.hstack([before_HWC, after_HWC]), ((0, 8), (0, 8), (0, 0)), constant_values=255)
