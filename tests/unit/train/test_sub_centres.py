"""A run whose classes have several centres each, and everyone who reads these."""

import shutil

import pytest
import torch
from torch.nn.functional import normalize

import megaclass
import tiny
from megaclass.checkpoint import tensorfile
from megaclass.checkpoint.weights import find_checkpoint, stored_rows
from megaclass.cli import main
from megaclass.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs of three centres a class, and of one; of the last checkpoint but one rows still owe."""
    folder = tmp_path_factory.mktemp("sub")
    for name, count in (("three", 3), ("one", 1)):
        run = {"output": str(folder / name), "checkpoint_every": 8}
        tiny.run(folder, run=run, head={"sub_centres": count, "sample_rate": 0.5})
    return folder


def test_the_nearest_of_a_class_tells_how_near_it_is_in_a_run_and_in_its_bundle(folder):
    rows_RD = normalize(stored_rows(find_checkpoint(folder / "three", "best"), "head/weight", 0, 18).fp32())
    pixels = torch.rand(5, 3, tiny.SIZE, tiny.SIZE, generator=torch.Generator().manual_seed(0))
    assert main(["bundle", str(folder / "three"), str(folder / "bundle")]) == 0
    for source in ("three", "bundle"):
        model = megaclass.load(folder / source)
        assert torch.equal(model.centres, rows_RD)
        cosines_NC = (torch.from_numpy(model.embed(pixels)) @ rows_RD.T).view(-1, 6, 3).amax(2)
        best_NC, labels_NC = cosines_NC.sort(1, descending=True)
        for guesses, scores, labels in zip(model.classify(pixels, 6), best_NC, labels_NC, strict=True):
            assert [guess.label for guess in guesses] == labels.tolist()
            assert [guess.score for guess in guesses] == pytest.approx(scores.tolist(), abs=1e-5)


def test_a_slice_is_of_whole_classes_and_arcface_torch_knows_one_centre(refused, told, folder, monkeypatch):
    monkeypatch.chdir(folder)
    words = ["three", "rows.safetensors", "--classes", "1:4"]
    assert "weight and momentum of 9 centres, 3 of each class\n" in told("export", "centres", *words)
    rows = tensorfile.read_tensors(folder / "rows.safetensors")["weight"]
    assert torch.equal(rows, stored_rows(find_checkpoint(folder / "three", "best"), "head/weight", 3, 12).fp32())
    refused(["export", "arcface_torch", "three", "files"], "arcface_torch has one centre a class")


def test_another_run_starts_from_as_many_centres_a_class_and_no_others(folder):
    def started(source, count):
        head = {"sub_centres": count, "weights": str(folder / source)}
        return tiny.job(folder, head=head).head

    stored = find_checkpoint(folder / "three", "best")
    assert torch.equal(started("three", 3).centres(), stored_rows(stored, "head/weight", 0, 18).fp32())
    for source, count, there in (("three", 1, 3), ("one", 3, 1)):
        with pytest.raises(UserError, match=f"has {there} centres of each class, and {count} are trained"):
            started(source, count)


@pytest.mark.parametrize(("name", "count", "told"), [("three", 1, "18 class centres"), ("one", 3, "sub_centres is")])
def test_a_run_goes_on_with_as_many_only(folder, tmp_path, name, count, told):
    shutil.copytree(folder / name, tmp_path / name)
    with pytest.raises(UserError, match=told):
        tiny.run(folder, resume=True, run={"output": str(tmp_path / name)}, head={"sub_centres": count})
