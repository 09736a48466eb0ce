"""Pack images into a record set: ``megaclass data pack SOURCE OUTPUT``.

A source gives labels, class names where they are known, and one image at a time. Images are read, decoded and
encoded by threads and written in the order of the source, so that the files are the same bytes however many threads
there are; a few images for each thread are in memory.
"""

import contextlib
import csv
import io
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megaclass.data.dataset import DamagedSampleError, read_text
from megaclass.data.open import record_file
from megaclass.data.pack.encode import Encoding, Size, to_jpeg
from megaclass.data.pack.files import open_folder, open_records, open_table
from megaclass.data.pack.labels import number_classes, read_names
from megaclass.data.pack.npz import open_npz
from megaclass.data.pack.source import Source
from megaclass.data.pack.tar import open_tar
from megaclass.data.records.writer import RecordWriter
from megaclass.data.remote import local
from megaclass.data.threads import in_order, one_silent_thread
from megaclass.errors import UserError, printable

logger = logging.getLogger(__name__)

# What each kind of source is called, how its files end, which options it takes, and how it is opened.
_KINDS: tuple[tuple[str, tuple[str, ...], set[str], Callable[..., Source]], ...] = (
    ("a folder", (), {"class_depth", "labels", "label_names"}, open_folder),
    ("an .npz", (".npz",), {"where", "unpack_bits"}, open_npz),
    ("a table", (".csv", ".tsv"), {"root"}, open_table),
    ("a record set", (".rec",), set(), open_records),
    ("a tar", (".tar",), {"class_depth", "labels", "label_names"}, open_tar),
)
Progress = Callable[[int, int], None]


def pack(
    source: str | Path,
    output: str | Path,
    *,
    image_size: int | None = None,
    shorter_side: int | None = None,
    quality: int = 95,
    invert: bool = False,
    classes: str | Path | None = None,
    exclude: str | Path | None = None,
    index_record: bool = True,
    on_error: str = "fail",
    workers: int = 0,
    progress: Progress = lambda done, total: None,
    **options: Any,
) -> RecordWriter:
    """Write the images of ``source`` to ``output/train.rec``, grouped by class, labels renumbered 0..K-1.

    ``source``: an image folder, a record set, an .npz, a table or a tar, here or at an address (see
    :mod:`megaclass.data.remote`). ``options`` are of the source, each kind taking some of them; None is as good as left
    out. What each means stands in ``megaclass data pack --help``; ``image_size`` to ``invert`` are of Encoding,
    ``index_record`` of RecordWriter. ``progress`` is called with (images done, images in all).

    Classes are numbered as :func:`number_classes` says, also where ``exclude`` leaves all images of one out; those of
    a record set with names as there, without images too.

    Returns the closed writer, which says what it wrote. Raises UserError for a source that cannot be packed;
    ``output`` then holds nothing new.
    """
    encoding = Encoding(image_size, shorter_side, quality, invert)
    given = None if classes is None else read_names(classes, "--classes")
    path = local(source)
    found = _open_source(path, given, {key: value for key, value in options.items() if value is not None})
    labels_N, names = (
        (found.labels.astype(np.int64), found.classes)
        if given is None and found.classes and record_file(path)
        else number_classes(found.labels, found.classes, given)
    )
    rows = np.argsort(labels_N, kind="stable").tolist()
    if exclude is not None:
        left_out = _excluded(found, Path(source), Path(exclude))
        rows = [row for row in rows if row not in left_out]
    writer = RecordWriter(output, index_record=index_record, classes=names)
    writer.excluded = len(labels_N) - len(rows)
    writer.num_classes = int(labels_N.max()) + 1  # also where all images of the last class are left out
    with writer:
        writer.skipped = _write(found, labels_N, rows, encoding, writer, on_error == "skip", workers, progress)
    return writer


def _open_source(path: Path, known: list[str] | None, options: dict[str, Any]) -> Source:
    """The images at ``path``. Raises UserError for what is no source, and for options that it does not take."""
    takes = "an image folder, a record set, or an .npz, .csv, .tsv or tar file"
    if not path.exists():
        raise UserError(f"{path}: no such file or directory; name {takes}")
    name = path.name.lower()
    found = (
        [kind for kind in _KINDS if kind[3] is (open_records if record_file(path) else open_folder)]
        if path.is_dir()
        else [kind for kind in _KINDS if path.is_file() and name.endswith(kind[1])]
    )
    if not found:
        raise UserError(f"{path} is not {takes}; if it is an archive, unpack it, and name the folder")
    kind, _, taken, opener = found[0]
    for option in options.keys() - taken:
        others = " and ".join(other for other, _, options_of, _ in _KINDS if option in options_of)
        raise UserError(f"{path} is {kind}; --{option.replace('_', '-')} is for {others}, leave it out")
    depth = options.get("class_depth", 1)
    if depth < 1 or (depth > 1 and "labels" in options):
        raise UserError(f"--class-depth: {depth}; it is 1 or more for class directories, and left out with labels")
    if "label_names" in options and "labels" not in options:
        raise UserError("--label-names says what the numbers of --labels mean; give --labels too, or leave it out")
    return opener(path, known, **options)


def _excluded(found: Source, source: Path, listed: Path) -> set[int]:
    """The rows of the images that a file names. UserError where it names others alone, or all."""
    text = read_text(listed, "--exclude", "surrogateescape")
    names = [line for line in text.split("\n") if line.strip()]
    with contextlib.suppress(csv.Error):  # of a name that is too long for a table
        table = csv.DictReader(io.StringIO(text, newline=""))
        if (table.fieldnames or ())[:1] == ["image"]:
            names = [row["image"] for row in table]
    places = [_place(found.describe(row)) for row in range(len(found.labels))]  # a table may name an image twice
    known, chosen, unknown = set(places), set(), []
    for name in names:
        # However the source was called when they were listed.
        here = [_place(Path(at, name)) for at in ("", source, source.parent)]
        if place := next(filter(known.__contains__, here), ""):
            chosen.add(place)
        else:
            unknown.append(name)
    rows = {row for row, place in enumerate(places) if place in chosen}
    if (names and not rows) or len(rows) == len(places):
        raise UserError(
            f"--exclude: {listed} names {'all' if rows else 'none'} of the images of {source}; give a list of some"
        )
    if unknown:
        logger.warning(
            "--exclude: %d of %d names are of no image, %s the first",
            len(unknown),
            len(names),
            printable(unknown[0]),
        )
    return rows


def _place(name: str | Path) -> str:
    return os.path.abspath(name)  # noqa: PTH100 - without "..", and no link followed


def _write(
    found: Source,
    labels_N: np.ndarray,
    rows: Sequence[int],
    encoding: Encoding,
    writer: RecordWriter,
    skips: bool,
    workers: int,
    progress: Progress,
) -> list[str]:
    """Write the images of these rows. Returns what is wrong with each that was left out."""

    def prepared(row: int) -> tuple[bytes, Size] | DamagedSampleError:
        try:
            return to_jpeg(found.read(row), found.describe(row), encoding)
        except DamagedSampleError as error:
            return error

    skipped: list[str] = []
    with one_silent_thread():
        for done, (row, result) in enumerate(zip(rows, in_order(prepared, rows, workers), strict=True), 1):
            if not isinstance(result, DamagedSampleError):
                encoded, size = result
                writer.write(encoded, int(labels_N[row]), size)
            elif skips:
                skipped.append(str(result))
            else:
                raise UserError(f"{result}, or leave such images out (--on-error skip)")
            progress(done, len(rows))
    if writer.count == 0:
        raise UserError(f"none of the {len(rows)} images can be packed; {skipped[0]}")
    return skipped
