"""No damage goes unnoticed, and a hostile file ends in one clear error."""

import errno
import functools
import json
import math
import os
import random
import shutil

import pytest
import torch

from checkpoint_cases import head, read_all, same, save
from megaclass import checkpoint
from megaclass.checkpoint import manifest, saver
from megaclass.errors import UserError


@pytest.fixture
def victim(tmp_path):
    """A checkpoint to be damaged, with an intact one before it."""
    save(tmp_path, 50)
    state = {"w": torch.randn(6), "lr": 0.1, 3: (1, math.inf), "deep": [{"b": torch.ones(2).bfloat16()}]}
    return save(tmp_path, 100, state=state, sharded=head())


@pytest.mark.parametrize("seed", range(3))
def test_random_damage_is_noticed(victim, seed):
    chance = random.Random(seed)
    wanted = read_all(victim)
    files = sorted(victim.iterdir())
    assert len(files) == 3
    for _ in range(80):
        file = chance.choice(files)
        content = file.read_bytes()
        damaged = bytearray(content)
        at = chance.randrange(len(content))
        match chance.choice(["flip", "zero", "cut", "grow"]):
            case "flip":
                damaged[at] ^= 1 << chance.randrange(8)
            case "zero":
                damaged[at : at + 16] = bytes(len(damaged[at : at + 16]))
            case "cut":
                del damaged[at:]
            case "grow":
                damaged += chance.randbytes(1 + at % 9)
        file.write_bytes(damaged)
        try:
            checkpoint.verify(victim)
            assert same(read_all(victim), wanted)
            # A manifest may be reformatted, not altered.
            assert file.name == manifest.NAME or bytes(damaged) == content
        except UserError as error:
            assert str(file) in str(error) and "take step-00000050" in str(error)
            assert "\n" not in str(error)
        file.write_bytes(content)
    assert same(read_all(victim), wanted)


def flip(path):
    """Change one byte of a file."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["shard-0000000000-0000000023.safetensors", manifest.REPLICATED, manifest.NAME])
def test_damaged_ones_are_set_aside_and_the_one_before_is_used(victim, tmp_path, name):
    assert checkpoint.usable(tmp_path) == (victim, [])
    for attempt in ("", "-2"):  # the resumed run saves the same step, and that is damaged too
        before = {file.name: file.read_bytes() for file in victim.iterdir() if file.name != name}
        flip(victim / name)
        found, [(aside, reason)] = checkpoint.usable(tmp_path)
        assert found.name == "step-00000050" == checkpoint.latest(tmp_path).name
        assert aside == tmp_path / f".damaged-step-00000100{attempt}" and reason.startswith(f"{name}: ")
        assert {file.name: file.read_bytes() for file in aside.iterdir() if file.name != name} == before
        save(tmp_path, 100, state={"w": torch.ones(2)}, sharded=head())
    shutil.copytree(tmp_path / "step-00000050", tmp_path / ".old-step-00000100")
    (victim / name).unlink()
    assert checkpoint.usable(tmp_path)[0].name == "step-00000050"
    assert len(list(tmp_path.glob(".damaged-step-00000100*"))) == 4
    assert checkpoint.usable(tmp_path / "nowhere") == (None, [])


def test_a_copy_under_the_name_of_a_later_step_is_refused(victim, tmp_path):
    copy = shutil.copytree(tmp_path / "step-00000050", tmp_path / "step-00000200")
    with pytest.raises(UserError, match=r"is of step 50: the directory is a copy, .*take step-00000100"):
        checkpoint.load(copy)
    found, [(aside, _)] = checkpoint.usable(tmp_path)
    assert found == victim and aside.name == ".damaged-step-00000200"
    assert checkpoint.load(shutil.copytree(victim, tmp_path / "kept")).step == 100  # no name says otherwise


def test_what_may_not_be_read_and_later_formats_are_not_called_damaged(victim, tmp_path, monkeypatch):
    sign(victim, {**json.loads((victim / manifest.NAME).read_text()), "version": 3})
    with pytest.raises(UserError, match="format version 3, but this release reads 1 and 2"):
        checkpoint.usable(tmp_path)

    def refuse(*arguments):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(manifest.tensorfile, "check_size", refuse)
    with pytest.raises(UserError, match=r"manifest\.json cannot be read: Permission denied"):
        checkpoint.usable(tmp_path)
    assert victim.is_dir()


def test_what_was_verified_is_not_read_twice(victim, monkeypatch):
    loaded = checkpoint.load(victim, verified=True)
    monkeypatch.setattr(manifest.tensorfile, "check_crc32", None)
    assert same(checkpoint.load(victim, verified=True).state, loaded.state) and len(loaded.rows("head/centres")) == 23


def sign(path, content):
    """Write a manifest as somebody would who knows the format."""
    content.pop("crc32", None)
    (path / manifest.NAME).write_text(json.dumps({**content, "crc32": manifest.checksum(content)}))


def resign(path):
    """Let the manifest agree with the files as they are now."""
    content = json.loads((path / manifest.NAME).read_text())
    for name in content["files"]:
        data = (path / name).read_bytes()
        content["files"][name] = {"bytes": len(data), "crc32": saver.tensorfile.zlib.crc32(data)}
    sign(path, content)


SHARD = "shard-0000000000-0000000023.safetensors"
BIG = 1 << 40


def rename_shard(content, name):
    content["files"][name] = content["files"].pop(SHARD)


HOSTILE = {
    "parent": lambda c: rename_shard(c, "../shard-0000000000-0000000023.safetensors"),
    "gap": lambda c: rename_shard(c, "shard-0000000001-0000000023.safetensors"),
    "empty file": lambda c: rename_shard(c, "shard-0000000000-0000000000.safetensors"),
    "overlap": lambda c: c["files"].update({"shard-0000000005-0000000023.safetensors": c["files"][SHARD]}),
    "missing file": lambda c: c["files"].update({"shard-0000000023-0000000024.safetensors": c["files"][SHARD]}),
    "no replicated": lambda c: c["files"].pop(manifest.REPLICATED),
    "no shard": lambda c: c["files"].pop(SHARD),
    "dtype lie": lambda c: c["sharded"]["head/centres"].update(dtype="F64"),
    "dtype unknown": lambda c: c["sharded"]["head/centres"].update(dtype="PICKLE"),
    "wide": lambda c: c["sharded"]["head/centres"].update(shape=[23, 5]),
    "absurd": lambda c: c["sharded"]["head/centres"].update(shape=[23, BIG, BIG, 0]),
    "scalar": lambda c: c["sharded"]["head/centres"].update(shape=[]),
    "fraction": lambda c: c["sharded"]["head/centres"].update(shape=[23, 4.0]),
    "other name": lambda c: c["sharded"].update(other=c["sharded"].pop("head/centres")),
    "bytes": lambda c: c["files"][SHARD].update(bytes=BIG),
    "step": lambda c: c.update(step=True),
    "metric": lambda c: c.update(metric="good"),
    "identity": lambda c: c.update(identity=[]),
    "tag": lambda c: c.update(state={"$import": "os"}),
    "tag and more": lambda c: c.update(state={"$tuple": [], "x": 1}),
    "float": lambda c: c.update(state={"$float": "__import__('os')"}),
    "items": lambda c: c.update(state={"$items": [1]}),
    "unhashable": lambda c: c.update(state={"$items": [[[], 1]]}),
    "unknown tensor": lambda c: c["state"].update(w={"$tensor": "v"}),
    "tensor unused": lambda c: c.update(state={}),
    "deep": lambda c: c.update(state=functools.reduce(lambda inner, _: [inner], range(800), [])),
    "no state": lambda c: c.pop("state"),
    "format": lambda c: c.update(format="zip"),
}  # fmt: skip


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_manifest_is_one_clear_error(victim, change):
    content = json.loads((victim / manifest.NAME).read_text())
    # A state without $items at the top, so that the cases can reach into it.
    content["state"] = {"w": {"$tensor": "w"}, "b": {"$tensor": "deep/0/b"}}
    sign(victim, content)
    assert set(read_all(victim)["state"]) == {"w", "b"}
    change(content)
    sign(victim, content)
    with pytest.raises(UserError, match=r"take step-00000050"):
        read_all(victim)


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"a": NaN}', "[" * 100_000, '{"format": "megaclass-checkpoint"}', "\xff\xfe", "9" * 5000],
)
def test_a_manifest_that_is_none(victim, text):
    (victim / manifest.NAME).write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match="take step-00000050"):
        checkpoint.load(victim)
    assert checkpoint.best(victim.parent) is None


@pytest.mark.parametrize("file", [SHARD, manifest.REPLICATED, manifest.NAME])
def test_links_and_pipes_are_not_followed(victim, tmp_path, file):
    target = tmp_path / "elsewhere"
    (victim / file).rename(target)
    (victim / file).symlink_to(target)
    with pytest.raises(UserError, match="link or a special file"):
        checkpoint.load(victim)
    (victim / file).unlink()
    os.mkfifo(victim / file)
    with pytest.raises(UserError, match="special file"):
        checkpoint.load(victim)


@pytest.mark.parametrize("file", [SHARD, manifest.REPLICATED])
def test_a_hostile_tensor_file_with_matching_checksums(victim, file):
    chance = random.Random(0)
    wanted = read_all(victim)
    content = (victim / file).read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    for _ in range(150):
        damaged = bytearray(content)
        for _ in range(chance.randint(1, 3)):
            damaged[chance.randrange(header)] = chance.choice(b'0123456789{}[]":,FIU\x00\xff')
        (victim / file).write_bytes(damaged)
        resign(victim)
        try:
            assert same(read_all(victim), wanted)
        except UserError as error:
            assert victim.name in str(error) and "\n" not in str(error)


def test_a_pickle_is_not_opened(victim):
    torch.save({"w": torch.ones(2)}, victim / manifest.REPLICATED)
    resign(victim)
    with pytest.raises(UserError, match=r"replicated\.safetensors: SafetensorError: .*; take step-"):
        checkpoint.load(victim)


def test_no_checkpoint_at_all(tmp_path):
    with pytest.raises(UserError, match="nowhere is not a checkpoint directory"):
        checkpoint.load(tmp_path / "nowhere")
