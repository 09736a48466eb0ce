"""``megaclass checkpoint``, and the weights that ``megaclass export`` writes from checkpoints."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

import tiny
from megaclass import checkpoint
from megaclass.cli import main


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two checkpoints that keeps an average of its weights."""
    folder = tmp_path_factory.mktemp("trained")
    recipe = tiny.recipe(folder, run={"checkpoint_every": 5}, optim={"ema_decay": 0.9}, head={"storage": "bf16"})
    assert main(["train", recipe]) == 0
    return folder / "run"


@pytest.fixture
def run(trained, tmp_path, monkeypatch):
    """A copy of it as ``run``, in the working directory."""
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(trained, tmp_path / "run")


def test_verify_reads_every_file(told, run):
    first, last = told("checkpoint", "verify", "run").splitlines()
    assert told("checkpoint", "verify", "run/checkpoints/step-00000010") == f"{last}\n"
    assert first.startswith("step-00000005  whole: convnet, 6 classes, ") and last.endswith("of 1 ranks")
    before = first
    (shard,) = (run / "checkpoints" / "step-00000005").glob("shard-*")
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    (run / "checkpoints" / "step-00000010" / "manifest.json").unlink()
    found = told("checkpoint", "info", "run/checkpoints/step-00000005")  # it reads no tensors
    assert found == before.replace("whole: ", "") + "\n"
    first, second = told("checkpoint", "verify", "run", status=2).splitlines()
    assert first.startswith(f"step-00000005  damaged: {shard.name}: has checksum")
    assert second.startswith("step-00000010  damaged: manifest.json: FileNotFoundError")
    assert (run / "checkpoints" / "step-00000005").is_dir()  # it looks, and sets nothing aside


def stored_in(run):
    return checkpoint.load(checkpoint.latest(run / "checkpoints"))


@pytest.mark.parametrize(("classes", "start", "stop"), [("1:4", 1, 4), (":2", 0, 2), ("5:", 5, 6)])
def test_the_centres_of_some_classes(told, run, classes, start, stop):
    words = ["run", "rows.safetensors", "--classes", classes, "--checkpoint", "latest"]
    assert told("export", "centres", *words) == f"weight and momentum of {stop - start} classes\nwrote {words[1]}\n"
    rows = load_file("rows.safetensors")
    assert rows.keys() == {"weight", "momentum"} and rows["weight"].dtype == torch.float32
    for name, found in rows.items():
        assert torch.equal(found, stored_in(run).rows(f"head/{name}", start, stop).float())


def test_one_file_of_all_and_a_backbone_in_either_format(told, run, monkeypatch):
    monkeypatch.setattr("megaclass.export.weights._BLOCK_BYTES", 100)  # a row at a time
    stored, average = stored_in(run), stored_in(run).state["ema"]["backbone"]
    told("export", "safetensors", stored.path, "all.safetensors")
    found = load_file("all.safetensors")
    assert found.keys() == {"head.weight"} | {f"backbone.{name}" for name in average}
    assert torch.equal(found["head.weight"], stored.rows("head/weight").float())
    told("export", "backbone", stored.path, "model.pt")
    told("export", "backbone", "model.pt", "backbone.safetensors")
    for state in (torch.load("model.pt", weights_only=True), load_file("backbone.safetensors")):
        assert state.keys() == average.keys()
        assert all(torch.equal(state[name], average[name]) for name in state)


def test_whole_checkpoints_of_arcface_torch_become_one_file(told, run):
    told("export", "arcface_torch", "run", "theirs", "--ranks", "2", "--checkpoint", "latest")
    told("export", "safetensors", "theirs", "all.safetensors")
    found, stored = load_file("all.safetensors"), stored_in(run)
    assert torch.equal(found["head.weight"], stored.rows("head/weight").float())
    for name, tensor in stored.state["backbone"].items():  # to train on: of the last step, no average
        assert torch.equal(found[f"backbone.{name}"], tensor)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("checkpoint verify nowhere", "nowhere: no checkpoint there; give run directory"),
        ("checkpoint verify .", ".: no checkpoint there"),
        ("checkpoint verfy run", "unknown checkpoint command 'verfy' (did you mean 'verify'?)"),
        ("export centres run x.pt", "x.pt does not end with .safetensors"),
        ("export centres run x.safetensors --classes 3", "'3' is no range; write START:STOP"),
        ("export centres run x.safetensors --classes 3:7", "3:7 of 6 classes"),
        ("export centres run x.safetensors --classes 3:3", "3:3 of 6 classes"),
        ("export centres backbone.pt x.safetensors", "no class centres there"),
        ("export backbone run kept.safetensors", "OUTPUT: kept.safetensors exists"),
        ("export backbone run nowhere/x.pt", "nowhere is not a directory"),
        ("export backbone run x.bin", "x.bin does not end with .safetensors or .pt or .pth"),
        ("export backbone rows.pt x.pt", "there is no backbone in it"),
        ("export backbone numbers.pt x.safetensors", "numbers.pt: holds no state dict"),
        ("export arcface_torch run run", "run exists; name another file"),
        ("export arcface_torch nowhere out", "nowhere: no such file or directory"),
        ("export arcface_torch run out --ranks 7", "7 for 6 classes"),
        ("export arcface_torch run out --layout drop", "invalid choice: 'drop'"),
        ("export arcface_torch rows.pt out", "not what arcface_torch writes"),
        ("export onnx run ", "OUTPUT: no name is given; name a new file"),
    ],
)  # fmt: skip
def test_the_command_refuses_in_one_line_and_leaves_nothing(refused, run, words, message):
    torch.save({"conv.weight": torch.ones(2)}, "backbone.pt")
    torch.save({"weight": torch.ones(3, 2)}, "rows.pt")
    torch.save({"step": 3}, "numbers.pt")
    (run.parent / "kept.safetensors").write_text("mine")
    assert not refused(words.split(" "), message)


@pytest.mark.parametrize("words", ["safetensors run x.safetensors", "backbone run model.pt", "arcface_torch run x"])
def test_a_full_disk_leaves_nothing(refused, run, monkeypatch, words):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("megaclass.checkpoint.tensorfile.os.fsync", full)
    assert not refused(["export", *words.split()], "No space left on device", "make room there or")
