"""Pack images into a record set: ``megaclass data pack SOURCE OUTPUT``.

A source gives labels, class names where they are known, and one image at a time. Images are read, decoded and
encoded by threads and written in the order of the source, so that the files are the same bytes however many threads
there are, and however often the work was interrupted; a few images for each thread are in memory.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg

from megaclass.data.dataset import DamagedSampleError
from megaclass.data.pack.encode import Encoding, Size, to_jpeg
from megaclass.data.pack.names import number_classes, read_names
from megaclass.data.pack.opening import open_source
from megaclass.data.pack.source import Source, SourceOptions, digest
from megaclass.data.records.writer import RecordWriter
from megaclass.data.tools.opencv import one_silent_thread
from megaclass.data.tools.threads import in_order
from megaclass.errors import UserError

SKIPPED = "skipped.txt"
CHECKPOINT_S = 5.0  # what an interruption costs at most
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class PackSummary:
    """What was packed: counts, and the size of the ``.rec`` file in bytes.

    ``skipped`` tells of each image that was left out, ``resumed`` how many an earlier, interrupted call packed.
    """

    path: Path
    images: int
    classes: int
    rec_bytes: int
    skipped: tuple[str, ...] = ()
    resumed: int = 0


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
    resumable: bool = False,
    restart: bool = False,
    progress: Progress | None = None,
    scanning: Progress | None = None,
) -> PackSummary:
    """Write the images of ``source`` to ``output/train.rec``, grouped by class, labels renumbered 0..K-1.

    ``source`` is one of

    - an image folder: a sub-directory a class;
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
    - ``resumable``: what was written stays when the work ends early, all but the last seconds of it, and the same
      call continues it; ``restart`` begins anew.
    - ``progress``: called with (images done, images in all); ``scanning``: with the bytes of a tar passed in search
      of names, and in all.

    Raises UserError for a source that cannot be packed; ``output`` then holds nothing new, unless resumable.
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
        plan = None
        if resumable:
            plan = _plan(found, options, labels_N, names, encoding)
            plan["layout"] = "faces" if index_record else "im2rec"
        writer = RecordWriter(output, index_record=index_record, classes=names, plan=plan, restart=restart)
        writer.num_classes = int(labels_N.max()) + 1  # also where all images of the last class are left out
        with writer:
            work = _Work(found, labels_N, encoding, writer, on_error == "skip", progress)
            work.run(workers)
    return PackSummary(
        writer.path,
        writer.count,
        len(np.unique(labels_N)),
        writer.path.stat().st_size,
        tuple(work.skipped),
        work.resumed,
    )


def _path(name: str | Path | None) -> Path | None:
    return None if name is None else Path(name)


def _plan(
    found: Source, options: SourceOptions, labels_N: np.ndarray, names: list[str] | None, encoding: Encoding
) -> dict[str, Any]:
    """All that decides the bytes of the set."""
    return {
        "source": f"{found.kind} {digest([found.identity()])}",
        # What chooses images: two choices may be as many, with the same names and labels.
        "where": options.where,
        "unpack_bits": options.unpack_bits,
        "root": None if options.root is None else str(options.root),
        "class_depth": options.class_depth,
        "images": len(labels_N),
        "labels": digest([labels_N.tobytes(), *(names or ())]),
        **vars(encoding),
        "encoder": f"simplejpeg {simplejpeg.__version__}, OpenCV {cv2.__version__}",
    }


class _Work:
    """The images on their way into the writer."""

    def __init__(
        self,
        found: Source,
        labels_N: np.ndarray,
        encoding: Encoding,
        writer: RecordWriter,
        skips: bool,
        progress: Progress | None,
    ) -> None:
        self._found = found
        self._labels_N = labels_N
        self._encoding = encoding
        self._writer = writer
        self._skips = skips
        self._progress = progress
        # From what the writer of an interrupted call noted.
        self._done = writer.notes[-1]["rows"] if writer.notes else 0
        self._size: Size | None = tuple(writer.notes[-1]["size"] or ()) or None if writer.notes else None
        self.skipped: list[str] = [line for note in writer.notes for line in note["skipped"]]
        self._noted_skips = len(self.skipped)
        self.resumed = writer.count

    def run(self, workers: int) -> None:
        if self._writer.whole:
            return
        list_of_skipped = self._writer.path.with_name(SKIPPED)
        if list_of_skipped.exists() and not self._writer.notes:
            raise UserError(
                f"{list_of_skipped} exists and is not overwritten; remove it or name another directory"
            )
        count = len(self._labels_N)
        order_N = np.arange(count) if self._found.in_order else np.argsort(self._labels_N, kind="stable")
        rows = order_N[self._done :].tolist()
        checked = time.monotonic()
        with one_silent_thread():
            prepared = in_order(self._prepare, self._pieces(rows), workers)
            for row, result in zip(rows, prepared, strict=True):
                self._write(row, result)
                self._done += 1
                if self._writer.resumable and time.monotonic() - checked >= CHECKPOINT_S:
                    self._checkpoint()
                    checked = time.monotonic()
                if self._progress is not None:
                    self._progress(self._done, count)
        if self._writer.count == 0:
            raise UserError(f"none of the {count} images can be packed; {self.skipped[0]}")
        self._writer.image_size = self._size if self._size != _DIFFER else None
        if self._writer.resumable:
            self._checkpoint()
        if self.skipped:
            list_of_skipped.write_text(
                "".join(f"{line}\n" for line in self.skipped), errors="backslashreplace"
            )

    def _pieces(
        self, rows: list[int]
    ) -> Iterator[tuple[int, bytes | np.ndarray | DamagedSampleError | None]]:
        """Rows, and their images where these can only be read one after the other."""
        for row in rows:
            yield row, self._read(row) if self._found.in_order else None

    def _read(self, row: int) -> bytes | np.ndarray | DamagedSampleError:
        try:
            return self._found.read(row)
        except DamagedSampleError as error:
            return error

    def _prepare(
        self, piece: tuple[int, bytes | np.ndarray | DamagedSampleError | None]
    ) -> tuple[bytes, Size] | DamagedSampleError:
        row, image = piece
        if image is None:
            image = self._read(row)
        if isinstance(image, DamagedSampleError):
            return image
        try:
            return to_jpeg(image, self._found.describe(row), self._encoding)
        except DamagedSampleError as error:
            return error

    def _write(self, row: int, result: tuple[bytes, Size] | DamagedSampleError) -> None:
        if not isinstance(result, DamagedSampleError):
            encoded, size = result
            self._size = size if self._size in (None, size) else _DIFFER
            self._writer.write(encoded, int(self._labels_N[row]))
        elif self._skips:
            self.skipped.append(str(result))
        else:
            raise UserError(f"{result}, or leave such images out (--on-error skip)")

    def _checkpoint(self) -> None:
        self._writer.checkpoint(
            {"rows": self._done, "size": self._size, "skipped": self.skipped[self._noted_skips :]}
        )
        self._noted_skips = len(self.skipped)


_DIFFER: Size = (0, 0)  # images of several sizes
