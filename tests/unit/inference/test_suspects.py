"""Labels that were planted wrong are found by a trained head, and left out of the next pack."""

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest

import tiny
from megaclass.cli import main
from megaclass.data.open import open_dataset
from megaclass.data.records.reader import RecordDataset
from megaclass.inference import load, model, suspects

CLASSES, SAMPLES, WRONG = 8, 24, 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """``images/CLASS/NUMBER.png``, the first 3 of each class being of others, and runs of 1 and 3 centres a class."""
    root, random = tmp_path_factory.mktemp("suspects"), np.random.default_rng(0)
    patterns = random.integers(0, 200, (CLASSES, 4, 4, 3)).repeat(4, 1).repeat(4, 2)
    for label in range(CLASSES):
        (root / f"images/c{label}").mkdir(parents=True)
        for number in range(SAMPLES):
            pattern = patterns[(label + 1 + number) % CLASSES if number < WRONG else label]
            image = (pattern + random.integers(0, 56, pattern.shape)).astype(np.uint8)
            cv2.imwrite(str(root / f"images/c{label}/{number:02}.png"), image)
    for name, head in {
        "1": {"sub_centres": 1},
        "3": {"sub_centres": 3},
        "linear": {"kind": "linear"},
    }.items():
        sections = {
            "data": {"source": "folder", "path": str(root / "images"), "global_batch_size": 24},
            "run": {"output": str(root / name)},
            "head": {"scale": 16.0} | head if name != "linear" else head,
            "optim": {"lr": 0.05},
            "schedule": {"steps": 1 if name == "linear" else 30},
        }
        tiny.run(root, **sections)
    return root


@pytest.fixture(autouse=True)
def _in_the_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)


def listed(path):
    with path.open(encoding="utf-8", newline="") as file:
        return [row["image"] for row in csv.DictReader(file)]


@pytest.mark.parametrize("count", ["1", "3"])
def test_what_was_planted_is_listed_and_the_next_pack_is_without_it(told, tmp_path, count):
    said = told("data", "suspects", count, "--output", tmp_path / "s.csv")
    found = listed(tmp_path / "s.csv")
    wrong = [int(image[-6:-4]) < WRONG for image in found]
    assert sum(wrong) >= 0.75 * CLASSES * WRONG and wrong.count(False) <= 3
    assert f"listed {len(found)} {len(found) / (CLASSES * SAMPLES):.1%}" in " ".join(said.split())
    assert ("nearest to another sub-centre" in said) == (count == "3")
    words = ["data", "pack", "images", tmp_path / "clean", "--exclude", tmp_path / "s.csv"]
    assert f", {len(found)} excluded)" in told(*words)
    assert len(RecordDataset(tmp_path / "clean")) == CLASSES * SAMPLES - len(found)


def test_a_record_set_is_judged_and_packed_anew(tmp_path):
    records, clean = str(tmp_path / "all"), tmp_path / "clean"
    assert main(["data", "pack", "images", records]) == 0
    assert main(["data", "suspects", "1", "--data", records, "--gap", "0.1", "--output", str(tmp_path / "s.csv")]) == 0
    assert main(["data", "pack", records, str(clean), "--exclude", str(tmp_path / "s.csv")]) == 0
    before, after, out = RecordDataset(records), RecordDataset(clean), set(listed(tmp_path / "s.csv"))
    kept = [before.read(i) for i in range(len(before)) if before.describe(i) not in out]
    assert out and kept == [after.read(i) for i in range(len(after))] and after.classes == before.classes


def test_a_class_that_a_list_has_emptied_keeps_its_number(tmp_path):
    (tmp_path / "names.txt").write_text("".join(f"images/c3/{n:02}.png\n" for n in range(SAMPLES)))
    exclude, once, twice = (str(tmp_path / name) for name in ("names.txt", "once", "twice"))
    assert main(["data", "pack", "images", once, "--exclude", exclude]) == 0
    assert main(["data", "pack", once, twice]) == 0
    first, second = RecordDataset(once), RecordDataset(twice)
    assert second.classes == [f"c{n}" for n in range(CLASSES)]
    assert (first.labels() == second.labels()).all() and 3 not in second.labels()
    names = ["crane" if n in (0, 2) else f"c{n}" for n in range(CLASSES)]  # as ImageNet's readable ones
    (tmp_path / "once/classes.txt").write_text("\n".join(names) + "\n")
    assert main(["data", "pack", once, twice + "2"]) == 0
    assert (first.labels() == RecordDataset(twice + "2").labels()).all()


def test_cosines_are_those_to_the_dominant_sub_centre_and_to_the_nearest_other_class(monkeypatch):
    """Block by block, as of many classes and images."""
    monkeypatch.setattr(model, "_BLOCK_CENTRES", 7)
    monkeypatch.setattr(suspects, "_PASS_IMAGES", 50)
    trained, dataset = load.load("3"), open_dataset("images")
    found = suspects.judge(trained, dataset, 1, pytest.fail, lambda done, total: None)
    rows = trained.embed([f"images/{name}" for name in dataset.names])
    cosines_NCK = (rows @ trained.centres.numpy().T).reshape(len(rows), CLASSES, 3)
    for label in range(CLASSES):
        mine = dataset.labels() == label
        own_NK, others_NC = cosines_NCK[mine, label], cosines_NCK[mine].max(2)
        others_NC[:, label] = -1
        dominant = np.bincount(own_NK.argmax(1), minlength=3).argmax()
        assert found.cosine_N[mine] == pytest.approx(own_NK[:, dominant], abs=1e-5)
        assert found.strays_N[mine].tolist() == (own_NK.argmax(1) != dominant).tolist()
        assert found.other_N[mine].tolist() == others_NC.argmax(1).tolist()
        assert found.other_cosine_N[mine] == pytest.approx(others_NC.max(1), abs=1e-5)


@pytest.mark.parametrize(
    ("names", "left_out", "told"),
    [
        (["c0/00.png", "images/c1/01.png", "{root}/images/c2/02.png"], 3, ""),
        (["c0/00.png", "c0/none.png"], 1, "1 of 2 names are of no image, c0/none.png the first"),
        (["", "c0/00.png", "c0/00.png"], 1, ""),
        (["none.png"], None, "names none of the images"),
        (["x" * 200_000], None, "names none of the images"),
        (["image,class", "c0/00.png,c1", "x" * 200_000], None, "names none of the images"),
    ],
)
def test_images_to_leave_out_by_name(tmp_path, folder, caplog, capsys, names, left_out, told):
    (tmp_path / "names.txt").write_text("".join(f"{name.format(root=folder)}\n" for name in names))
    status = main(["data", "pack", "images", str(tmp_path / "out"), "--exclude", str(tmp_path / "names.txt")])
    out, err = capsys.readouterr()
    assert told in err + caplog.text and status == (0 if left_out else 2)
    assert not left_out or f", {left_out} excluded)" in out


def test_an_image_that_a_table_names_twice_is_left_out_twice(tmp_path):
    (tmp_path / "all.csv").write_text("images/c0/00.png,a\nimages/c0/00.png,b\nimages/c0/01.png,a\n")
    (tmp_path / "names.txt").write_text("images/c0/00.png\n")
    table, out, exclude = (str(tmp_path / name) for name in ("all.csv", "out", "names.txt"))
    (tmp_path / "images").symlink_to(Path("images").absolute())
    assert main(["data", "pack", table, out, "--exclude", exclude]) == 0
    assert len(RecordDataset(out)) == 1


def test_what_cannot_be_judged_is_told(refused, tmp_path, folder):
    (tmp_path / "other/a").mkdir(parents=True)
    (tmp_path / "other/a/1.png").write_bytes((folder / "images/c0/00.png").read_bytes())
    for words, told in (
        (["linear"], "holds no class centres"),
        (["1", "--data", str(tmp_path / "other")], "--data: the model knows no class 'a'"),
        (["1", "--data", "images/c0/00.png"], "has no labelled images"),
        (["1", "--gap", "nan"], "--gap: nan; it is of cosines"),
    ):
        refused(["data", "suspects", *words], told)
