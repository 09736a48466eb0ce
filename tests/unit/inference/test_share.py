"""Bundles: what lies in them, that they load, that hostile ones are told, and what the hub gets and gives."""

import json
import os
import shutil
import zlib

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


@pytest.fixture(scope="module", params=["margin", "linear"])
def trained(request, tmp_path_factory):
    """A run and a bundle of it."""
    folder = tmp_path_factory.mktemp("share")
    task = {"margin": "verification", "linear": "classification"}[request.param]
    sections = {"head": {"kind": request.param}, "evaluate": {"task": task, "path": str(folder / "records")}}
    assert main(["train", tiny.recipe(folder, schedule={"steps": 2}, **sections)]) == 0
    names = "".join(f"class-{number}\udcff\n" for number in range(tiny.CLASSES))
    (folder / "run/classes.txt").write_text(names, errors="surrogateescape")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundle, "_BLOCK_ROWS", 4)  # not all centres are in memory
        assert main(["bundle", str(folder / "run"), str(folder / "bundle"), "--licence", "CC-BY 4.0"]) == 0
    return folder


def test_a_bundle_is_the_run_to_who_loads_it(trained):
    run, packed = megaclass.load(trained / "run"), megaclass.load(trained / "bundle")
    assert packed.classes[0].startswith("class-0") and packed.about.evaluation
    assert {**packed.about.to_json(), "licence": ""} == run.about.to_json()
    np.testing.assert_array_equal(packed.embed(IMAGE), run.embed(IMAGE))
    assert packed.classify(IMAGE) == run.classify(IMAGE)
    assert run.centres is None or torch.equal(packed.centres, run.centres)
    config = load_recipe(str(trained / "bundle/config.toml"))
    assert (config.data.path, config.run.output) == ("records", "")  # nothing of where it was trained


def test_the_card_is_what_the_hub_reads(trained):
    text = (trained / "bundle/README.md").read_text()
    data = pytest.importorskip("huggingface_hub").ModelCard(text).data
    assert (data.license, data.library_name, data.metrics) == ("cc-by-4.0", "megaclass", ["accuracy"])
    metrics = megaclass.load(trained / "run").about.evaluation
    found = {result.metric_name: result.metric_value for result in data.eval_results}
    assert {found.get("pair accuracy"), found.get("top-1 accuracy")} == {
        value if value is None else round(value, 5)
        for value in (metrics.get("pair_accuracy"), metrics.get("top1"))
    }
    for said in (
        "use\n\nNot stated.",
        "| classes | 6 |",
        "| images | 24 |",
        'name = "convnet"',
        "| pytorch |",
    ):
        assert said in text


def test_without_centres_nobody_is_named_and_nothing_is_overwritten(trained, tmp_path, capsys):
    words = ["bundle", str(trained / "run"), str(tmp_path / "bundle"), "--centres", "none"]
    status = main(words)
    if (trained / "run/roc.png").exists():  # of a margin head
        packed = megaclass.load(tmp_path / "bundle")
        assert status == 0 and packed.classes is packed.rows is None
        before = capsys.readouterr() and (tmp_path / "bundle/megaclass.json").stat()
        assert main(words) == 2 and (tmp_path / "bundle/megaclass.json").stat() == before
        assert "exists" in capsys.readouterr().err
    else:
        assert status == 2 and "--centres: none goes with a margin head" in capsys.readouterr().err
        assert not list(tmp_path.iterdir())


def rewrite(path, content):
    """As a hostile writer would: with the checksum of what it writes."""
    path.write_bytes(content)
    say(path.parent, ["files", path.name], {"bytes": len(content), "crc32": zlib.crc32(content)})


def say(folder, keys, value):
    told = place = json.loads((folder / "megaclass.json").read_text())
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    (folder / "megaclass.json").write_text(json.dumps(told))


def wide(p):
    rewrite(p / "config.toml", (p / "config.toml").read_bytes().replace(b"width = 8 ", b"width = 400000 "))


HOSTILE = [
    (lambda p: os.truncate(p / "model.safetensors", 999), "model.safetensors: damaged .999 bytes in place of"),
    (lambda p: (p / "README.md").replace(p / "classes.txt"), "classes.txt: damaged"),
    (lambda p: rewrite(p / "model.safetensors", b"\xff" * 99), "model.safetensors: damaged"),
    (wide, "model.safetensors: damaged .smaller than the model of config.toml"),
    (lambda p: rewrite(p / "config.toml", b"[" * 9999), "config.toml: not valid TOML"),
    (lambda p: (p / "config.toml").unlink(), "config.toml: damaged .No such file"),
    (lambda p: (p / "config.toml").unlink() or os.mkfifo(p / "config.toml"), "it is a pipe"),
    (lambda p: say(p, ["num_classes"], 10**15), "megaclass.json: classes .* is none of a model"),
    (lambda p: say(p, ["files", "../run"], {"bytes": 1, "crc32": 1}), "damaged .its files are .*/run"),
    (lambda p: say(p, ["files"], [1]), "megaclass.json: damaged"),
    (lambda p: say(p, ["version"], 2), "or of a later release"),
    (lambda p: (p / "megaclass.json").write_text("[" * 99_999), "megaclass.json: damaged"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "told"), HOSTILE)
def test_a_damaged_or_hostile_bundle_is_one_line(trained, tmp_path, spoil, told):
    spoil(copy := shutil.copytree(trained / "bundle", tmp_path / "bundle"))
    with pytest.raises(UserError, match=told) as caught:
        megaclass.load(copy)
    assert len(str(caught.value).splitlines()) == 1


def test_what_is_pushed_is_private_and_is_loaded_by_its_name(trained, tmp_path, monkeypatch):
    """The hub's own library reads the cache, as without a network; of an upload it is seen what it would send."""
    hub, constants = pytest.importorskip("huggingface_hub"), pytest.importorskip("huggingface_hub.constants")
    sent = {}
    monkeypatch.setattr(hub.HfApi, "create_repo", lambda self, name, **how: sent.update(how, name=name))
    monkeypatch.setattr(hub.HfApi, "upload_folder", lambda self, **how: sent.update(how) or hub.CommitInfo)
    monkeypatch.setattr(hub.CommitInfo, "commit_url", "https://hub/owner/name", raising=False)
    assert main(["push", str(trained / "bundle"), "owner/name"]) == 0
    assert sent["private"] is True and sent["name"] == sent["repo_id"] == "owner/name"
    assert main(["push", str(trained / "run"), "owner/name"]) == 2  # no bundle
    cached, commit = tmp_path / "models--owner--name", "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(sent["folder_path"], cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs/main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    expected = megaclass.load(trained / "run").embed(IMAGE)
    for address in ("hf://owner/name", f"hf://owner/name@{commit}"):
        np.testing.assert_array_equal(megaclass.load(address).embed(IMAGE), expected)
    for address, told in [("hf://owner", "write hf://owner/name"), ("hf://owner/other", "look at the name")]:
        with pytest.raises(UserError, match=told):
            megaclass.load(address)
