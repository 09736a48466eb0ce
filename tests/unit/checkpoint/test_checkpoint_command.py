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
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def asked(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")

    def ask(*words, status=0):
        capsys.readouterr()
        assert main([*words]) == status
        told = capsys.readouterr()
        return (told.err if status == 2 and told.err else told.out).splitlines()

    return ask


def test_verify_reads_every_file(run, asked):
    first, last = asked("checkpoint", "verify", "run")
    assert [last] == asked("checkpoint", "verify", "run/checkpoints/step-00000010")
    assert first.startswith("step-00000005  whole: convnet, 6 classes, ") and last.endswith("of 1 ranks")
    before = first
    (shard,) = (run / "checkpoints" / "step-00000005").glob("shard-*")
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    (run / "checkpoints" / "step-00000010" / "manifest.json").unlink()
    assert asked("checkpoint", "info", "run/checkpoints/step-00000005") == [
        before.replace("whole: ", "")
    ]  # it reads no tensors
    first, second = asked("checkpoint", "verify", "run", status=2)
    assert first.startswith(f"step-00000005  damaged: {shard.name}: has checksum")
    assert second.startswith("step-00000010  damaged: manifest.json: FileNotFoundError")
    assert (run / "checkpoints" / "step-00000005").is_dir()  # it looks, and sets nothing aside


def stored_in(run):
    return checkpoint.load(checkpoint.latest(run / "checkpoints"))


@pytest.mark.parametrize(("classes", "start", "stop"), [("1:4", 1, 4), (":2", 0, 2), ("5:", 5, 6)])
def test_the_centres_of_some_classes(run, asked, classes, start, stop):
    told = asked("export", "centres", "run", "rows.safetensors", "--classes", classes, "--checkpoint", "latest")
    assert told == [f"weight and momentum of {stop - start} classes", "wrote rows.safetensors"]
    rows = load_file("rows.safetensors")
    assert rows.keys() == {"weight", "momentum"} and rows["weight"].dtype == torch.float32
    for name, found in rows.items():
        assert torch.equal(found, stored_in(run).rows(f"head/{name}", start, stop).float())


def test_one_file_of_all_and_a_backbone_in_either_format(run, asked, monkeypatch):
    monkeypatch.setattr("megaclass.export.weights._BLOCK_BYTES", 100)  # a row at a time
    stored, average = stored_in(run), stored_in(run).state["ema"]["backbone"]
    asked("export", "safetensors", str(stored.path), "all.safetensors")
    found = load_file("all.safetensors")
    assert found.keys() == {"head.weight"} | {f"backbone.{name}" for name in average}
    assert torch.equal(found["head.weight"], stored.rows("head/weight").float())
    asked("export", "backbone", str(stored.path), "model.pt")
    asked("export", "backbone", "model.pt", "backbone.safetensors")
    for state in (torch.load("model.pt", weights_only=True), load_file("backbone.safetensors")):
        assert state.keys() == average.keys()
        assert all(torch.equal(state[name], average[name]) for name in state)


def test_whole_checkpoints_of_arcface_torch_become_one_file(run, asked):
    asked("export", "arcface_torch", "run", "theirs", "--ranks", "2", "--checkpoint", "latest")
    asked("export", "safetensors", "theirs", "all.safetensors")
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
        ("export arcface_torch run out --ranks 7", "7 for 6 classes"),
        ("export arcface_torch run out --layout drop", "invalid choice: 'drop'"),
        ("export arcface_torch rows.pt out", "not what arcface_torch writes"),
        ("export onnx run ", "OUTPUT: no name is given; name a new file"),
    ],
)  # fmt: skip
def test_the_command_refuses_in_one_line_and_leaves_nothing(run, asked, words, message):
    torch.save({"conv.weight": torch.ones(2)}, "backbone.pt")
    torch.save({"weight": torch.ones(3, 2)}, "rows.pt")
    torch.save({"step": 3}, "numbers.pt")
    (run.parent / "kept.safetensors").write_text("mine")
    before = sorted(run.parent.rglob("*"))
    (told,) = asked(*words.split(" "), status=2)
    assert message in told
    assert sorted(run.parent.rglob("*")) == before and (run.parent / "kept.safetensors").read_text() == "mine"


@pytest.mark.parametrize("words", ["safetensors run x.safetensors", "backbone run model.pt", "arcface_torch run x"])
def test_a_full_disk_leaves_nothing(run, asked, monkeypatch, words):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("megaclass.checkpoint.tensorfile.os.fsync", full)
    (told,) = asked("export", *words.split(), status=2)
    assert "No space left on device" in told and "make room there or" in told
    assert [path.name for path in run.parent.iterdir()] == ["run"]
