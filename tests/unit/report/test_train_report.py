"""The table of `bench train` on the console, and rows of several implementations and settings on a page."""

from dataclasses import replace

import pytest
from rich.console import Console

from made_rows import FACES, LAPTOP, PHOTOGRAPHS, row
from megaclass.report.page.peers import reference_of, round_medians, spread, times_as_fast
from megaclass.report.train import comparisons, train_tables
from page_documents import column, document_of, notes_of, table_of

RATES = {"total": 100.0, "compute": 110.0, "data": 1000.0}
COMPILE = "speed.compile"


def training(step_ms, *, case=FACES, rounds=4, noise=0.0, slow=(), **fields):
    """``rounds`` epochs of five steps; the rounds of ``slow`` take twice as long."""
    made = row(
        "train", case, step_ms, steps=5 * rounds, noise=noise, rates=RATES, epochs=[RATES] * rounds, **fields
    )
    work = {"flops_per_second": 5e11, "limit_flops_per_second": 1e12}
    factors = [2 if place // 5 in slow else 1 for place in range(5 * rounds)]
    samples_ms = [ms * factor for ms, factor in zip(made.samples_ms, factors, strict=True)]
    return replace(made, samples_ms=samples_ms, work=work, memory_mb={"reserved": 10.0})


def company():
    """Ours, ours with another setting, and a peer, in one group."""
    swept = [FACES | {"settings": {COMPILE: name}} for name in ("blocks", "none")]
    return [
        training(100.0, case=swept[0], group="g"),
        training(120.0, case=swept[1], group="g", seed=1),
        training(
            300.0,
            case=FACES | {"settings": {}, "precision": "fp32"},
            group="g",
            implementation="arcface_torch",
        ),
    ]


def shown(rows, width=120):
    console = Console(width=width)
    with console.capture() as captured:
        console.print(train_tables(rows))
    return [line.rstrip() for line in captured.get().splitlines()]


def test_those_that_took_turns_are_told_apart_by_name_and_setting():
    title, head, *lines = shown(company())
    assert title.startswith("faces_r50 iresnet50, devices 8, batch 1,024")
    assert head.split()[:2] == ["implementation", "compile"] and head.split()[-2:] == ["spread", "times"]
    assert [line.split()[:2] for line in lines[:3]] == [
        ["megaclass", "blocks"], ["megaclass", "none"], ["arcface_torch", "fp32"]
    ]  # fmt: skip
    assert "1.20 (1.20 to 1.20)" in lines[1] and "3.00 (3.00 to 3.00)" in lines[2] and "to" not in lines[0]


def test_a_sweep_of_ours_alone_has_no_such_columns():
    rows = [training(100.0, rounds=1), training(90.0, rounds=1, case=FACES | {"num_classes": 1000})]
    title, head, *_ = shown(rows)
    assert title == "faces_r50 iresnet50" and head.split()[0] == "devices"
    assert not {"implementation", "spread", "times"} & set(head.split())


def test_settings_stand_under_their_last_name_where_that_is_enough():
    cases = [
        FACES | {"settings": {"model.name": a, "optim.name": b}}
        for a, b in (("x", "y"), ("x", "z"), ("w", "y"))
    ]
    lines = shown([training(100.0, case=case) for case in cases])
    (head,) = [line for line in lines if "images/s" in line]
    assert head.split()[:2] == ["model.name", "optim.name"]


def test_lines_beside_the_rows_say_who_is_faster():
    lines = comparisons(company())
    assert (
        lines[0] == "megaclass fp16, compile blocks: 500 GFLOP/s, 50% of what a large matrix product reaches"
    )
    assert (
        lines[-1] == "megaclass fp16, compile blocks: 3.00 (3.00 to 3.00) times as fast as arcface_torch fp32"
    )
    assert comparisons(company()[:1]) == ["500 GFLOP/s, 50% of what a large matrix product reaches"]


def test_rounds_and_their_spread():
    made = training(100.0, slow=(1,))
    assert round_medians(made) == [100.0, 200.0, 100.0, 100.0] and spread(made) == 1.0
    assert spread(training(100.0, rounds=1)) is None
    assert round_medians(replace(made, samples_ms=[*made.samples_ms, 1.0])) == []
    assert round_medians(replace(made, samples_ms=["fast"] * 20)) == []


def test_what_slows_a_round_for_all_leaves_the_ratio():
    slow = (0, 2)
    ours, theirs = training(100.0, slow=slow, group="g"), training(150.0, slow=slow, group="g")
    assert str(times_as_fast(ours, theirs)) == "1.50 (1.50 to 1.50)"
    apart = times_as_fast(replace(ours, group="a"), replace(theirs, group="b"))
    assert apart.low < 1.5 < apart.high
    assert times_as_fast(ours, replace(theirs, samples_ms=[0.0] * 20)) is None


def test_a_peer_that_was_measured_alone_stands_beside_the_same_work():
    peer = training(300.0, implementation="arcface_torch", group="later", case=FACES | {"precision": "fp32"})
    ours = [training(100.0, group="g"), training(200.0, case=FACES | {"precision": "fp32"}, group="h")]
    other = training(50.0, case=FACES | {"num_classes": 10})
    assert reference_of(peer, [*ours, other, peer]) is ours[1]
    assert reference_of(peer, [ours[0], other, peer]) is ours[0]
    assert reference_of(peer, [other, peer]) is None and reference_of(ours[0], ours) is None


def test_a_page_has_the_ratio_in_table_and_headline(tmp_path):
    document = document_of(tmp_path, company())
    table = table_of(document, "Training:")
    assert [cell.text for cell in column(table, "Speed.compile")] == ["blocks", "none", ""]
    cells = column(table, "Ours, times as fast")
    assert [cell.value for cell in cells] == [None, pytest.approx(1.2), pytest.approx(3.0)]
    assert "row 1 (megaclass)" in notes_of(table, cells[2])[0] and len(cells[2].sources) == 2
    speed, ratio = document.sections[0].blocks[0].items
    assert (
        speed.unit == "samples/s"
        and ratio.unit == "times as fast as arcface_torch"
        and ratio.number == "3.00"
    )
    assert "fp16 beside its fp32" in ratio.detail and "n = 20 steps" in ratio.basis


def test_a_page_keeps_to_one_machine(tmp_path):
    ours, _, peer = company()
    document = document_of(tmp_path, [ours, replace(peer, environment=LAPTOP, group="other")])
    assert not any("arcface_torch" in item.unit for item in document.sections[0].blocks[0].items)


def test_scaling_is_of_one_implementation():
    one = training(100.0, case=PHOTOGRAPHS | {"simulate_ranks": 1, "sample_rate": 1.0})
    two = training(60.0, case=one.case | {"world_size": 2})
    two = replace(two, rates=RATES | {"total": 150.0})
    assert any("1.50 strong" in line for line in shown([one, two]))
    assert not any("strong" in line for line in shown([one, replace(two, implementation="pytorch")]))
