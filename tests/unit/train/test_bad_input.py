"""Bad input: exit status 2, one line that names the thing and what to do, no traceback, nothing overwritten."""

import io
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch

import tiny
from checkpoint_cases import save
from megaclass import checkpoint
from megaclass.checkpoint import Sharded
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
def train(tmp_path):
    """The words of a training that goes well."""
    return ["train", tiny.recipe(tmp_path)]


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
        (["train", "glyph"], ["no recipe 'glyph'", "did you mean 'glyphs'", "`megaclass recipes`", ".toml"]),
        (["train", "mine.toml"], ["mine.toml", "no such file"]),
        (["train", "glyphs", "--optim.lrr", "1"], ["unknown key 'optim.lrr'", "did you mean 'optim.lr'"]),
        (["train", "glyphs", "--lr", "0.1"], ["unknown argument '--lr'", "did you mean '--optim.lr'"]),
        (["train", "glyphs", "--resum"], ["--resum", "did you mean '--resume'"]),
        (["train", "glyphs", "--model.name", "iresnet51"], ["unknown backbone 'iresnet51'", "did you mean"]),
        (["train", "glyphs", "--run.device", "gpu"], ["run.device", "'gpu'", "cuda:N"]),
        (["train", "glyphs", "--resume"], ["--resume", "no run of recipe 'glyphs'", "--run.output"]),
        (["evaluate", "verificaton", "x"], ["unknown evaluation 'verificaton'", "'verification'"]),
        (["evaluate", "verification", "x", "--run-dir", "nowhere"], ["nowhere is no run", "config.toml"]),
        (["data", "pak"], ["unknown data command 'pak'", "did you mean 'pack'"]),
        (["data", "pack", "nowhere", "out", "--qualty", "3"], ["--qualty", "--help"]),
        (["recipes", "glyphs"], ["glyphs", "--help"]),
    ],
)  # fmt: skip
def test_a_wrong_word(refused, words, parts):
    assert not refused(words, *parts)


@pytest.mark.parametrize(
    "setting, parts",
    [
        ("data.accumulation=5", ["data.global_batch_size: 12", "data.accumulation 5"]),
        ("data.accumulation=12", ["data.global_batch_size: 12", "one image", "take 24 or more"]),
        ("data.path=nowhere", ["nowhere", "no such file or directory"]),
        ("data.path=empty", ["empty"]),
        ("data.num_classes=5", ["data.num_classes: 5", "has 6 classes", "leave it 0"]),
        ("run.output=taken/run", ["run.output: taken is a file", "name a directory"]),
        ("run.device=cuda", ["run.device", "cpu or auto"]),
    ],
)
def test_a_setting_that_does_not_fit(refused, tmp_path, train, setting, parts):
    if setting.endswith("cuda") and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    (tmp_path / "empty").mkdir()
    (tmp_path / "taken").write_text("mine")
    assert not refused([*train, f"--{setting}"], *parts)


# -- what is read -------------------------------------------------------------------------------------


def test_an_image_that_cannot_be_read(refused, tmp_path, train):
    sound = RecordDataset(tmp_path / "records")
    with RecordWriter(tmp_path / "damaged") as writer:
        for index in range(len(sound)):
            encoded, label = sound.read(index)
            writer.write(encoded[:40] if index == 5 else encoded, label, (tiny.SIZE, tiny.SIZE))
    refused([*train, "--data.path", "damaged"], "train.rec record 6", "damaged image", "replace or remove")
    # With the data mended, the run goes on where it was.
    assert main([*train, "--resume", "--data.path", str(tmp_path / "records")]) == 0


class Intruder:
    def __reduce__(self):
        return os.mkdir, ("intruded",)


def saved(content):
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


@pytest.mark.parametrize(
    "content, why",
    [
        (saved({"weight": Intruder()}), "holds an object of"),
        (pickle.dumps(Intruder()), "another format"),
        (saved({"net": torch.nn.Linear(2, 2)}), "holds an object of torch.nn."),
        (b"\x08\x07\x12\x07pytorch" * 20, "another format"),
    ],
)
def test_a_weight_file_that_would_run_code_does_not(refused, train, content, why):
    Path("model.pt").write_bytes(content)
    words = [*train, "--model.weights", "model.pt"]  # without PyTorch's advice to switch weights_only off
    assert not refused(words, "model.pt: not a PyTorch file that can be opened safely", why, "state_dict()")


def test_weights_of_another_model(refused, train):
    torch.save({"conv1.weight": torch.zeros(3)}, "model.pt")
    words = [*train, "--model.weights", "model.pt"]
    assert not refused(words, "model.pt", "another model", "conv1.weight", "choose the backbone")


# -- what is there already ----------------------------------------------------------------------------


def test_a_directory_that_holds_a_run(refused, earlier, tmp_path):
    assert not refused(earlier, tmp_path / "run", "holds a run already", "--resume")


@pytest.mark.parametrize(
    "words",
    [
        ["--model.width", "16"],
        ["--optim.name", "adamw"],
        ["--model.name", "iresnet18", "--precision.channels_last", "false"],  # so narrow, it would warn
    ],
)
def test_a_checkpoint_of_another_model(refused, earlier, words):
    assert not refused([*earlier, "--resume", *words], "step-00000002", "another model", words[1])


def test_an_average_that_the_run_has_not_kept(refused, earlier):
    words = [*earlier, "--resume", "--optim.ema_decay", "0.9"]
    assert not refused(words, "step-00000002: optim.ema_decay: the run has kept no average", "leave it 0")


def test_a_checkpoint_that_another_program_wrote_is_not_exported(refused, earlier, tmp_path):
    root = tmp_path / "run" / "checkpoints"
    stored = checkpoint.load(checkpoint.latest(root))
    sharded = {name: Sharded(stored.rows(name), 0, tiny.CLASSES) for name in stored.sharded}
    save(root, 3, state=stored.state, sharded=sharded, identity={}, keep_last=3)
    words = ["export", "arcface_torch", "run", "out"]
    assert not refused(words, "step-00000003: not a checkpoint that `megaclass train` wrote", "training_samples")


def damage(root, pattern):
    for path in root.glob(pattern):
        content = bytearray(path.read_bytes())
        content[-len(content) // 4] ^= 1
        path.write_bytes(content)


def test_checkpoints_that_are_all_damaged(earlier, tmp_path, capfd):
    damage(tmp_path / "run" / "checkpoints", "*/shard*")
    assert main([*earlier, "--resume"]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert ".damaged-step-00000001 is damaged" in line and "no other one is left: start anew" in line


def test_a_result_file_that_is_there(refused, finished, tmp_path):
    (tmp_path / "scores.json").write_text("mine")
    words = ["evaluate", "verification", finished / "records", "--run-dir", finished / "run"]
    assert not refused([*words, "--output", "scores.json"], "--output: scores.json exists", "another file")
    assert not refused([*words, "--output", "no/scores.json"], "--output: no is not a directory")


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
