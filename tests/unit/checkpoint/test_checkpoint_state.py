"""Every state comes back bit for bit, by any row range, and the right checkpoints are kept."""

import math
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from checkpoint_cases import IDENTITY, head, same, save
from megaclass import checkpoint
from megaclass.checkpoint import manifest, saver, tensorfile, tree
from megaclass.errors import UserError


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
        | st.dictionaries(keys | st.none() | st.tuples(st.integers(0, 2), st.text(max_size=2)), inner, max_size=3)
    ),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(keys, states, max_size=4), st.booleans())
def test_any_state_comes_back_bit_for_bit(state, beside):
    with tempfile.TemporaryDirectory() as folder:
        assert same(checkpoint.load(save(Path(folder), state=state, beside=beside)).state, state)


def test_tensors_that_share_storage_come_back_apart_and_outlive_their_files(tmp_path):
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
    path = save(tmp_path, state={**state, **parameter})
    assert load_file(path / manifest.REPLICATED).keys() == {*state, *parameter}
    loaded = checkpoint.load(path).state
    (path / manifest.REPLICATED).write_bytes(b"\0" * 400)
    shutil.rmtree(path)
    assert all(torch.equal(loaded[name], state[name]) for name in state)
    loaded["all"].zero_()
    assert torch.equal(loaded["again"], base) and not loaded["parameter"].requires_grad


@pytest.mark.parametrize("value", [object(), b"bytes", {1, 2}, torch.eye(2).to_sparse(), torch.ones(1, device="meta")])
def test_what_cannot_be_stored_is_named_by_path(value, tmp_path):
    with pytest.raises(TypeError, match="outer/1/inner"):
        save(tmp_path, state={"outer": [0, {"inner": value}]})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("file_bytes", [1 << 30, 64, 1])
def test_any_row_range_is_assembled_from_any_files(file_bytes, tmp_path, monkeypatch):
    monkeypatch.setattr(saver, "MAX_SHARD_BYTES", file_bytes)
    saved = head()
    loaded = checkpoint.load(save(tmp_path, sharded=saved))
    assert len(list(loaded.path.glob("shard-*"))) == {1 << 30: 1, 64: 12, 1: 23}[file_bytes]
    for start, stop in [(0, 23), (0, 0), (23, 23), (5, 6), (3, 17), (22, 23)]:
        for name, part in saved.items():
            assert same(loaded.rows(name, start, stop), part.tensor[start:stop].clone())


def test_only_files_that_are_needed_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(saver, "MAX_SHARD_BYTES", 64)
    loaded = checkpoint.load(save(tmp_path, sharded=head()))
    for file in loaded.path.glob("shard-*"):
        if not file.name.startswith("shard-0000000004-"):
            file.unlink()
    assert same(loaded.rows("head/last_step", 4, 6), torch.tensor([4, 5]))
    with pytest.raises(UserError, match=r"shard-0000000006-0000000008.safetensors.*no other one"):
        loaded.rows("head/last_step", 4, 7)


def test_rows_refuses_what_is_not_there(tmp_path):
    loaded = checkpoint.load(save(tmp_path, sharded=head()))
    with pytest.raises(UserError, match=r"'head/centers' .did you mean 'head/centres'"):
        loaded.rows("head/centers")
    with pytest.raises(ValueError, match="which has 23"):
        loaded.rows("head/centres", 0, 24)


def steps_of(root):
    return [int(path.name.removeprefix("step-")) for path in checkpoint.list_checkpoints(root)]


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 30), st.none() | st.just(math.nan) | st.integers(0, 3)), min_size=1, max_size=8),
    st.integers(1, 3),
    st.sampled_from([0, 1, 40, 100]),
)
def test_what_is_kept_of_any_run(saves, keep_last, keep_every):
    """As many as keep_last, the best, and the first at or after each multiple of keep_every, of all there ever were."""
    with tempfile.TemporaryDirectory() as folder:
        step, metrics = 0, {}
        for gap, metric in saves:
            step += gap
            metrics[step] = metric
            save(Path(folder), step, metric=metric, keep_last=keep_last, keep_every=keep_every)
        steps = list(metrics)
        wanted = {*steps[-keep_last:]}
        scores = [(metric, at) for at, metric in metrics.items() if metric is not None and metric == metric]
        wanted |= {max(scores)[1]} if scores else set()
        for multiple in range(keep_every, step + 1, keep_every or 1) if keep_every else ():
            after = [at for at in steps if multiple <= at < multiple + keep_every]
            wanted |= {*after[:1]}
        assert steps_of(Path(folder)) == sorted(wanted)
        if scores:
            assert checkpoint.best(Path(folder)).name == f"step-{max(scores)[1]:08d}"


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
    with pytest.raises(UserError, match=r"step-00000009.*No such file.*take step-00000004"):
        checkpoint.load(tmp_path / "step-00000009")


def test_a_checkpoint_of_another_model_names_every_difference(tmp_path):
    path = save(tmp_path)
    loaded = checkpoint.load(path, identity=IDENTITY)
    assert (loaded.identity, loaded.step, loaded.world_size, loaded.metric) == (IDENTITY, 1, 1, None)
    with pytest.raises(UserError) as caught:
        checkpoint.load(path, identity={**IDENTITY, "classes": 24, "backbone": "r18", "input": 112})
    assert "model: backbone is 'iresnet50' there and 'r18' in this run; classes is 23 there and 24 in" in str(
        caught.value
    )
    assert "input is absent there" in str(caught.value) and "embedding_size" not in str(caught.value)


def test_flat_names_never_collide():
    x, y, z = torch.zeros(1), torch.ones(1), torch.ones(2)
    _, named = tree.flatten({"a/b": x, "a": {"b": y}, 1: x, "1": y, "__metadata__": z, "a/b~": z, "": x})
    assert len(named) == 7
    assert "__metadata__" not in named
