"""Several sets as one: what is at which place, and sets that cannot be joined."""

import os

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from megaclass.data.dataset import Sample
from megaclass.data.open import open_dataset, set_titles
from megaclass.data.views import ConcatDataset
from record_sets import write_set


class Listed:
    """A data set of given labels; the image is the title and the number."""

    def __init__(self, title, labels, num_classes=None, classes=None):
        self.title, self._labels, self.classes = title, np.array(labels, np.int64), classes
        self.num_classes = num_classes or (len(classes) if classes else max(labels) + 1)

    def __len__(self):
        return len(self._labels)

    def read(self, index):
        return Sample(f"{self.title}{index}".encode(), int(self._labels[index]))

    def labels(self):
        return self._labels

    def describe(self, index):
        return f"{self.title} record {index}"


@given(st.lists(st.lists(st.integers(0, 4), max_size=5), min_size=1, max_size=4))
def test_each_sample_comes_once_with_a_class_of_its_own_set(labels):
    parts = [Listed(f"{number}-", given, 5) for number, given in enumerate(labels)]
    joined = ConcatDataset(parts, [part.title for part in parts])
    wanted = [
        (f"{number}-{i}".encode(), 5 * number + label, f"{number}- record {i}")
        for number, given in enumerate(labels)
        for i, label in enumerate(given)
    ]
    assert [(*joined.read(i), joined.describe(i)) for i in range(len(joined))] == wanted
    assert joined.labels().tolist() == [label for _, label, _ in wanted]
    assert joined.labels().dtype == np.int64
    assert joined.num_classes == 5 * len(labels) and joined.classes is None


def test_names_are_kept_and_get_a_prefix_only_where_they_clash():
    one, two = Listed("a", [0, 1], classes=["cat", "dog"]), Listed("b", [0], classes=["cow"])
    assert ConcatDataset([one, two], ["x", "y"]).classes == ["cat", "dog", "cow"]
    clash = Listed("c", [0, 1], classes=["cow", "dog"])
    assert ConcatDataset([one, clash], ["x", "y"]).classes == ["x/cat", "x/dog", "y/cow", "y/dog"]
    assert ConcatDataset([one, Listed("d", [0])], ["x", "y"]).classes is None


# ---- from paths -------------------------------------------------------------------------------------


def test_paths_joined_by_the_path_separator_open_as_one_set(tmp_path):
    one = write_set(tmp_path / "one", [(b"image", 0), (b"image", 0), (b"image", 1)])
    two = write_set(tmp_path / "two", [(f"two{number}".encode(), number) for number in range(3)])
    folder = tmp_path / "folder"
    (folder / "k").mkdir(parents=True)
    (folder / "k/1.jpg").write_bytes(b"image")
    joined = open_dataset(os.pathsep.join(map(str, (one, two / "train.rec", folder))))
    assert joined.labels().tolist() == [0, 0, 1, 2, 3, 4, 5] and joined.num_classes == 6
    assert joined.read(4) == (b"two1", 3) and joined.describe(6) == f"{folder}/k/1.jpg"


def test_sets_are_called_by_what_tells_them_apart(tmp_path):
    def titles(*names):
        return set_titles([tmp_path / name for name in names])

    assert titles("a") == ["a"]
    assert titles("ms1m/train", "glint/train") == ["ms1m", "glint"]
    assert titles("a/x", "a/y", "b/x") == ["a/x", "a/y", "b/x"]
