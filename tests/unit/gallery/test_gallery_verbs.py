"""From images to vectors and a gallery, and who is on an image, on the command line."""

import csv
import json

import cv2
import numpy as np
import pytest

import megaclass
import tiny
from megaclass.cli import main
from megaclass.data.records.reader import RecordDataset
from megaclass.inference.vectors import read_embeddings


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """``run``; ``people/pN``, three images of each of five identities and one that is damaged; ``query``, others of
    these and of one more; ``table.csv`` of the people."""
    root = tmp_path_factory.mktemp("verbs")
    verification = {"task": "verification", "path": str(root / "records"), "folds": 2}
    run = {"output": str(root / "run"), "checkpoint_every": 60}
    assert main(["train", tiny.recipe(root, run=run, schedule={"steps": 60}, evaluate=verification)]) == 0
    records = RecordDataset(root / "records")
    for index in range(len(records)):
        sample = records.read(index)
        kind = "query" if index % 4 == 3 else "people" if sample.label < 5 else "more"
        path = root / kind / f"p{sample.label}" / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sample.encoded)
    people = sorted((root / "people").rglob("*.jpg"))
    lines = [f"{path.relative_to(root)},{path.parent.name}" for path in people]
    (root / "table.csv").write_text("path,identity\n" + "\n".join(lines))
    (root / "people" / "p0" / "bad.jpg").write_bytes(b"\xff\xd8 no more")
    (root / "one.png").write_bytes(cv2.imencode(".png", cv2.imread(str(people[0])))[1].tobytes())
    return root


@pytest.fixture(autouse=True)
def there(folder, monkeypatch):
    monkeypatch.chdir(folder)


def test_images_become_vectors_and_a_gallery_that_knows_them(told, folder, tmp_path, capfd):
    model, out = ["--run-dir", "run"], str(tmp_path)
    assert main(["embed", "people", "-o", f"{out}/v.npz", *model]) == 1
    assert "bad.jpg" in capfd.readouterr().err
    stored = read_embeddings(f"{out}/v.npz")
    assert len(stored.names) == 15 and stored.names[0] == "people/p0/0.jpg"
    assert [stored.classes[label] for label in stored.labels] == [name.split("/")[1] for name in stored.names]
    loaded = megaclass.load("run")
    assert abs(loaded.embed(stored.names) - stored.embeddings).max() < 1e-5

    np.savez(f"{out}/numbers.npz", embeddings=stored.embeddings, labels=10**15 + stored.labels)
    assert main(["gallery", "build", f"{out}/d", f"{out}/numbers.npz"]) == 0
    assert megaclass.Gallery(f"{out}/d").search(stored.embeddings[3:4])[0][0].identity == str(10**15 + 1)

    far = ["--far", "1e-2"]
    assert main(["gallery", "build", f"{out}/a", "people", *far, *model]) == 1
    assert main(["gallery", "build", f"{out}/b", "table.csv", "--verify", "records", *far, *model]) == 0
    assert main(["gallery", "build", f"{out}/c", f"{out}/v.npz", "--threshold", "0.5"]) == 0
    found = [megaclass.Gallery(f"{out}/{name}", loaded) for name in "abc"]
    assert found[0].threshold == pytest.approx(loaded.thresholds["1e-2"]) == pytest.approx(found[1].threshold, abs=1e-3)
    assert found[2].threshold == 0.5
    queries = sorted(str(path) for path in (folder / "query").rglob("*.jpg"))
    for gallery in found:
        rows = gallery.search(queries)
        assert [row[0].identity for row in rows[:5]] == [f"p{label}" for label in range(5)]
        assert [row[0].known for row in rows] == 5 * [True] + [False]

    assert "p5/23.jpg: unknown" in told("gallery", "search", f"{out}/a", "query", "--top", "2", *model)
    assert main(["gallery", "add", f"{out}/a", "more", *model]) == 0
    files = ["--output", f"{out}/o.csv", "--sheet", f"{out}/s.png"]
    assert main(["gallery", "search", f"{out}/a", "query", "people/p0/bad.jpg", *files, *model]) == 1
    with (tmp_path / "o.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    best = [row["identity"] for row in table if row["rank"] == "1"]
    assert best == [f"p{label}" for label in range(6)] and "bad.jpg" in table[-1]["error"]
    assert cv2.imread(f"{out}/s.png").shape[0] > 6 * 112
    assert main(["gallery", "remove", f"{out}/a", "p5", "people/p0/0.jpg"]) == 0
    assert json.loads(told("gallery", "info", f"{out}/a"))["images"] == 14


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("embed people -o x.txt --run-dir run", "x.txt ends with none of .npz"),
        ("embed nowhere -o x.npz --run-dir run", "nowhere"),
        ("embed people -o x.npz", "--run-dir"),
        ("embed people/p0/bad.jpg -o x.npz --run-dir run", "no image could be embedded"),
        ("gallery", "which gallery command? known: build"),
        ("gallery find", "unknown gallery command 'find'"),
        ("gallery build people people --run-dir run", "DIR: people exists"),
        ("gallery build g one.png --run-dir run", "one.png: does not say who is on its images"),
        ("gallery build g people --run-dir run --far 1e-7", "--far 1e-7: not known of"),
        ("gallery build g run/config.toml --run-dir run", "config.toml"),
        ("gallery add nowhere people --run-dir run", "nowhere: no gallery there"),
        ("gallery remove people p0", "people: no gallery there"),
        ("gallery search people query --run-dir run", "people: no gallery there"),
        ("gallery info", "the following arguments are required: gallery"),
    ],
)
def test_what_is_typed_wrong_is_told_in_one_line_and_nothing_is_written(refused, folder, words, told):
    assert not refused(words.split(), told, below=folder, warned="bad.jpg" in words)
