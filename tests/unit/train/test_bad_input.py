"""Bad input: exit status 2, one line that names the thing and what to do, no traceback, nothing overwritten."""

import os
import pickle
import shutil

import pytest
import torch

import tiny
from megaclass.cli import main
from megaclass.config import options
from megaclass.data.records.reader import RecordDataset
from megaclass.data.records.writer import RecordWriter


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    """Default run directories and caches land in the test's folder, and no launcher is about."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEGACLASS_CACHE", str(tmp_path / "cache"))
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def refused(capfd, recwarn, caplog, tmp_path):
    """Call the command line and assert that it refuses, says ``parts`` in one line, and touches nothing.

    Returns the paths that are new.
    """

    def check(words, *parts):
        before = contents(tmp_path)
        capfd.readouterr()
        assert main([str(word) for word in words]) == 2
        lines = capfd.readouterr().err.splitlines()
        assert len(lines) == 1, lines
        assert not recwarn.list and not caplog.records  # these would be lines too
        assert lines[0].startswith("megaclass: error: ")
        for part in parts:
            assert str(part) in lines[0]
        after = contents(tmp_path)
        assert {path: after.get(path) for path in before} == before
        return set(after) - set(before)

    return check


def contents(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of two steps with two checkpoints; tests work on copies."""
    folder = tmp_path_factory.mktemp("finished")
    assert main(["train", tiny.recipe(folder, run={"checkpoint_every": 1}, schedule={"steps": 2})]) == 0
    return folder


@pytest.fixture
def earlier(finished, tmp_path):
    """The words that start a run into a directory which holds one."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return ["train", tiny.recipe(tmp_path), "--schedule.steps", "4"]


# -- what is typed ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, parts",
    [
        (["trian"], ["unknown command 'trian'", "did you mean 'train'"]),
        (["train"], ["recipe", "--help"]),
        (["bench"], ["which benchmark", "head"]),
        (["train", "synthetic_618k", "--head.placement", "host"], ["head.placement"]),
        (["train", "synthetic_618k", "--head.kernels", "tritn"], ["head.kernels", "tritn"]),
        (["train", "glyph"], ["no recipe 'glyph'", "did you mean 'glyphs'", "`megaclass recipes`", ".toml"]),
        (["train", "mine.toml"], ["mine.toml", "no such file"]),
        (["train", "glyphs", "--optim.lrr", "1"], ["unknown key 'optim.lrr'", "did you mean 'optim.lr'"]),
        (["train", "glyphs", "--optm.lr=1"], ["unknown key 'optm.lr'", "did you mean 'optim.lr'"]),
        (["train", "glyphs", "--resum"], ["--resum", "did you mean '--resume'"]),
        (["train", "glyphs", "--optim.lr", "fast"], ["optim.lr", "fast"]),
        (["train", "glyphs", "--optim.lr", "-1"], ["optim.lr", "-1", "below 0"]),
        (["train", "glyphs", "--optim.lr", "nan"], ["optim.lr", "nan"]),
        (["train", "glyphs", "--schedule.epochs", "inf"], ["schedule.epochs", "inf"]),
        (["train", "glyphs", "--head.kind", "margn"], ["head.kind", "'margn'", "did you mean 'margin'"]),
        (["train", "glyphs", "--model.name", "iresnet51"], ["unknown backbone 'iresnet51'", "did you mean"]),
        (["train", "glyphs", "--run.device", "gpu"], ["run.device", "'gpu'", "cuda:N"]),
        (["train", "glyphs", "--resume"], ["--resume", "no run of recipe 'glyphs'", "--run.output"]),
        (["show", "omnigot"], ["no recipe 'omnigot'", "did you mean 'omniglot'"]),
        (["evaluate", "verificaton", "x"], ["unknown evaluation 'verificaton'", "'verification'"]),
        (["evaluate", "verification", "nowhere", "--recipe", "glyphs"], ["nowhere", "no such file"]),
        (["evaluate", "verification", "x", "--run-dir", "nowhere"], ["nowhere", "no such file"]),
        (["data", "pak"], ["unknown data command 'pak'", "did you mean 'pack'"]),
        (["data", "pack", "nowhere", "out"], ["nowhere"]),
        (["data", "pack", "nowhere", "out", "--qualty", "3"], ["--qualty", "--help"]),
        (["recipes", "glyphs"], ["glyphs", "--help"]),
    ],
)  # fmt: skip
def test_a_wrong_word(refused, words, parts):
    assert not refused(words, *parts)


def test_a_recipe_file_with_an_unknown_key_names_file_and_key(refused, tmp_path):
    (tmp_path / "mine.toml").write_text("[augment]\nrotate = 3\n")
    assert not refused(["train", "mine.toml"], "mine.toml", "'augment.rotate'", "'augment.rotate_degrees'")


def test_a_recipe_file_that_is_no_toml(refused, tmp_path):
    (tmp_path / "mine.toml").write_text("[optim\nlr = 1\n")
    assert not refused(["show", "mine.toml"], "mine.toml", "not valid TOML", "line 1")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_where_there_is_none(refused, tmp_path):
    assert not refused(["train", tiny.recipe(tmp_path), "--run.device", "cuda"], "run.device", "cpu or auto")


def test_a_batch_that_cannot_be_shared(refused, tmp_path):
    words = ["train", tiny.recipe(tmp_path), "--data.accumulation", "5"]
    assert not refused(words, "data.global_batch_size: 12", "data.accumulation 5")


def test_a_batch_without_statistics(refused, tmp_path):
    words = ["train", tiny.recipe(tmp_path), "--data.accumulation", "12"]
    assert not refused(words, "data.global_batch_size: 12", "one image", "take 24 or more")


# -- what is read -------------------------------------------------------------------------------------


def test_no_data_where_the_recipe_says(refused, tmp_path):
    words = ["train", tiny.recipe(tmp_path), "--data.path", "nowhere"]
    assert not refused(words, "nowhere", "no such file or directory")


def test_an_empty_directory(refused, tmp_path):
    (tmp_path / "empty").mkdir()
    for source in ("records", "folder"):
        words = ["train", tiny.recipe(tmp_path), "--data.path", "empty", "--data.source", source]
        assert not refused(words, "empty")


def test_an_empty_record_file(refused, tmp_path):
    words = ["train", tiny.recipe(tmp_path)]
    (tmp_path / "records" / "train.rec").write_bytes(b"")
    assert not refused(words, "train.rec", "0 bytes", "pack the set again")


@pytest.mark.parametrize("stated", [5, 7])
def test_a_class_count_that_differs_from_the_data(refused, tmp_path, stated):
    words = ["train", tiny.recipe(tmp_path), "--data.num_classes", stated]
    assert not refused(words, f"data.num_classes: {stated}", "has 6 classes", "leave it 0")


def test_labels_outside_the_class_range(refused, tmp_path):
    words = ["train", tiny.recipe(tmp_path)]
    (tmp_path / "records" / "property").write_text(f"3,{tiny.SIZE},{tiny.SIZE}\n")
    refused(words, "train.rec record", "label", "outside the 3 classes")


def test_an_image_that_cannot_be_read(refused, tmp_path):
    words = ["train", tiny.recipe(tmp_path)]
    sound = RecordDataset(tmp_path / "records")
    with RecordWriter(tmp_path / "damaged", image_size=(tiny.SIZE, tiny.SIZE)) as writer:
        for index in range(len(sound)):
            encoded, label = sound.read(index)
            writer.write(encoded[:40] if index == 5 else encoded, label)
    refused([*words, "--data.path", "damaged"], "train.rec record 6", "damaged image", "replace or remove")
    # With the data mended, the run goes on where it was.
    assert main([*words, "--resume", "--data.path", str(tmp_path / "records")]) == 0


class Intruder:
    def __reduce__(self):
        return os.mkdir, ("intruded",)


@pytest.mark.parametrize("kind", ["torch", "pickle"])
def test_a_weight_file_that_would_run_code_does_not(refused, tmp_path, kind):
    if kind == "torch":
        torch.save({"weight": Intruder()}, "model.pt")
    else:
        (tmp_path / "model.pt").write_bytes(pickle.dumps(Intruder()))
    words = ["train", tiny.recipe(tmp_path), "--model.weights", "model.pt"]
    assert not refused(words, "model.pt", "not a PyTorch weight file that can be opened safely")


def test_weights_of_another_model(refused, tmp_path):
    torch.save({"conv1.weight": torch.zeros(3)}, "model.pt")
    words = ["train", tiny.recipe(tmp_path), "--model.weights", "model.pt"]
    assert not refused(words, "model.pt", "another model", "conv1.weight", "choose the backbone")


# -- what is there already ----------------------------------------------------------------------------


def test_a_directory_that_holds_a_run(refused, earlier, tmp_path):
    assert not refused(earlier, tmp_path / "run", "holds a run already", "--resume")


def test_a_directory_that_is_a_file(refused, tmp_path):
    (tmp_path / "taken").write_text("mine")
    words = ["train", tiny.recipe(tmp_path), "--run.output"]
    assert not refused([*words, "taken"], "run.output: taken is a file", "name a directory")
    assert not refused([*words, "taken/run"], "run.output: taken is a file", "name a directory")


@pytest.mark.parametrize(
    "setting, value",
    [
        ("model.width", 16),
        ("model.embedding_dim", 32),
        ("head.kind", "linear"),
        ("optim.name", "adamw"),
        ("data.global_batch_size", 6),
    ],
)
def test_a_checkpoint_of_another_model(refused, earlier, setting, value):
    assert not refused([*earlier, "--resume", f"--{setting}", value], "step-00000002", "another model", value)


def test_a_checkpoint_of_another_backbone(refused, earlier):
    # So narrow, it would warn that it leaves channels_last.
    words = ["--model.name", "iresnet18", "--precision.channels_last", "false"]
    assert not refused([*earlier, "--resume", *words], "step-00000002", "another model", "iresnet18")


@pytest.mark.parametrize("file", ["replicated", "shard", "manifest"])
def test_a_damaged_checkpoint(refused, earlier, tmp_path, file):
    (path,) = (tmp_path / "run" / "checkpoints" / "step-00000002").glob(f"{file}*")
    content = bytearray(path.read_bytes())
    content[-len(content) // 4] ^= 1
    path.write_bytes(content)
    assert not refused([*earlier, "--resume"], path, "resume from step-00000001")


def test_a_result_file_that_is_there(refused, finished, tmp_path):
    (tmp_path / "scores.json").write_text("mine")
    words = ["evaluate", "verification", finished / "records", "--run-dir", finished / "run"]
    assert not refused([*words, "--output", "scores.json"], "--output: scores.json exists", "another file")
    assert not refused([*words, "--output", "no/scores.json"], "--output: no is not a directory")


def test_a_resume_keeps_the_settings_of_the_run(earlier, tmp_path):
    """What was changed on the command line at the start need not be repeated."""
    words = ["train", tiny.recipe(tmp_path), "--run.output", str(tmp_path / "changed")]
    assert main([*words, "--schedule.steps", "3", "--optim.lr", "0.005"]) == 0
    before = (tmp_path / "changed" / "config.toml").read_text()
    assert main([*words, "--resume"]) == 0
    assert (tmp_path / "changed" / "config.toml").read_text() == before


@pytest.mark.parametrize("words", [["train"], ["show"], ["predict"], ["bench", "train"]])
def test_help_is_short_and_help_all_names_every_setting(words, capsys):
    said = {}
    for flag in ("--help", "--help-all"):
        with pytest.raises(SystemExit) as ended:
            main([*words, flag])
        assert ended.value.code == 0
        said[flag] = capsys.readouterr().out
    assert said["--help"].count("\n") < 100 and "--optim.lr" not in said["--help"]
    assert all(f"--{key}" in said["--help-all"] for key in options())
