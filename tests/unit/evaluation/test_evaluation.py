"""Classes of a validation set are the model's by name, never by chance of their number; and which sets of pairs
a path names."""

import dataclasses
import os

import numpy as np
import pytest

import tiny
from megaclass.data.records.reader import RecordDataset
from megaclass.data.verification_bin import write_bin
from megaclass.errors import UserError
from megaclass.evaluation.evaluators import trained_labels
from megaclass.parallel.groups import started
from megaclass.report.curves import draw_run
from megaclass.train import loop


class Named:
    def __init__(self, labels, num_classes, classes=None):
        self._labels, self.num_classes, self.classes = np.array(labels), num_classes, classes

    def labels(self):
        return self._labels


@pytest.mark.parametrize(
    ("labels", "classes", "names", "expected"),
    [
        ([0, 0, 1], ["b", "c"], ["a", "b", "c"], [1, 1, 2]),  # class a is missing: numbers are shifted
        ([0], ["d"], ["a", "b", "c"], "knows no class 'd'"),
        ([0, 2, 1], None, None, [0, 2, 1]),
        ([0, 1], None, None, "has 2 classes, the model 3"),
    ],
)
def test_labels_are_matched_by_name_or_by_the_number_of_classes(labels, classes, names, expected):
    validation = Named(labels, len(set(labels)), classes)
    if isinstance(expected, list):
        assert trained_labels(validation, 3, names).tolist() == expected
        return
    with pytest.raises(UserError, match=expected):
        trained_labels(validation, 3, names)


# Verification sets


@pytest.fixture
def bins(tmp_path):
    """Three sets of 20 to 24 pairs of the training images, in directories of their own."""
    images = RecordDataset(tiny.write_records(tmp_path / "records"))
    random, paths = np.random.default_rng(0), []
    for number, name in enumerate(("lfw", "cfp_fp", "agedb_30")):
        first, second = random.integers(len(images), size=(2, 20 + 2 * number))
        path = tmp_path / name / f"{name}.bin"
        path.parent.mkdir()
        numbers = np.stack([first, second], axis=1).ravel()
        encoded = [images.read(int(index)).encoded for index in numbers]
        write_bin(path, encoded, images.labels()[first] == images.labels()[second])
        paths.append(path)
    return paths


def joined(paths):
    return os.pathsep.join(map(str, paths))


def test_several_sets_are_evaluated_in_training_each_by_its_name(tmp_path, bins):
    evaluate = {"task": "verification", "path": joined(bins), "every": 5, "folds": 4, "flip": True}
    config = tiny.config(tmp_path, evaluate=evaluate)
    with started("cpu", 60.0) as world:
        _, result = loop.run(config, world)
    found = result["verification"]
    others = found["others"]
    assert found["name"] == "lfw" and found["pairs"] == 20
    assert {name: metrics["pairs"] for name, metrics in others.items()} == {"cfp_fp": 22, "agedb_30": 24}
    # Evaluated one by one, the trained model gets the same; a resumed run goes on with what it knows.
    for path, metrics in zip(bins, (found, *others.values()), strict=True):
        alone = tiny.evaluated(tmp_path, "verification", path, "--run-dir", tmp_path / "run", "--checkpoint", "latest")
        assert alone == {key: value for key, value in metrics.items() if key not in ("name", "others")}
    with started("cpu", 60.0) as world:
        longer = dataclasses.replace(config, schedule=dataclasses.replace(config.schedule, steps=15))
        _, resumed = loop.run(longer, world, resume=True)
    assert set(resumed["verification"]["others"]) == {"cfp_fp", "agedb_30"}
    assert draw_run(tmp_path / "run")


def test_each_set_is_a_table_of_its_own(told, tmp_path, bins):
    listed = {"task": "verification", "path": str(tmp_path / "records"), "pairs_file": "of_the_run.txt"}
    recipe = tiny.recipe(tmp_path, evaluate=listed)
    words = ["evaluate", "verification", joined(bins), "--recipe", recipe, "--evaluate.folds", "2"]
    said = told(*words)
    assert [said.count(f"Verification on {path.stem} (") for path in bins] == [1, 1, 1]
    assert "Verification (20 pairs)" in told(*words[:2], bins[0], *words[3:])


def test_sets_of_one_name_are_called_by_what_tells_their_paths_apart(tmp_path, bins):
    twin = tmp_path / "other" / "lfw.bin"
    twin.parent.mkdir()
    twin.write_bytes(bins[0].read_bytes())
    words = ["--recipe", tiny.recipe(tmp_path), "--evaluate.folds", "2"]
    found = tiny.evaluated(tmp_path, "verification", joined([bins[0], twin]), *words)
    assert found.pop("name") == "lfw"
    assert found.pop("others") == {"other": found}


def test_a_bin_beside_records_is_a_set_of_its_own(tmp_path, bins):
    words = ["--recipe", tiny.recipe(tmp_path), "--evaluate.folds", "2", "--evaluate.pairs", "20"]
    found = tiny.evaluated(tmp_path, "verification", joined([tmp_path / "records", bins[0]]), *words)
    assert found["name"] == "records" and found["impostor_pairs"] and list(found["others"]) == ["lfw"]


@pytest.mark.parametrize(
    ("path", "words", "message"),
    [
        ("absent.bin", [], "absent.bin: no such file"),
        ("lfw/lfw.bin{0}", [], "a path is empty"),
        ("lfw/lfw.bin{0}lfw/lfw.bin", [], "names a set twice; name each once"),
        ("lfw/lfw.bin", ["--evaluate.folds", "21"], "20 pairs cannot be cut into evaluate.folds 21"),
        ("lfw/lfw.bin", ["--pairs", "pairs.txt"], "has pairs of its own; leave out the list pairs.txt"),
        ("records/train.rec", ["--pairs", "pairs.txt"], "pairs.txt names images, but the records of"),
        ("not.bin", [], "not.bin: not read as a verification set: damaged, or no verification set (it asks for os"),
    ],
)  # fmt: skip
def test_what_is_no_set_is_told_in_a_line(refused, tmp_path, bins, monkeypatch, path, words, message):
    monkeypatch.chdir(tmp_path)
    recipe = tiny.recipe(tmp_path)
    (tmp_path / "pairs.txt").write_text("2 1\nA 1 2\nA 1 B 1\nA 1 3\nA 1 B 2\n")
    (tmp_path / "not.bin").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    assert not refused(["evaluate", "verification", path.format(os.pathsep), "--recipe", recipe, *words], message)
