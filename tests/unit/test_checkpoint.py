"""Checkpoints: every state comes back bit for bit, no kill loses the last one, no damage goes unnoticed."""

import errno
import json
import math
import multiprocessing
import os
import random
import resource
import shutil
import struct
import tempfile
import time
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from megaclass import checkpoint
from megaclass.checkpoint import Sharded, manifest, tensorfile, tree, writer
from megaclass.errors import UserError

IDENTITY = {"backbone": "iresnet50", "classes": 23, "embedding_size": 4}


def save(root, step=1, *, state=None, sharded=None, keep_last=3, **options):
    """``checkpoint.save`` with the arguments that a test does not care about filled in."""
    options.setdefault("identity", IDENTITY)
    return checkpoint.save(
        root, step, state=state or {}, sharded=sharded or {}, keep_last=keep_last, **options
    )


def head(rows=23, fill=None):
    """Three sharded tensors of one rank, as a head has them: wide, bf16 and one counter a row."""
    torch.manual_seed(0)
    tensors = {
        "head/centres": torch.randn(rows, 4),
        "head/momentum": torch.randn(rows, 4).bfloat16(),
        "head/last_step": torch.arange(rows),
    }
    if fill is not None:
        tensors = {name: torch.full_like(tensor, fill) for name, tensor in tensors.items()}
    return {name: Sharded(tensor, 0, rows) for name, tensor in tensors.items()}


def raw(tensor):
    return tensor.contiguous().view(-1).view(torch.uint8).tolist() if tensor.numel() else []


def same(a, b):
    """Equal in type, value and bits; 0.0 differs from -0.0, a NaN equals a NaN."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape and raw(a) == raw(b)
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return struct.pack("d", a) == struct.pack("d", b) or (math.isnan(a) and math.isnan(b))
    if isinstance(a, dict):
        return list(map(repr, a)) == list(map(repr, b)) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


# --- round trips --------------------------------------------------------------------------------------------


@st.composite
def tensors(draw):
    dtype = draw(st.sampled_from(list(tensorfile.DTYPE_NAMES)))
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    count = math.prod(shape) * dtype.itemsize
    data = draw(st.binary(min_size=count, max_size=count))
    if dtype == torch.bool:
        data = bytes(byte & 1 for byte in data)
    tensor = torch.frombuffer(bytearray(data), dtype=dtype) if count else torch.empty(0, dtype=dtype)
    tensor = tensor.reshape(shape)
    if tensor.ndim >= 2 and draw(st.booleans()):
        tensor = tensor.transpose(0, 1)
    return tensor


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
keys = st.text(max_size=4) | st.sampled_from(["$tensor", "a/b", "__metadata__", "\ud800"]) | st.integers(0, 3)
states = st.recursive(
    scalars | tensors(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(
            keys | st.none() | st.tuples(st.integers(0, 2), st.text(max_size=2)), inner, max_size=3
        )
    ),
    max_leaves=12,
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(keys, states, max_size=4))
def test_any_state_comes_back_bit_for_bit(state):
    with tempfile.TemporaryDirectory() as folder:
        assert same(checkpoint.load(save(Path(folder), state=state)).state, state)


@pytest.mark.parametrize("make", [lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), torch.optim.AdamW])
def test_an_optimizer_continues_as_if_never_stopped(make, tmp_path):
    def steps(model, optimizer, count):
        torch.manual_seed(1)
        for _ in range(count):
            model(torch.randn(8, 3, 6, 6)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    def build():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
        model.to(memory_format=torch.channels_last)
        return model, make(model.parameters())

    model, optimizer = build()
    steps(model, optimizer, 3)
    path = save(tmp_path, state={"backbone": model.state_dict(), "optimizer": optimizer.state_dict()})
    steps(model, optimizer, 3)
    names = load_file(path / manifest.REPLICATED)
    assert "backbone/0.weight" in names and any(name.startswith("optimizer/state/0/") for name in names)

    other, other_optimizer = build()
    loaded = checkpoint.load(path)
    other.load_state_dict(loaded.state["backbone"])
    other_optimizer.load_state_dict(loaded.state["optimizer"])
    steps(other, other_optimizer, 3)
    assert same(dict(other.state_dict()), dict(model.state_dict()))


def test_tensors_that_share_storage_come_back_apart(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    state = {
        "all": base,
        "again": base,
        "row": base[1],
        "column": base[:, 2],
        "turned": base.T,
        "leaf": base[0, 0],
    }
    parameter = {"parameter": torch.nn.Parameter(base.clone())}
    loaded = checkpoint.load(save(tmp_path, state={**state, **parameter})).state
    assert all(torch.equal(loaded[name], state[name]) for name in state)
    loaded["all"].zero_()
    assert torch.equal(loaded["again"], base)
    assert not loaded["parameter"].requires_grad


def test_loaded_state_outlives_the_files(tmp_path):
    path = save(tmp_path, state={"w": torch.ones(100_000)})
    loaded = checkpoint.load(path)
    (path / manifest.REPLICATED).write_bytes(b"\0" * 400_000)
    shutil.rmtree(path)
    assert loaded.state["w"].sum() == 100_000


@pytest.mark.parametrize(
    "value", [object(), b"bytes", {1, 2}, torch.eye(2).to_sparse(), torch.ones(1, device="meta")]
)
def test_what_cannot_be_stored_is_named_by_path(value, tmp_path):
    with pytest.raises(TypeError, match="outer/1/inner"):
        save(tmp_path, state={"outer": [0, {"inner": value}]})
    assert list(tmp_path.iterdir()) == []


# --- rows ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file_bytes", [1 << 30, 64, 1])
def test_any_row_range_is_assembled_from_any_files(file_bytes, tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "MAX_SHARD_BYTES", file_bytes)
    saved = head()
    loaded = checkpoint.load(save(tmp_path, sharded=saved))
    assert len(list(loaded.path.glob("shard-*"))) == {1 << 30: 1, 64: 12, 1: 23}[file_bytes]
    for start, stop in [(0, 23), (0, 0), (23, 23), (5, 6), (3, 17), (22, 23)]:
        for name, part in saved.items():
            assert same(loaded.rows(name, start, stop), part.tensor[start:stop].clone())
    out = torch.zeros(8, 4, dtype=torch.float64)
    assert loaded.rows("head/centres", 1, 9, out=out) is out
    assert torch.equal(out, saved["head/centres"].tensor[1:9].double())


def test_only_files_that_are_needed_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "MAX_SHARD_BYTES", 64)
    saved = head()
    loaded = checkpoint.load(save(tmp_path, sharded=saved))
    for file in loaded.path.glob("shard-*"):
        if not file.name.startswith("shard-0000000004-"):
            file.unlink()
    assert same(loaded.rows("head/last_step", 4, 6), torch.tensor([4, 5]))
    with pytest.raises(UserError, match=r"shard-0000000006-0000000008.safetensors.*delete"):
        loaded.rows("head/last_step", 4, 7)


def test_rows_refuses_what_is_not_there(tmp_path):
    loaded = checkpoint.load(save(tmp_path, sharded=head()))
    with pytest.raises(UserError, match=r"'head/centers' .did you mean 'head/centres'"):
        loaded.rows("head/centers")
    for start, stop in [(-1, 2), (3, 2), (0, 24)]:
        with pytest.raises(ValueError, match="which has 23"):
            loaded.rows("head/centres", start, stop)
    with pytest.raises(ValueError, match="out is"):
        loaded.rows("head/centres", 0, 2, out=torch.empty(3, 4))


def test_rows_that_do_not_fit_together_are_not_saved(tmp_path):
    for sharded in (
        {"a": Sharded(torch.ones(2), 0, 2), "b": Sharded(torch.ones(3), 0, 3)},
        {"a": Sharded(torch.ones(2), 0, 4)},
        {"a": Sharded(torch.ones(2), 2, 4)},
    ):
        with pytest.raises(ValueError, match=r"rows|start"):
            save(tmp_path, sharded=sharded)
    assert list(tmp_path.iterdir()) == []


# --- which ones are kept ------------------------------------------------------------------------------------


def steps_of(root):
    return [int(path.name.removeprefix("step-")) for path in checkpoint.list_checkpoints(root)]


def test_the_last_ones_and_the_best_are_kept(tmp_path):
    metrics = {1: 0.5, 2: 0.9, 3: math.nan, 4: 0.7, 5: None, 6: 0.9, 7: 0.1, 8: 0.2}
    for step, metric in metrics.items():
        save(tmp_path, step, metric=metric, keep_last=2)
        assert steps_of(tmp_path)[-1] == step
    assert steps_of(tmp_path) == [6, 7, 8]
    assert checkpoint.best(tmp_path).name == "step-00000006"
    assert checkpoint.latest(tmp_path).name == "step-00000008"
    save(tmp_path, 9, metric=0.3, keep_last=2, keep_best=False)
    assert steps_of(tmp_path) == [8, 9]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000008", "step-00000009"]


def test_the_one_just_saved_stays_though_later_steps_exist(tmp_path):
    for step in (10, 20, 5):
        save(tmp_path, step, keep_last=1)
    assert steps_of(tmp_path) == [5, 20]


def test_saving_a_step_again_replaces_it(tmp_path):
    for value in (1, 2):
        save(tmp_path, 7, state={"value": value}, keep_last=1)
    assert checkpoint.load(checkpoint.latest(tmp_path)).state == {"value": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000007"]


def test_only_complete_ones_count(tmp_path):
    assert checkpoint.latest(tmp_path / "nowhere") is None
    assert checkpoint.best(tmp_path) is None
    save(tmp_path, 3)
    (tmp_path / "step-00000009").mkdir()
    (tmp_path / ".tmp-step-00000010").mkdir()
    (tmp_path / ".tmp-step-00000010" / manifest.NAME).write_text("{}")
    (tmp_path / "step-latest").mkdir()
    assert steps_of(tmp_path) == [3]
    save(tmp_path, 4)
    assert not (tmp_path / ".tmp-step-00000010").exists()
    with pytest.raises(UserError, match=r"step-00000009.*not complete.*resume from step-00000004"):
        checkpoint.load(tmp_path / "step-00000009")


def test_keep_last_must_keep_something(tmp_path):
    with pytest.raises(UserError, match="keep_last: 0"):
        save(tmp_path, keep_last=0)


# --- kills and full disks -----------------------------------------------------------------------------------


class Killed(BaseException):
    """Not an Exception: nothing may clean up after it, as after SIGKILL."""


OPERATIONS = [
    (os, "fsync"),
    (Path, "open"),
    (Path, "mkdir"),
    (Path, "replace"),
    (shutil, "rmtree"),
    (os, "unlink"),
    (writer.tensorfile, "write_tensors"),
    (json, "dumps"),
]


def fail_at(monkeypatch, number, error, after):
    """Raise ``error`` before (or after) the ``number``-th file operation from now on.

    Returns a function that says how many operations there were.
    """
    count = 0

    def wrap(original):
        def operation(*arguments, **options):
            nonlocal count
            count += 1
            mine = count
            if mine == number and not after:
                raise error
            result = original(*arguments, **options)
            if mine == number and after:
                raise error
            return result

        return operation

    for owner, name in OPERATIONS:
        monkeypatch.setattr(owner, name, wrap(getattr(owner, name)))
    return lambda: count


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("error", [Killed(), OSError(errno.ENOSPC, "No space left on device")])
def test_a_failure_at_any_operation_leaves_a_good_checkpoint(tmp_path, step, error, after):
    for number in range(1, 200):
        root = tmp_path / str(number)
        old, new = {"w": torch.zeros(5)}, {"w": torch.ones(5)}
        save(root, 1, state=old, sharded=head(fill=0), keep_last=1)
        with pytest.MonkeyPatch.context() as patch:
            operations = fail_at(patch, number, error, after)
            try:
                save(root, step, state=new, sharded=head(fill=1), keep_last=1)
                finished = True
            except (Killed, UserError) as raised:
                finished = False
                assert isinstance(raised, Killed) or "No space left on device" in str(raised)
        found = checkpoint.load(checkpoint.latest(root))
        value = found.state["w"][0].item()
        assert same(found.state, new if value else old)
        assert all(torch.equal(found.rows(name), part.tensor) for name, part in head(fill=value).items())
        for path in checkpoint.list_checkpoints(root):
            read_all(path)
        if not finished and isinstance(error, OSError) and not after:
            assert not list(root.glob(".tmp-*"))
        save(root, 3, keep_last=1)  # and the next save tidies up
        assert [path.name for path in root.iterdir()] == ["step-00000003"]
        if operations() < number:
            assert finished and value == 1 and number > 20
            return
    pytest.fail("the save never finished")


def test_a_full_disk_is_one_clear_line(tmp_path):
    save(tmp_path, 1, state={"w": torch.zeros(5)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        with pytest.raises(
            UserError, match=r"cannot write checkpoint .*step-00000002: File too large; make room"
        ):
            save(tmp_path, 2, state={"w": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write checkpoint .*Not a directory"):
        save(tmp_path / "file" / "checkpoints")


def save_forever(root, saved):
    torch.set_num_threads(1)
    step = saved.value
    while True:
        step += 1
        save(
            root,
            step,
            state={"w": torch.full((50_000,), step)},
            sharded=head(1000, fill=step % 100),
            keep_last=2,
        )
        saved.value = step


def test_sigkill_at_random_moments_never_loses_a_checkpoint(tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "megaclass.checkpoint"])
    saved = context.Value("q", 0)
    moments = random.Random(0)
    for _ in range(8):
        before = saved.value
        process = context.Process(target=save_forever, args=(tmp_path, saved))
        process.start()
        while saved.value == before:
            assert process.is_alive()
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.1))
        process.kill()
        process.join()
        found = checkpoint.load(checkpoint.latest(tmp_path))
        assert found.step >= saved.value
        assert torch.equal(found.state["w"], torch.full((50_000,), found.step))
        for name, part in head(1000, fill=found.step % 100).items():
            assert torch.equal(found.rows(name), part.tensor)
        saved.value = found.step


# --- damage and hostile files -------------------------------------------------------------------------------


def read_all(path):
    loaded = checkpoint.load(path)
    return {
        "state": loaded.state,
        "step": loaded.step,
        **{name: loaded.rows(name) for name in loaded.sharded},
    }


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
            assert same(read_all(victim), wanted)
        except UserError as error:
            assert str(file) in str(error) and "resume from step-00000050" in str(error)
            assert "\n" not in str(error)
        file.write_bytes(content)
    assert same(read_all(victim), wanted)


def sign(path, content):
    """Write a manifest as somebody would who knows the format."""
    content.pop("crc32", None)
    (path / manifest.NAME).write_text(json.dumps({**content, "crc32": manifest._crc32(content)}))


def resign(path):
    """Let the manifest agree with the files as they are now."""
    content = json.loads((path / manifest.NAME).read_text())
    for name in content["files"]:
        data = (path / name).read_bytes()
        content["files"][name] = {"bytes": len(data), "crc32": writer.tensorfile.zlib.crc32(data)}
    sign(path, content)


SHARD = "shard-0000000000-0000000023.safetensors"
BIG = 1 << 40


def rename_shard(content, name):
    content["files"][name] = content["files"].pop(SHARD)


HOSTILE = {
    "parent": lambda c: rename_shard(c, "../shard-0000000000-0000000023.safetensors"),
    "absolute": lambda c: rename_shard(c, "/etc/passwd"),
    "gap": lambda c: rename_shard(c, "shard-0000000001-0000000023.safetensors"),
    "empty file": lambda c: rename_shard(c, "shard-0000000000-0000000000.safetensors"),
    "short": lambda c: rename_shard(c, "shard-0000000000-0000000022.safetensors"),
    "overlap": lambda c: c["files"].update({"shard-0000000005-0000000023.safetensors": c["files"][SHARD]}),
    "missing file": lambda c: c["files"].update(
        {"shard-0000000023-0000000024.safetensors": c["files"][SHARD]}
    ),
    "no replicated": lambda c: c["files"].pop(manifest.REPLICATED),
    "no shard": lambda c: c["files"].pop(SHARD),
    "no sharded": lambda c: c["sharded"].clear(),
    "dtype lie": lambda c: c["sharded"]["head/centres"].update(dtype="F64"),
    "dtype unknown": lambda c: c["sharded"]["head/centres"].update(dtype="PICKLE"),
    "dtype list": lambda c: c["sharded"]["head/centres"].update(dtype=[]),
    "wide": lambda c: c["sharded"]["head/centres"].update(shape=[23, 5]),
    "absurd": lambda c: c["sharded"]["head/centres"].update(shape=[23, BIG, BIG, 0]),
    "huge": lambda c: c["sharded"]["head/centres"].update(shape=[23, BIG // 100]),
    "scalar": lambda c: c["sharded"]["head/centres"].update(shape=[]),
    "negative": lambda c: c["sharded"]["head/centres"].update(shape=[23, -4]),
    "fraction": lambda c: c["sharded"]["head/centres"].update(shape=[23, 4.0]),
    "other name": lambda c: c["sharded"].update(other=c["sharded"].pop("head/centres")),
    "bytes": lambda c: c["files"][SHARD].update(bytes=BIG),
    "bytes text": lambda c: c["files"][SHARD].update(bytes="all"),
    "step": lambda c: c.update(step=True),
    "world": lambda c: c.update(world_size=-1),
    "metric": lambda c: c.update(metric="good"),
    "identity": lambda c: c.update(identity=[]),
    "files list": lambda c: c.update(files=[]),
    "sharded null": lambda c: c.update(sharded=None),
    "tag": lambda c: c.update(state={"$import": "os"}),
    "tag and more": lambda c: c.update(state={"$tuple": [], "x": 1}),
    "float": lambda c: c.update(state={"$float": "__import__('os')"}),
    "items": lambda c: c.update(state={"$items": [1]}),
    "unhashable": lambda c: c.update(state={"$items": [[[], 1]]}),
    "unknown tensor": lambda c: c["state"].update(w={"$tensor": "v"}),
    "tensor unused": lambda c: c.update(state={}),
    "identity tag": lambda c: c.update(identity={"$tensor": "w"}),
    "no state": lambda c: c.pop("state"),
    "format": lambda c: c.update(format="zip"),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_manifest_is_one_clear_error(victim, change):
    content = json.loads((victim / manifest.NAME).read_text())
    # A state without $items at the top, so that the cases can reach into it.
    content["state"] = {"w": {"$tensor": "w"}, "b": {"$tensor": "deep/0/b"}}
    sign(victim, content)
    assert set(read_all(victim)["state"]) == {"w", "b"}
    change(content)
    sign(victim, content)
    with pytest.raises(UserError, match=r"delete .*step-00000100 and resume from step-00000050"):
        read_all(victim)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"a": NaN}',
        "[" * 100_000,
        '{"format": "megaclass-checkpoint"}',
        "\xff\xfe",
        "9" * 5000,
    ],
)
def test_a_manifest_that_is_none(victim, text):
    (victim / manifest.NAME).write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match="resume from step-00000050"):
        checkpoint.load(victim)
    assert checkpoint.best(victim.parent) is None


def test_a_state_that_is_nested_too_deep(victim):
    content = json.loads((victim / manifest.NAME).read_text())
    deep = []
    for _ in range(800):
        deep = [deep]
    sign(victim, {**content, "state": deep})
    with pytest.raises(UserError, match="malformed"):
        checkpoint.load(victim)


def test_another_format_version_says_so(victim):
    content = json.loads((victim / manifest.NAME).read_text())
    sign(victim, {**content, "version": 2})
    with pytest.raises(UserError, match="format version 2, but this release reads 1"):
        checkpoint.load(victim)


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
    content = (victim / file).read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    for _ in range(150):
        damaged = bytearray(content)
        for _ in range(chance.randint(1, 3)):
            damaged[chance.randrange(header)] = chance.choice(b'0123456789{}[]":,FIU\x00\xff')
        (victim / file).write_bytes(damaged)
        resign(victim)
        try:
            read_all(victim)
        except UserError as error:
            assert victim.name in str(error)


def test_a_pickle_is_not_opened(victim):
    torch.save({"w": torch.ones(2)}, victim / manifest.REPLICATED)
    resign(victim)
    with pytest.raises(UserError, match="not a readable safetensors file"):
        checkpoint.load(victim)


def test_no_checkpoint_at_all(tmp_path):
    with pytest.raises(UserError, match="nowhere is not a checkpoint directory"):
        checkpoint.load(tmp_path / "nowhere")


# --- identity -----------------------------------------------------------------------------------------------


def test_a_checkpoint_of_another_model_names_every_difference(tmp_path):
    path = save(tmp_path)
    loaded = checkpoint.load(path, identity=IDENTITY)
    assert (
        loaded.identity == IDENTITY and loaded.step == 1 and loaded.world_size == 1 and loaded.metric is None
    )
    with pytest.raises(UserError) as caught:
        checkpoint.load(path, identity={**IDENTITY, "classes": 24, "backbone": "r18", "input": (3, 112, 112)})
    text = str(caught.value)
    assert "classes is 23 there and 24 in this run" in text
    assert "backbone is 'iresnet50' there and 'r18' in this run" in text
    assert "input is absent there" in text
    assert "embedding_size" not in text


def test_flat_names_never_collide():
    x, y, z = torch.zeros(1), torch.ones(1), torch.ones(2)
    _, named = tree.flatten({"a/b": x, "a": {"b": y}, 1: x, "1": y, "__metadata__": z, "a/b~2": z, "": x})
    assert len(named) == 7
    assert "__metadata__" not in named
