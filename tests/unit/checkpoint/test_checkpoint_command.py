"""``megaclass checkpoint``: what it says of checkpoints, and the files that it makes from them."""

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
    recipe = tiny.recipe(
        folder, run={"checkpoint_every": 5}, optim={"ema_decay": 0.9}, head={"storage": "bf16"}
    )
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
        assert main(["checkpoint", *words]) == status
        told = capsys.readouterr()
        return (told.err if status == 2 and told.err else told.out).splitlines()

    return ask


def test_verify_reads_every_file(run, asked):
    first, last = asked("verify", "run")
    assert [last] == asked("verify", "run/checkpoints/step-00000010")
    assert first.startswith("step-00000005  whole: convnet, 6 classes, ") and last.endswith("of 1 ranks")
    before = first
    (shard,) = (run / "checkpoints" / "step-00000005").glob("shard-*")
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    (run / "checkpoints" / "step-00000010" / "manifest.json").unlink()
    assert asked("info", "run/checkpoints/step-00000005") == [
        before.replace("whole: ", "")
    ]  # it reads no tensors
    first, second = asked("verify", "run", status=2)
    assert first.startswith(f"step-00000005  damaged: {shard.name}: has checksum")
    assert second.startswith("step-00000010  damaged: manifest.json: FileNotFoundError")
    assert (run / "checkpoints" / "step-00000005").is_dir()  # it looks, and sets nothing aside


def stored_in(run):
    return checkpoint.load(checkpoint.latest(run / "checkpoints"))


@pytest.mark.parametrize(("classes", "start", "stop"), [("1:4", 1, 4), (":2", 0, 2), ("5:", 5, 6)])
def test_slice_writes_the_rows_of_some_classes(run, asked, classes, start, stop):
    (told,) = asked("slice", "run", "rows.safetensors", "--classes", classes)
    assert told == f"wrote rows.safetensors: weight and momentum of {stop - start} classes"
    rows = load_file("rows.safetensors")
    assert rows.keys() == {"weight", "momentum"} and rows["weight"].dtype == torch.float32
    for name, found in rows.items():
        assert torch.equal(found, stored_in(run).rows(f"head/{name}", start, stop).float())


def test_convert_to_one_file_and_to_a_backbone(run, asked, monkeypatch):
    monkeypatch.setattr("megaclass.export.weights._BLOCK_BYTES", 100)  # a row at a time
    asked("convert", "run", "all.safetensors")
    found, stored = load_file("all.safetensors"), stored_in(run)
    average = stored.state["ema"]["backbone"]
    assert found.keys() == {"head.weight"} | {f"backbone.{name}" for name in average}
    assert torch.equal(found["head.weight"], stored.rows("head/weight").float())
    asked("convert", str(stored.path), "model.pt", "--to", "backbone")
    asked("convert", "model.pt", "backbone.safetensors", "--to", "backbone")
    for state in (torch.load("model.pt", weights_only=True), load_file("backbone.safetensors")):
        assert state.keys() == average.keys()
        assert all(torch.equal(state[name], found[f"backbone.{name}"]) for name in state)
        assert all(torch.equal(state[name], average[name]) for name in state)


def test_whole_checkpoints_of_arcface_torch_become_one_file(run, asked):
    asked("convert", "run", "theirs", "--to", "arcface_torch", "--ranks", "2")
    asked("convert", "theirs", "all.safetensors")
    found, stored = load_file("all.safetensors"), stored_in(run)
    assert torch.equal(found["head.weight"], stored.rows("head/weight").float())
    for name, tensor in stored.state["backbone"].items():  # to train on: of the last step, no average
        assert torch.equal(found[f"backbone.{name}"], tensor)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["verify", "nowhere"], "nowhere: no checkpoint there; give run directory"),
        (["verify", "."], ".: no checkpoint there"),
        (["verfy", "run"], "unknown checkpoint command 'verfy' (did you mean 'verify'?)"),
        (["slice", "run", "x.pt"], "x.pt ends with none of .safetensors"),
        (["slice", "run", "x.safetensors", "--classes", "3"], "'3' is no range; write START:STOP"),
        (["slice", "run", "x.safetensors", "--classes", "3:7"], "3:7 of 6 classes"),
        (["slice", "run", "x.safetensors", "--classes", "3:3"], "3:3 of 6 classes"),
        (["slice", "backbone.pt", "x.safetensors"], "no class centres there"),
        (["convert", "run", "kept.safetensors"], "OUTPUT: kept.safetensors exists"),
        (["convert", "run", "nowhere/x.safetensors"], "nowhere is not a directory"),
        (["convert", "run", "x.bin", "--to", "backbone"], "x.bin ends with none of .safetensors, .pt, .pth"),
        (["convert", "rows.pt", "x.pt", "--to", "backbone"], "there is no backbone in the source"),
        (["convert", "numbers.pt", "x.safetensors"], "numbers.pt: holds no state dict"),
        (["convert", "run", "run", "--to", "arcface_torch"], "run exists; name another directory"),
        (["convert", "run/checkpoints/step-00000010", "x.safetensors", "--to", "onnx"], "invalid choice: 'onnx'"),
    ],
)  # fmt: skip
def test_the_command_refuses_in_one_line_and_leaves_nothing(run, asked, words, message):
    torch.save({"conv.weight": torch.ones(2)}, "backbone.pt")
    torch.save({"weight": torch.ones(3, 2)}, "rows.pt")
    torch.save({"step": 3}, "numbers.pt")
    (run.parent / "kept.safetensors").write_text("mine")
    before = sorted(run.parent.rglob("*"))
    (told,) = asked(*words, status=2)
    assert message in told
    assert sorted(run.parent.rglob("*")) == before and (run.parent / "kept.safetensors").read_text() == "mine"


@pytest.mark.parametrize(
    "words", [["all.safetensors"], ["model.pt", "--to", "backbone"], ["x", "--to", "arcface_torch"]]
)
def test_a_full_disk_leaves_nothing(run, asked, monkeypatch, words):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("megaclass.checkpoint.tensorfile.os.fsync", full)
    monkeypatch.setattr(
        "megaclass.checkpoint.arcface_torch.torch.save", full if words[0] == "x" else torch.save
    )
    (told,) = asked("convert", "run", *words, status=2)
    assert "No space left on device" in told and "make room there or" in told
    assert [path.name for path in run.parent.iterdir()] == ["run"]
