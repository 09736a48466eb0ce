"""Several data sets as one.

Shapes: N = samples of all parts, K = classes of one part.
"""

import bisect
import itertools
from collections.abc import Sequence

import numpy as np

from megaclass.data.dataset import Dataset, Sample, class_names
from megaclass.errors import UserError


class ConcatDataset:
    """The samples of ``parts``, one part after the other, as one data set.

    The classes of a part are numbered behind those of the parts before it. With ``same_classes`` they are
    matched by name instead: a name is one class, wherever it occurs, and new names come behind the known ones.

    ``classes`` are the names by label, if every part has names. Where two parts share a name (and it is not
    one class), every name gets the title of its part in front, as ``ms1m/0001``; ``titles`` are by default
    "1", "2" and so on. Memory: none a sample; with ``same_classes`` 8 bytes a class.
    """

    def __init__(
        self, parts: Sequence[Dataset], titles: Sequence[str] | None = None, *, same_classes: bool = False
    ) -> None:
        if not parts:
            raise ValueError("no data sets to join")
        self.parts = list(parts)
        self._titles = (
            [str(number) for number in range(1, len(parts) + 1)] if titles is None else list(titles)
        )
        self._starts = [0, *itertools.accumulate(len(part) for part in parts)]
        self.classes: list[str] | None
        # Of each part, what its labels become here.
        self._numbers: list[range | np.ndarray]
        if same_classes:
            self.classes, self._numbers = self._matched()
            self.num_classes = len(self.classes)
        else:
            edges = [0, *itertools.accumulate(part.num_classes for part in parts)]
            self._numbers = [range(start, stop) for start, stop in itertools.pairwise(edges)]
            self.num_classes = edges[-1]
            self.classes = self._names()

    def __len__(self) -> int:
        return self._starts[-1]

    def read(self, index: int) -> Sample:
        """Return sample ``index``, with its class among those of all parts."""
        part, stored = self._place(index)
        encoded, label = self.parts[part].read(stored)
        if not 0 <= label < self.parts[part].num_classes:
            # Shifted, it would be a class of another part.
            raise UserError(
                f"{self.describe(index)}: the label {label} is outside 0..{self.parts[part].num_classes - 1}; "
                "correct the label or the number of classes"
            )
        return Sample(encoded, int(self._numbers[part][label]))

    def labels(self) -> np.ndarray:
        """All labels, int64 of shape (N,), read-only. Made anew at each call: nobody needs to keep them twice."""
        labels_N = np.empty(len(self), np.int64)
        for number, part in enumerate(self.parts):
            labels = part.labels()
            if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < part.num_classes:
                raise UserError(
                    f"{self._titles[number]}: labels go from {labels.min()} to {labels.max()}, but there are "
                    f"{part.num_classes} classes; correct the labels or the number of classes"
                )
            table = self._numbers[number]
            shifted = labels + table.start if isinstance(table, range) else table[labels]
            labels_N[self._starts[number] : self._starts[number + 1]] = shifted
        labels_N.flags.writeable = False
        return labels_N

    def describe(self, index: int) -> str:
        part, stored = self._place(index)
        return self.parts[part].describe(stored)

    def _place(self, index: int) -> tuple[int, int]:
        """The number of the part that holds sample ``index``, and the sample's number there."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        part = bisect.bisect_right(self._starts, index) - 1  # of parts without samples, the one behind
        return part, index - self._starts[part]

    def _names(self) -> list[str] | None:
        names = [class_names(part) for part in self.parts]
        known = [found for found in names if found is not None]
        if len(known) < len(names):
            return None
        joined = list(itertools.chain.from_iterable(known))
        if len(set(joined)) == len(joined):
            return joined
        return [f"{title}/{name}" for title, found in zip(self._titles, known, strict=True) for name in found]

    def _matched(self) -> tuple[list[str], list[range | np.ndarray]]:
        numbers: dict[str, int] = {}
        tables: list[range | np.ndarray] = []
        for title, part in zip(self._titles, self.parts, strict=True):
            names = class_names(part)
            if names is None:
                raise UserError(f"{title}: its classes have no names to match them by; add classes.txt")
            if len(set(names)) < len(names):
                raise UserError(f"{title}: two of its classes have the same name; rename one")
            tables.append(np.array([numbers.setdefault(name, len(numbers)) for name in names], np.int64))
        return list(numbers), tables
