"""Predictions are those of the evaluation, for every image that can be read, under the names that people know."""

import csv
import json
import os
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import tiny
from checkpoint_cases import save
from megaclass.checkpoint.weights import find_checkpoint, stored_rows
from megaclass.cli import main
from megaclass.data.classnames import read_names
from megaclass.data.records.reader import RecordDataset
from megaclass.errors import UserError, printable
from megaclass.heads.storage import Rows
from megaclass.inference import load, model, predict

# In the order of labels. A file name is any bytes: markup, line ends but one, and no UTF-8.
CLASSES = ["a [red]b", "b\x85c", "c\rd", "d\x1b[31m", os.fsdecode(b"e\xff"), "f g"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """``images/CLASS/NUMBER.png``, a run of a linear head on them, ``linear``, and one of a margin head, ``margin``."""
    root = tmp_path_factory.mktemp("predict")
    records = RecordDataset(tiny.write_records(root / "records"))
    for index in range(len(records)):
        sample = records.read(index)
        path = root / "images" / CLASSES[sample.label] / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = cv2.imdecode(np.frombuffer(sample.encoded, np.uint8), cv2.IMREAD_COLOR)
        path.write_bytes(cv2.imencode(".png", image)[1].tobytes())
    for kind, steps in (("linear", 60), ("margin", 30)):
        sections = {
            "data": {"source": "folder", "path": str(root / "images")},
            "head": {"kind": kind} if kind == "linear" else {"scale": 16.0, "storage": "int8_rowwise"},
            "run": {"output": str(root / kind), "checkpoint_every": steps},
            "optim": {"lr": 0.05},
            "schedule": {"steps": steps},
        }
        assert main(["train", tiny.recipe(root, **sections)]) == 0
    shutil.copytree(root / "linear", root / "renamed")
    (root / "renamed/classes.txt").write_text("a\nb\n")
    shutil.copytree(root / "linear", root / "bare", ignore=shutil.ignore_patterns("checkpoints"))
    return root


@pytest.fixture(autouse=True)
def _in_the_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)


def predicted(tmp_path, *words, status=0):
    """What a call writes as JSON lines."""
    output = tmp_path / f"{len(list(tmp_path.iterdir()))}.jsonl"
    assert main(["predict", *map(str, words), "--output", str(output)]) == status
    return [json.loads(line) for line in output.read_text().splitlines()]


def labels(found):
    return [[guess["label"] for guess in entry["predictions"]] for entry in found]


# -- a linear head -----------------------------------------------------------------------------------------


def test_every_class_has_its_probability_and_they_are_in_order(tmp_path):
    found = predicted(tmp_path, "images", "--run-dir", "linear", "--top", 100)
    images = [entry["image"] for entry in found]
    assert images == sorted(images) and len(images) == 24
    for entry in found:
        guesses = entry["predictions"]
        scores = [guess["probability"] for guess in guesses]
        assert sum(scores) == pytest.approx(1, abs=1e-5) and scores == sorted(scores, reverse=True)
        assert [guess["rank"] for guess in guesses] == [1, 2, 3, 4, 5, 6]
        assert {guess["label"] for guess in guesses} == set(range(6))
        assert all(guess["class"] == CLASSES[guess["label"]] and guess["name"] is None for guess in guesses)


def test_the_first_guess_is_right_as_often_as_the_evaluation_says(tmp_path):
    top1 = tiny.evaluated(tmp_path, "classification", "images", "--run-dir", "linear")["top1"]
    found = predicted(tmp_path, "images", "--run-dir", "linear", "--top", 1)
    right = [entry["predictions"][0]["class"] == entry["image"].split("/")[1] for entry in found]
    assert sum(right) / 24 == top1 > 0.5


def test_files_come_as_they_are_named_and_directories_sorted(tmp_path):
    files = [f"images/{CLASSES[5]}/23.png", f"images/{CLASSES[0]}/00.png"]
    found = predicted(tmp_path, files[0], f"images/{CLASSES[1]}/", files[1], files[1], "--run-dir", "linear")
    between = [f"images/{CLASSES[1]}/{i:02d}.png" for i in range(4, 8)]
    assert [entry["image"] for entry in found] == [files[0], *between, files[1], files[1]]


def save_again(run, stored, state):
    save(run / "checkpoints", stored.step + 1, state=state, keep_last=9)


def test_averaged_weights_are_preferred(folder, tmp_path):
    shutil.copytree("linear", tmp_path / "run")
    stored = find_checkpoint(tmp_path / "run", "latest")
    head = stored.state["head"]
    averaged = {"weight": torch.zeros_like(head["weight"]), "bias": 9.0 * torch.eye(6)[3]}
    ema = {"backbone": stored.state["backbone"], "head": averaged}
    save_again(tmp_path / "run", stored, stored.state | {"ema": ema})
    words = ["images", "--run-dir", tmp_path / "run", "--top", 1, "--checkpoint"]
    (tmp_path / "out").mkdir()
    found = predicted(tmp_path / "out", *words, "latest")
    assert {entry["predictions"][0]["label"] for entry in found} == {3}
    before = predicted(tmp_path / "out", *words, stored.path.name)
    assert len({entry["predictions"][0]["label"] for entry in before}) > 3
    words = ["images", "--run-dir", tmp_path / "run", "--checkpoint", "latest"]
    assert tiny.evaluated(tmp_path, "classification", *words)["top1"] == pytest.approx(1 / 6)


# -- images that cannot be read ----------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 3, 24])
def test_damaged_images_are_named_and_the_others_predicted(folder, tmp_path, capsys, batch_size):
    shutil.copytree(f"images/{CLASSES[0]}", tmp_path / "set")
    whole = (tmp_path / "set/00.png").read_bytes()
    added = {"0.jpg": b"", "01x.png": whole[:90], "02\nx.png": b"text", "z.png": b"text"}
    for name, content in added.items():
        (tmp_path / "set" / name).write_bytes(content)
    (tmp_path / "out").mkdir()
    words = [tmp_path / "set", "--run-dir", "linear", "--evaluate.batch_size", batch_size]
    found = predicted(tmp_path / "out", *words, status=1)
    names = [Path(entry["image"]).name for entry in found]
    assert names == sorted(names) and len(names) == 8
    bad = [entry for entry in found if "error" in entry]
    assert [Path(entry["image"]).name for entry in bad] == list(added)
    *lines, summary = capsys.readouterr().err.splitlines()
    assert len(lines) == 4 and "02\\nx.png" in lines[2] and "4 of 8 images" in summary
    sound = predicted(tmp_path / "out", f"images/{CLASSES[0]}", "--run-dir", "linear")
    assert labels(entry for entry in found if entry not in bad) == labels(sound)


def test_where_all_are_damaged_the_file_says_so_and_no_sheet_is_drawn(tmp_path, capsys):
    (tmp_path / "x.png").write_bytes(b"text")
    words = [tmp_path / "x.png", "--run-dir", "margin", "--sheet", tmp_path / "s.png"]
    (entry,) = predicted(tmp_path, *words, status=1)
    assert entry["predictions"] == [] and "not a JPEG" in entry["error"]
    assert not (tmp_path / "s.png").exists() and "0 of 1 images predicted" in capsys.readouterr().out


def test_a_model_that_gives_nan_says_so(folder, tmp_path):
    shutil.copytree("linear", tmp_path / "run")
    stored = find_checkpoint(tmp_path / "run", "latest")
    stored.state["head"]["bias"][2] = torch.nan
    save_again(tmp_path / "run", stored, stored.state)
    (tmp_path / "out").mkdir()
    words = [f"images/{CLASSES[0]}/00.png", "--run-dir", tmp_path / "run", "--checkpoint", "latest"]
    (entry,) = predicted(tmp_path / "out", *words, status=1)
    assert entry["predictions"] == [] and "NaN" in entry["error"]


# -- a margin head -----------------------------------------------------------------------------------------


def test_a_centre_that_is_not_finite_is_named(refused, monkeypatch):
    def broken(*where):
        centres = stored_rows(*where).fp32()
        centres[3, 0] = torch.nan
        return Rows(centres)

    monkeypatch.setattr(load, "stored_rows", broken)
    refused(["predict", "images", "--run-dir", "margin"], "the centre of class 3 is not finite", "--checkpoint")


@pytest.mark.parametrize("block, images", [(8192, 4096), (4, 5), (1, 24)])
def test_the_nearest_centres_of_all_blocks_are_found(folder, tmp_path, monkeypatch, block, images):
    monkeypatch.setattr(model, "_BLOCK_CENTRES", block)
    monkeypatch.setattr(predict, "_PASS_IMAGES", images)
    shutil.copytree("images", tmp_path / "images")
    (tmp_path / "images/bad.png").write_bytes(b"text")
    monkeypatch.chdir(tmp_path)
    found = predicted(tmp_path, "images", "--run-dir", folder / "margin", "--top", 3, status=1)
    sound = [entry for entry in found if "error" not in entry]
    assert len(found) == 25 and len(sound) == 24
    stored = find_checkpoint(folder / "margin", "latest")
    centres_CD = stored.rows("head/weight").float() * stored.rows("head/weight_scale")[:, None]
    centres_CD = torch.nn.functional.normalize(centres_CD)
    embeddings_ND = embedded(stored, [entry["image"] for entry in sound])
    best = (embeddings_ND @ centres_CD.T).topk(3)
    for entry, labels, cosines in zip(sound, best.indices.tolist(), best.values.tolist(), strict=True):
        assert [guess["label"] for guess in entry["predictions"]] == labels
        assert [guess["cosine"] for guess in entry["predictions"]] == pytest.approx(cosines, abs=1e-4)
    right = [entry["predictions"][0]["class"] == entry["image"].split("/")[1] for entry in sound]
    assert sum(right) > 12


def embedded(stored, paths):
    from megaclass.models.convnet import ConvNet

    net = ConvNet(embedding_dim=16, image_size=tiny.SIZE, width=8).eval()
    net.load_state_dict(stored.state["backbone"])
    files = [np.frombuffer(Path(path).read_bytes(), np.uint8) for path in paths]
    images = [cv2.imdecode(file, cv2.IMREAD_COLOR_RGB).transpose(2, 0, 1) for file in files]
    with torch.no_grad():
        rows_ND = net((torch.from_numpy(np.stack(images)).float() - 127.5) / 127.5)
    return torch.nn.functional.normalize(rows_ND)


# -- names ---------------------------------------------------------------------------------------------------


def test_a_terminal_obeys_no_name(told):
    printed = told("predict", "images", "--run-dir", "linear", "--top", "6")
    for shown in ("a [red]b", "b\\x85c", "c\\rd", "d\\x1b[31m", "e\\udcff", "f g", "probability", " %"):
        assert shown in printed
    assert "\x1b" not in printed and "\r" not in printed


def test_without_class_names_the_labels_stand(told, folder, tmp_path):
    shutil.copytree("margin", tmp_path / "run")
    (tmp_path / "run/classes.txt").unlink()
    image = f"images/{CLASSES[0]}/00.png"
    printed = told("predict", image, "--run-dir", tmp_path / "run", "--top", "2")
    assert "cosine" in printed and re.search(r"\b1 +0 ", printed)
    (entry,) = predicted(tmp_path / "run", image, "--run-dir", tmp_path / "run", "--top", 1)
    assert entry["predictions"][0]["class"] is None and entry["predictions"][0]["label"] == 0


WNIDS = ["n01440764", "n02102040", "n02979186"]


@pytest.mark.parametrize(
    "content",
    [
        "n01440764 tench, Tinca tinca\nn09999999 more\nn02102040\tspringer\nn02979186  player\n\n",
        "\ufefftench, Tinca tinca\r\nspringer\r\nplayer\r\n",
        '{"n02979186": "player", "n01440764": "tench, Tinca tinca", "n02102040": "springer", "n1": "x"}',
        '["tench, Tinca tinca", "springer", "player"]',
        '{"1": "springer", "0": "tench, Tinca tinca", "2": "player"}',
        '{"7": ["n02979186", "player"], "0": ["n01440764", "tench, Tinca tinca"], "2": ["n02102040", "springer"]}',
    ],
)  # fmt: skip
def test_readable_names_in_every_form(tmp_path, content):
    path = tmp_path / "names.txt"
    path.write_text(content, encoding="utf-8", newline="")
    assert read_names(path, WNIDS, 3) == ["tench, Tinca tinca", "springer", "player"]


def test_names_of_numbers_serve_a_model_without_class_names(tmp_path):
    path = tmp_path / "names.json"
    path.write_text('{"0": ["n01440764", "tench"], "1": ["n02102040", "springer"]}')
    assert read_names(path, None, 2) == ["tench", "springer"]
    # Where directories are called 0, 1, 10, 2, a name belongs to the directory, not to the label.
    path.write_text(json.dumps({str(i): f"digit {i}" for i in range(11)}))
    classes = sorted(map(str, range(11)))
    assert read_names(path, classes, 11) == [f"digit {name}" for name in classes]


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("", "holds 0 names"),
        ("a\nb", "holds 2 names"),
        ("n01440764 tench\nn02102040 springer", "no name for 1 of 3 classes"),
        ('{"n01440764": 3, "n02102040": "x", "n02979186": " "}', "no name for 2 of 3 classes"),
        ('{"n1": "x"}', "holds 1 names, none of them by class"),
        ("[" * 100_000, "not valid JSON"),
        ('{"n01440764": "tench", "n01440764": "trout"}', "has the key 'n01440764' more than once"),
        (b"\xff\xfe\x00", "not a text file in UTF-8"),
    ],
)
def test_a_file_of_names_that_does_not_fit(tmp_path, content, part):
    path = tmp_path / "names.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as caught:
        read_names(path, WNIDS, 3)
    assert "\n" not in str(caught.value) and "names.txt" in str(caught.value) and part in str(caught.value)


# -- files and words -------------------------------------------------------------------------------------------


def test_json_and_csv_hold_the_same_but_for_control_letters_and_the_sheet_shows_it(tmp_path, capsys):
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"name, {i}" for i in range(6)))
    words = ["images", "--run-dir", "linear", "--top", "2", "--names", names]
    lines = predicted(tmp_path, *words, "--sheet", tmp_path / "s.png")
    for suffix in ("json", "csv"):
        assert main(["predict", *map(str, words), "--output", str(tmp_path / f"o.{suffix}")]) == 0
    assert json.loads((tmp_path / "o.json").read_text()) == lines
    with (tmp_path / "o.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        table = list(csv.DictReader(file))
    told = [(entry["image"], guess) for entry in lines for guess in entry["predictions"]]
    assert len(table) == 48 == len(told)
    for row, (image, guess) in zip(table, told, strict=True):
        fields = {"image": image, "error": ""} | {key: str(value) for key, value in guess.items()}
        assert row == {key: printable(text) for key, text in fields.items()}
        assert guess["name"] == f"name, {guess['label']}"
    assert cv2.imread(str(tmp_path / "s.png")).shape[1] > 1000
    assert "24 of 24 images predicted" in capsys.readouterr().out
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        *[([path], [f"{path!r}: neither a file nor"]) for path in ("nowhere", "/dev/null", 300 * "x")],
        (["linear/checkpoints"], ["'linear/checkpoints': neither a file nor a directory with images"]),
        (["images", "--run-dir", "renamed"], ["classes.txt: 2 names for 6 classes"]),
        (["images", "--run-dir", "bare"], ["no checkpoint there"]),
        (["images", "--run-dir="], ["name the model by one of --run-dir and --recipe"]),
        (["images", "--checkpoint", "lates"], ["did you mean 'latest'"]),
        (["images", "--top", "0"], ["--top: 0"]),
        (["images", "--output", "linear/config.toml"], ["--output", "exists"]),
        (["images", "--output", "x.txt"], ["--output: x.txt", ".jsonl"]),
        (["images", "--sheet", "x.jpg"], ["--sheet: x.jpg", ".png"]),
        (["images", "--model.embedding_dim", "32"], ["checkpoint of another model"]),
        (["images", "--align", "linear/config.toml"], ["config.toml: not a face detector that OpenCV reads"]),
        (["images", "--names", "nowhere"], ["--names: nowhere cannot be read"]),
    ],
)
def test_what_is_typed_wrong_is_told_in_one_line(refused, words, parts):
    words = words if "--run-dir" in "".join(words) else [*words, "--run-dir", "linear"]
    refused(["predict", *words], *parts)


def test_weights_that_a_run_started_from_need_not_be_there_any_more(folder, tmp_path):
    assert len(predicted(tmp_path, "images", "--run-dir", "linear", "--model.weights", "gone.pth")) == 24
