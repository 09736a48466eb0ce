"""From words to cases."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megaclass.bench.arguments import counts, rates
from megaclass.bench.old_head.cases import HeadCase, sweep
from megaclass.bench.old_head.plan import entries
from megaclass.bench.runner import Entry
from megaclass.errors import UserError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("128", [128]),
        ("100K,1M", [100_000, 1_000_000]),
        ("1.5m, 2B", [1_500_000, 2_000_000_000]),
        ("1e3", [1000]),
    ],
)
def test_counts(text, expected):
    assert counts("num-classes", text) == expected


@given(st.integers(min_value=0, max_value=10**18))
def test_digits_stay_exact(number):
    assert counts("n", f"{number},{number}K") == list(dict.fromkeys([number, number * 1000]))


@pytest.mark.parametrize("text", ["", "ten", "1.5", "1,,2", "K", "inf", "nan", "1T", "0.0001K"])
def test_what_is_no_count(text):
    with pytest.raises(UserError, match="--num-classes: "):
        counts("num-classes", text)


def test_what_is_no_rate():
    assert rates("sample-rate", "1,0.1") == [1, 0.1]
    with pytest.raises(UserError, match="--sample-rate"):
        rates("sample-rate", "1,a")


def test_every_combination_once():
    found = sweep({"num_classes": [1, 2, 3], "sample_rate": [1.0, 0.5]}, steps=7)
    assert [(case.num_classes, case.sample_rate) for case in found] == [
        (1, 1.0), (1, 0.5), (2, 1.0), (2, 0.5), (3, 1.0), (3, 0.5),
    ]  # fmt: skip
    assert {case.steps for case in found} == {7}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"num_classes": 0}, "num-classes"),
        ({"num_classes": 10**16}, "num-classes"),
        ({"batch_size": -1}, "batch-size"),
        ({"steps": 0}, "steps"),
        ({"warmup": -1}, "warmup"),
        ({"sample_rate": 0.0}, "sample-rate"),
        ({"sample_rate": float("nan")}, "sample-rate"),
        ({"precision": "bf15"}, "bf16"),
        ({"storage": "int4"}, "int8_rowwise"),
        ({"margin": "arc"}, "arcface"),
        ({"kernels": "cuda"}, "kernels"),
        ({"world_size": 2, "simulate_ranks": 2}, "simulate-ranks"),
    ],
)
def test_what_makes_no_sense(change, named):
    with pytest.raises(UserError, match=named):
        sweep({}, **change)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, ""),
        ({"batch_size": 7, "simulate_ranks": 2}, "does not divide"),
        ({"device": "cuda", "world_size": 2}, "GPUs"),
        ({"precision": "tf32"}, "CUDA"),
        ({"kernels": "triton"}, "CUDA"),
    ],
)
def test_what_a_machine_cannot_do_is_skipped(change, reason):
    found = HeadCase(**change).why_skipped(gpus=1)
    assert reason in found and bool(found) == bool(reason)


def test_a_row_says_whether_collectives_are_in_its_time():
    assert HeadCase(world_size=2).parameters()["collectives"] == "included"
    assert HeadCase(simulate_ranks=2).parameters()["collectives"] == "none"


def test_the_peer_of_a_cpu_runs_on_both_allocators(tmp_path):
    for name in ("partial_fc_v2.py", "losses.py"):
        (tmp_path / name).touch()
    case = HeadCase(precision="bf16", storage="int8_rowwise")
    ours, tuned, untuned = entries(case, "arcface_torch", str(tmp_path), "both")
    assert ours == Entry()
    assert tuned.variables["MALLOC_MMAP_MAX_"] == "0" and untuned.variables["MALLOC_MMAP_MAX_"] is None
    assert (tuned.extra, untuned.extra) == ({"malloc": "tuned"}, {"malloc": "untuned"})
    assert tuned.changes["precision"] == "fp32" and tuned.changes["storage"] == "fp32"
    assert [e.extra for e in entries(case, "arcface_torch", str(tmp_path), "tuned")[1:]] == [tuned.extra]
    _, peer = entries(HeadCase(precision="bf16", device="cuda"), "arcface_torch", str(tmp_path), "both")
    assert not peer.extra and not peer.variables and peer.changes["precision"] == "fp16"
