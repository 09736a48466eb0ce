"""Classes of a validation set are the model's by name, never by chance of their number."""

import numpy as np
import pytest

from megaclass.errors import UserError
from megaclass.evaluation import _trained_labels


class Named:
    def __init__(self, labels, num_classes, classes=None):
        self._labels, self.num_classes, self.classes = np.array(labels), num_classes, classes

    def labels(self):
        return self._labels


def test_names_decide():
    validation = Named([0, 0, 1], 2, ["b", "c"])  # class a is missing: numbers are shifted
    assert _trained_labels(validation, 3, ["a", "b", "c"]).tolist() == [1, 1, 2]


def test_an_unknown_name_is_refused():
    with pytest.raises(UserError, match="knows no class 'd'"):
        _trained_labels(Named([0], 1, ["d"]), 3, ["a", "b", "c"])


def test_without_names_the_counts_must_agree():
    assert _trained_labels(Named([0, 2], 3), 3, None).tolist() == [0, 2]
    with pytest.raises(UserError, match="has 2 classes, the model 3"):
        _trained_labels(Named([0, 1], 2), 3, None)
