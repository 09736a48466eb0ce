"""Pack images into a record set: ``megaclass data pack SOURCE OUTPUT``.

A source gives labels, class names where they are known, and one image at a time. Images are read, decoded and
encoded by threads and written in the order of the source, so that the files are the same bytes however many threads
there are; a few images for each thread are in memory.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megaclass.data.dataset import DamagedSampleError
from megaclass.data.pack.encode import Encoding, Size, to_jpeg
from megaclass.data.pack.labels import number_classes, read_names
from megaclass.data.pack.opening import open_source
from megaclass.data.pack.source import Source, SourceOptions
from megaclass.data.records.writer import RecordWriter
from megaclass.data.threads import in_order, one_silent_thread
from megaclass.errors import UserError

SKIPPED = "skipped.txt"
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class PackSummary:
    """What was packed: counts, and the size of the ``.rec`` file in bytes.

    ``skipped`` tells of each image that was left out.
    """

    path: Path
    images: int
    classes: int
    rec_bytes: int
    skipped: tuple[str, ...] = ()


def pack(
    source: str | Path,
    output: str | Path,
    *,
    image_size: int | None = None,
    shorter_side: int | None = None,
    quality: int = 95,
    invert: bool = False,
    where: str | None = None,
    unpack_bits: tuple[int, int] | None = None,
    class_depth: int = 1,
    root: str | None = None,
    labels: str | Path | None = None,
    label_names: str | Path | None = None,
    classes: str | Path | None = None,
    index_record: bool = True,
    on_error: str = "fail",
    workers: int = 0,
    progress: Progress | None = None,
    scanning: Progress | None = None,
) -> PackSummary:
    """Write the images of ``source`` to ``output/train.rec``, grouped by class, labels renumbered 0..K-1.

    ``source`` is one of

    - an image folder: a sub-directory a class, or any images with their labels in a file;
    - an ``.npz`` with ``images``, uint8 (N, H, W) or (N, H, W, 3) RGB, and ``label`` or ``labels``, integers (N,),
      and perhaps ``classes``, names by label;
    - a ``.csv`` or ``.tsv`` with lines ``path,label``, or a header that names these columns;
    - a tar, perhaps compressed, of class directories, of class tars, or of images with their labels in a file. The
      images of a compressed one are not grouped: they come as they lie.

    ``image_size`` to ``invert`` say what becomes of images, see Encoding; ``where`` to ``label_names`` how a source is
    read, see SourceOptions.

    - ``classes``: a file of class names, a line each, in the order of the numbers that they get: the classes.txt
      of the training set. Labels that are just numbers are positions there.
    - ``index_record``: the layout, see RecordWriter.
    - ``on_error``: "fail", or "skip" to leave out images that are damaged, which ``output/skipped.txt`` then names.
    - ``workers``: threads; 0: one a core.
    - ``progress``: called with (images done, images in all); ``scanning``: with the bytes of a tar passed in search
      of names, and in all.

    Raises UserError for a source that cannot be packed; ``output`` then holds nothing new.
    """
    if on_error not in ("fail", "skip"):
        raise UserError(f"on_error: {on_error!r} is neither fail nor skip")
    if workers < 0:
        raise UserError(f"workers: {workers} threads are too few; 0 takes one a core")
    encoding = Encoding(image_size, shorter_side, quality, invert)
    options = SourceOptions(where, unpack_bits, class_depth, root, _path(labels), _path(label_names))
    given = None if classes is None else read_names(Path(classes), "classes")
    found = open_source(Path(source), options, given, scanning)
    with contextlib.closing(found):
        labels_N, names = number_classes(found.labels, found.classes, given)
        writer = RecordWriter(output, index_record=index_record, classes=names)
        writer.num_classes = int(labels_N.max()) + 1  # also where all images of the last class are left out
        list_of_skipped = writer.path.with_name(SKIPPED)
        with writer:
            if list_of_skipped.exists():
                raise UserError(
                    f"{list_of_skipped} exists and is not overwritten; remove it or name another directory"
                )
            skipped = _write(found, labels_N, encoding, writer, on_error == "skip", workers, progress)
    if skipped:
        list_of_skipped.write_text("".join(f"{line}\n" for line in skipped), errors="backslashreplace")
    return PackSummary(
        writer.path, writer.count, len(np.unique(labels_N)), writer.path.stat().st_size, tuple(skipped)
    )


def _path(name: str | Path | None) -> Path | None:
    return None if name is None else Path(name)


def _write(
    found: Source,
    labels_N: np.ndarray,
    encoding: Encoding,
    writer: RecordWriter,
    skips: bool,
    workers: int,
    progress: Progress | None,
) -> list[str]:
    """Write all images. Returns what is wrong with each that was left out."""
    count = len(labels_N)
    rows = (np.arange(count) if found.in_order else np.argsort(labels_N, kind="stable")).tolist()
    skipped: list[str] = []
    with one_silent_thread():
        results = in_order(lambda piece: _prepared(found, encoding, *piece), _pieces(found, rows), workers)
        for done, (row, result) in enumerate(zip(rows, results, strict=True), 1):
            if not isinstance(result, DamagedSampleError):
                encoded, size = result
                writer.write(encoded, int(labels_N[row]), size)
            elif skips:
                skipped.append(str(result))
            else:
                raise UserError(f"{result}, or leave such images out (--on-error skip)")
            if progress is not None:
                progress(done, count)
    if writer.count == 0:
        raise UserError(f"none of the {count} images can be packed; {skipped[0]}")
    return skipped


_Image = bytes | np.ndarray | DamagedSampleError


def _pieces(found: Source, rows: list[int]) -> Iterator[tuple[int, _Image | None]]:
    """Rows, and their images where these can only be read one after the other."""
    for row in rows:
        yield row, _read(found, row) if found.in_order else None


def _read(found: Source, row: int) -> _Image:
    try:
        return found.read(row)
    except DamagedSampleError as error:
        return error


def _prepared(
    found: Source, encoding: Encoding, row: int, image: _Image | None
) -> tuple[bytes, Size] | DamagedSampleError:
    if image is None:
        image = _read(found, row)
    if isinstance(image, DamagedSampleError):
        return image
    try:
        return to_jpeg(image, found.describe(row), encoding)
    except DamagedSampleError as error:
        return error
