"""Bundles: what lies in them, that they load, that hostile ones are told, and what the hub gets and gives."""

import json
import os
import shutil
import zlib
from dataclasses import asdict

import numpy as np
import pytest
import torch

import megaclass
import tiny
from megaclass.cli import main
from megaclass.config import load_recipe
from megaclass.errors import UserError
from megaclass.inference import bundle

IMAGE = np.random.default_rng(1).integers(0, 255, (20, 20, 3), dtype=np.uint8)
TASKS = {"margin": "verification", "linear": "classification"}


@pytest.fixture(scope="module", params=TASKS)
def trained(request, tmp_path_factory):
    """A run and a bundle of it."""
    folder = tmp_path_factory.mktemp(request.param)
    task = {"task": TASKS[request.param], "path": str(folder / "records")}
    recipe = tiny.recipe(folder, schedule={"steps": 2}, head={"kind": request.param}, evaluate=task)
    assert main(["train", recipe]) == 0
    names = "".join(f"class-{number}\udcff\n" for number in range(tiny.CLASSES))
    (folder / "run/classes.txt").write_text(names, errors="surrogateescape")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundle, "_BLOCK_ROWS", 4)  # not all centres are in memory
        assert main(["bundle", str(folder / "run"), str(folder / "bundle"), "--licence", "CC-BY 4.0"]) == 0
    return folder


def test_a_bundle_is_the_run_to_who_loads_it(trained):
    run, packed = megaclass.load(trained / "run"), megaclass.load(trained / "bundle")
    assert {**asdict(packed.about), "licence": ""} == asdict(run.about) and run.about.evaluation
    np.testing.assert_array_equal(packed.embed(IMAGE), run.embed(IMAGE))
    assert packed.classify(IMAGE) == run.classify(IMAGE)
    assert run.centres is None or torch.equal(packed.centres, run.centres)
    config = load_recipe(str(trained / "bundle/config.toml"))
    assert (config.data.path, config.run.output) == ("records", "")  # nothing of where it was trained


def test_the_card_is_what_the_hub_reads(trained):
    text = (trained / "bundle/README.md").read_text()
    data = pytest.importorskip("huggingface_hub").ModelCard(text).data
    assert (data.license, data.library_name, data.metrics) == ("cc-by-4.0", "megaclass", ["accuracy"])
    metrics, first = megaclass.load(trained / "run").about.evaluation, data.eval_results[0].metric_value
    assert first == round(metrics.get("pair_accuracy", metrics.get("top1")), 5)
    for said in (
        "\nmodel.c",
        "use\n\nNot stated.",
        "| classes | 6 |",
        "| images | 24 |",
        'name = "convnet"',
        "| pytorch |",
    ):
        assert said in text


def test_without_centres_nobody_is_named_and_nothing_is_overwritten(refused, trained, tmp_path):
    words = ["bundle", str(trained / "run"), str(tmp_path / "bundle"), "--centres", "none"]
    if trained.name.startswith("linear"):
        assert not refused(words, "--centres: none goes with a margin head")
        return
    assert main(words) == 0
    packed = megaclass.load(tmp_path / "bundle")
    assert packed.classes is packed.rows is None and not (tmp_path / "bundle/classes.txt").exists()
    refused(words, "OUTPUT: ")


def say(folder, name, value):
    told = json.loads((folder / "megaclass.json").read_text())
    (folder / "megaclass.json").write_text(json.dumps(told | {name: value}))


def rewrite(file, content):
    """As a hostile writer would: with the checksum of what it writes."""
    file.write_bytes(content)
    files = json.loads((file.parent / "megaclass.json").read_text())["files"]
    say(file.parent, "files", files | {file.name: {"bytes": len(content), "crc32": zlib.crc32(content)}})


def widen(file):
    rewrite(file, file.read_bytes().replace(b"width = 8 ", b"width = 400000 "))


HOSTILE = [
    (lambda p: os.truncate(p / "model.safetensors", 999), "model.safetensors: damaged .999 bytes in place of"),
    (lambda p: (p / "README.md").replace(p / "classes.txt"), "classes.txt: damaged"),
    (lambda p: rewrite(p / "model.safetensors", b"\xff" * 99), "model.safetensors: damaged"),
    (lambda p: widen(p / "config.toml"), "damaged .smaller than the model of config.toml"),
    (lambda p: (p / "config.toml").unlink() or os.mkfifo(p / "config.toml"), "it is a pipe"),
    (lambda p: say(p, "num_classes", 10**15), "megaclass.json: classes .* is none of a model"),
    (lambda p: say(p, "files", {"../run": {"bytes": 1, "crc32": 1}}), "damaged .its files are .*/run"),
    (lambda p: say(p, "files", [1]), "megaclass.json: damaged"),
    (lambda p: say(p, "version", 2), "or of a later release"),
    (lambda p: (p / "megaclass.json").write_text("[" * 99_999), "megaclass.json: damaged"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "told"), HOSTILE)
def test_a_damaged_or_hostile_bundle_is_one_line(trained, tmp_path, spoil, told):
    spoil(copy := shutil.copytree(trained / "bundle", tmp_path / "bundle"))
    with pytest.raises(UserError, match=told) as caught:
        megaclass.load(copy)
    assert len(str(caught.value).splitlines()) == 1


def test_what_is_pushed_is_private_and_is_loaded_by_its_name(trained, tmp_path, monkeypatch):
    """Of an upload it is seen what is sent; the hub's own library finds it in its cache, as without a network."""
    hub, sent = pytest.importorskip("huggingface_hub"), {}
    monkeypatch.setattr(hub.HfApi, "create_repo", lambda self, name, **how: sent.update(how))
    monkeypatch.setattr(hub.HfApi, "upload_folder", lambda self, **how: sent.update(how) or hub.CommitInfo)
    monkeypatch.setattr(hub.CommitInfo, "commit_url", "", raising=False)
    assert main(["push", str(trained / "bundle"), "owner/name"]) == 0
    assert sent["private"] is True and sent["repo_id"] == "owner/name"
    assert main(["push", str(trained / "run"), "owner/name"]) == 2  # no bundle
    cached = tmp_path / "models--owner--name"
    shutil.copytree(sent["folder_path"], cached / "snapshots" / (5 * "01234567"))
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text(5 * "01234567")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    expected = megaclass.load(trained / "run").embed(IMAGE)
    for address in ("hf://owner/name", f"hf://owner/name@{5 * '01234567'}"):
        np.testing.assert_array_equal(megaclass.load(address).embed(IMAGE), expected)
    for address, told in [("hf://owner", "write hf://owner/name"), ("hf://owner/other", "look at the name")]:
        with pytest.raises(UserError, match=told):
            megaclass.load(address)
