"""Record sets: the ``.rec`` and ``.idx`` files in which images come, as the public face sets lay them out.

The ``.idx`` has a line ``key<TAB>offset`` for each record of the ``.rec``. The public face sets keep, under
key 0, an index record without an image whose two labels (a, b) say that images have the keys 1..a-1 and
identities the keys a..b-1; an identity record's labels are the first and one past the last key of its images.
Their ``property`` file is one line: ``classes,height,width``. im2rec's files have images under every key.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from megaclass.data.dataset import DamagedSampleError, Sample, read_text
from megaclass.data.records import recordio
from megaclass.data.records.recordfile import Index, RecordFile, read_index, scan
from megaclass.data.records.recordio import DamageError
from megaclass.errors import UserError
from megaclass.files import read_regular

logger = logging.getLogger(__name__)
T = TypeVar("T")

# Labels and keys inside payloads are float32: whole numbers beyond this one are rounded.
MAX_EXACT = 1 << 24
_CHUNK_RECORDS = 1 << 16
_MAX_PROPERTY_BYTES = 1 << 16
_BEYOND = 1 << 63  # every key


class RecordDataset:
    """The images of a RecordIO file.

    ``root`` is a directory with ``train.rec`` (and ``train.idx``, ``property``) or the path of a ``.rec``
    file. A record that is damaged is an error when it is read; damage that leaves open which records are
    images, or how many classes there are, is one at once.

    Memory: 8 bytes a record (16 if the keys have gaps; a few times that while it is opened), and 8 more once
    ``labels`` was called.
    """

    def __init__(self, root: str | Path) -> None:
        self.path = _find_rec(Path(root))
        self._labels: np.ndarray | None = None
        self._identity_offsets = np.empty(0, np.int64)
        self._file = RecordFile(self.path)
        # Every record at first; what is no image leaves below.
        index = self._read_index()
        self._keys: range | np.ndarray = index.keys_N
        self._offsets = index.offsets_N
        self.num_classes = MAX_EXACT  # until it is known
        # A file cut short, or an index of another file, shows at the ends: better now than in an hour.
        for place in (int(self._offsets.argmin()), int(self._offsets.argmax())):
            self._sound(place, lambda place: self._file.payload(int(self._offsets[place])))
        self._select_images(index)
        if len(self) == 0:
            raise UserError(f"{self.path} holds no images; pack it again")
        # Not the number of identity records: a class may have several, and classes may be left out.
        self.num_classes = _read_property(self.path) or int(self.labels().max()) + 1

    def __len__(self) -> int:
        return len(self._offsets)

    @property
    def classes(self) -> list[str] | None:
        """The names of the classes in label order, where ``classes.txt`` beside the records has them."""
        path = side_file(self.path, "classes.txt")
        names = read_text(path, "names of classes").splitlines() if path.exists() else []
        if names and len(names) != self.num_classes:
            raise UserError(
                f"{path} names {len(names)} classes, the records have {self.num_classes}; mend or remove it"
            )
        return names or None

    def describe(self, index: int) -> str:
        return f"{self.path} record {self._keys[index]} (offset {self._offsets[index]})"

    def read(self, index: int) -> Sample:
        """Return sample ``index``, with the first of its labels. Safe to call from several threads."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        return self._sound(index, self._sample)

    def labels(self) -> np.ndarray:
        """The first label of every image, read-only int64 of shape (len,). Reads headers, not images.

        With identity records, only one image of each identity is looked at. A label that is lost is an error:
        no other one could stand for it in an evaluation.
        """
        if self._labels is None:
            labels = self._identity_labels()
            if labels is None:
                labels = self._scan_labels(range(len(self)))
            labels.flags.writeable = False
            self._labels = labels
        return self._labels

    # ---- one record -------------------------------------------------------------------------------

    def _sample(self, index: int) -> Sample:
        # Where the next record begins, this one ends, but in sets whose records are not in the order of their keys.
        offset, *following = self._offsets[index : index + 2].tolist()
        plain = self._file.plain(offset, (following[0] if following else self._file.size) - offset)
        if plain is None:
            (value, *_), view = recordio.unpack_payload(self._file.payload(offset))
            image = bytes(view)
        else:
            value, image = plain
        if not value.is_integer():
            raise DamageError(f"the label {value} is not a whole number")
        if not 0 <= value < self.num_classes:
            # Not one record's damage: the set and its number of classes do not belong together.
            raise UserError(
                f"{self.describe(index)}: the label {int(value)} is outside the {self.num_classes} classes of "
                "the set; correct the label or the number of classes in property"
            )
        if len(image) == 0:
            raise DamageError("there is no image in it")
        return Sample(image, int(value))

    def _sound(self, index: int, function: Callable[[int], T]) -> T:
        """``function(index)``; damage becomes an error that names the record."""
        try:
            return function(index)
        except DamageError as damage:
            raise DamagedSampleError(
                f"{self.describe(index)} is damaged: {damage}; copy or pack the set again"
            ) from None

    # ---- all records ------------------------------------------------------------------------------

    def _read_index(self) -> Index:
        """All records, from the ``.idx`` or, without one, by a scan."""
        path = self.path.with_suffix(".idx")
        if not path.exists():
            logger.warning("%s is missing; the records are found by a scan of %s", path, self.path.name)
            index = scan(self._file)
            if len(index.keys_N) == 0 or index.offsets_N[0] != 0:
                raise UserError(f"{self.path} is not a RecordIO file; give a .rec file as MXNet writes them")
            return index
        index = read_index(path)
        keys_N = np.sort(index.keys_N, kind="stable")  # takes no time where they are sorted
        twice = keys_N[1:][keys_N[1:] == keys_N[:-1]]
        if len(keys_N) == 0 or len(twice):
            what = f"key {twice[0]} more than once" if len(twice) else "no records"
            raise UserError(f"{path} lists {what}; remove it to have {self.path.name} scanned")
        return index

    def _select_images(self, index: Index) -> None:
        """Keep the records that are images; identity records are remembered for ``labels``."""
        stated = None
        for zero in np.flatnonzero(index.keys_N == 0):
            # Some converters put a picture there: the label of an image would be less than the number of records.
            stated = self._file.key_range(index.offsets_N[zero], pictured=len(index.keys_N))
            if stated is None:
                self._sound(int(zero), self._sample)  # else nobody knows what are images
        if stated is None:
            if self._file.key_range(index.offsets_N.max()):
                raise UserError(
                    f"{self.path} ends with identity records, but record 0 does not say where they begin; "
                    "copy or pack the set again"
                )
            self._keys = _compact(index.keys_N)
            return
        first, last = stated
        end = self._first_identity(index, first) if last > first else _BEYOND
        images, identities = index.between(1, end), index.between(end, _BEYOND)
        slack = _rounding(last)
        counts = len(images.keys_N), len(identities.keys_N)
        differ = abs(counts[0] - (first - 1)) > slack
        if differ or (counts[1] and abs(counts[1] - (last - first)) > slack):
            raise UserError(
                f"{self.path}: record 0 states {first - 1} images and {last - first} identities, the "
                f"index lists {counts[0]} and {counts[1]}; copy the set again, or remove "
                f"{self.path.with_suffix('.idx').name} to have the records scanned"
            )
        self._identity_offsets = identities.offsets_N
        self._keys, self._offsets = _compact(images.keys_N), images.offsets_N

    def _first_identity(self, index: Index, stated: int) -> int:
        """The key of the first identity record: ``stated``, or what float32 rounded to it."""
        slack = _rounding(stated)
        near = index.between(stated - slack, stated + slack)
        found = (key for key, offset in zip(near.keys_N, near.offsets_N, strict=True) if self._file.key_range(offset))
        return int(next(found, stated + slack))

    def _scan_labels(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        labels_N = np.empty(len(indices), np.int64)
        words_W = self._file.words_W
        limit = min(self.num_classes, MAX_EXACT)
        for start in range(0, len(indices), _CHUNK_RECORDS):
            rows = np.asarray(indices[start : start + _CHUNK_RECORDS])
            image_bytes, first, _ = recordio.peek(words_W, self._offsets[rows])
            sound = (image_bytes > 0) & (first >= 0) & (first < limit) & (first == np.floor(first))
            labels_N[start : start + len(rows)] = np.where(sound, first, 0)
            # The rare others, split records among them, go the slow way, which names what is wrong.
            for i in np.flatnonzero(~sound):
                labels_N[start + i] = self.read(int(rows[i])).label
        return labels_N

    def _identity_labels(self) -> np.ndarray | None:
        """Labels from the identity records, or None unless their key ranges cover every image once."""
        count = len(self)
        if len(self._identity_offsets) == 0 or not isinstance(self._keys, range) or count >= MAX_EXACT:
            return None
        image_bytes, first, last = recordio.peek(self._file.words_W, self._identity_offsets)
        order = np.argsort(first, kind="stable")
        edges = np.append(first[order], np.float32(count + 1))
        whole = (image_bytes == 0) & (first == np.floor(first)) & (first <= count + 1)
        # Where offsets of the index were mixed up, an image has another key than its identity means.
        ascending = (self._offsets[1:] > self._offsets[:-1]).all()
        if not (ascending and whole.all() and edges[0] == 1 and (last[order] == edges[1:]).all()):
            logger.warning("%s: the identity records do not cover the images; every header is read", self.path)
            return None
        sizes = np.diff(edges).astype(np.int64)
        starts = edges[:-1][sizes > 0].astype(np.int64) - 1
        return np.repeat(self._scan_labels(starts), sizes[sizes > 0])


def _rounding(key: int) -> int:
    """How far a float32 may lie from a key near this one: 0 up to 2**24."""
    return int(np.spacing(np.float32(key)))


def _compact(keys_N: np.ndarray) -> range | np.ndarray:
    """Consecutive keys as a range, which takes no memory."""
    if len(keys_N) and (np.diff(keys_N) == 1).all():
        return range(int(keys_N[0]), int(keys_N[-1]) + 1)
    return keys_N


def side_file(rec_path: Path, kind: str) -> Path:
    """``property`` or ``classes.txt`` of a record file: bare beside train.rec, prefixed beside others."""
    return rec_path.with_name(kind if rec_path.stem == "train" else f"{rec_path.stem}.{kind}")


def _find_rec(root: Path) -> Path:
    rec = root / "train.rec" if root.is_dir() else root
    if not rec.is_file() or rec.suffix != ".rec":
        raise UserError(
            f"{root} is no .rec file and holds no train.rec; name the directory of a record set, or its .rec file"
        )
    return rec


def _read_property(rec_path: Path) -> int | None:
    path = side_file(rec_path, "property")
    if not path.exists():
        return None
    try:
        # More lines may follow, from InsightFace's writers: the number of images, "shuffled", the date.
        text = read_regular(path, _MAX_PROPERTY_BYTES).decode()
        num_classes, _height, _width = (int(field) for field in text.splitlines()[0].split(","))
    except (OSError, ValueError, IndexError):
        num_classes = 0
    if not 1 <= num_classes <= MAX_EXACT:
        raise UserError(
            f"{path} must be one line 'classes,height,width', with 1 to {MAX_EXACT:,} classes; mend it, or remove it"
        )
    return num_classes
