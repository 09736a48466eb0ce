"""Weak scaling as simulated ranks predict it."""

import pytest

from made_rows import SERVER
from megaclass.cli import main
from megaclass.report.scaling import LINKS, Link, predict, weak_scaling
from megaclass.results.rows import Row, RowWriter, timed

CASE = {
    "backbone": "iresnet50",
    "image_size": 112,
    "num_classes": 618_000,
    "sample_rate": 0.1,
    "world_size": 1,
    "precision": "bf16",
    "settings": {},
}
LINK = Link("made-up", "made up", 1e9, 1e-3)


def row(ranks, step_ms, sent=(), implementation="megaclass", **case):
    work = {
        f"sent_{name}_{kind}": value
        for kind, volume, rounds in sent
        for name, value in (("bytes", volume), ("rounds", rounds), ("calls", 1.0))
    }
    return Row(
        implementation=implementation,
        benchmark="train",
        status="ok",
        case=CASE | {"simulate_ranks": ranks, "global_batch_size": 128 * ranks} | case,
        environment=SERVER,
        work=work,
        **timed([step_ms] * 3, 128 * ranks),
    )


def test_the_price_of_a_step():
    alone = row(1, 100.0)
    sent = [("backbone", 20e6, 14.0), ("all_gather", 3e6, 2.0)]
    found = predict(row(8, 110.0, sent), alone, LINK)
    backbone, rest = 20 + 14, 3 + 2  # ms: 1 GB/s is 1 MB in a ms, and a round waits for another
    assert found.ms == pytest.approx(backbone + rest)
    assert found.pessimistic == pytest.approx(100 / (110 + backbone + rest))
    assert found.optimistic == pytest.approx(100 / (110 + rest))


def test_no_more_is_hidden_than_the_backward_pass_takes():
    found = predict(row(8, 90.0, [("backbone", 200e6, 0.0)]), row(1, 90.0), LINK)
    assert found.optimistic == pytest.approx(90 / (90 + 200 - 60))


def test_a_table_for_the_same_work_on_each_rank():
    rows = [
        row(1, 100.0),
        row(8, 110.0, [("backbone", 20e6, 14.0)]),
        row(2, 105.0, [("backbone", 10e6, 2.0)]),
        row(8, 50.0, global_batch_size=512),  # other work
        row(8, 50.0, implementation="pytorch"),
        row(4, 70.0, num_classes=1000),
    ]
    (sheet,) = weak_scaling(rows, [LINK])
    assert [line[:3] for line in sheet.lines] == [["1", "100", "0"], ["2", "105", "10"], ["8", "110", "20"]]
    assert [line[3] for line in sheet.lines] == ["100%", "85% to 95%", "69% to 91%"]
    assert sheet.title == "iresnet50, 112 px, 618K classes at rate 0.1, 128 images a rank, bf16"


def test_the_verb(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    with RowWriter(path) as writer:
        writer.write(row(1, 100.0))
        writer.write(row(8, 110.0, [("backbone", 20e6, 14.0)]))
    assert main(["bench", "scaling", str(path), "--link", "nvlink4"]) == 0
    assert "91% to 91%" in capsys.readouterr().out
    assert main(["bench", "scaling", str(path), "--link", "nvlink"]) == 2
    assert "did you mean 'nvlink4'" in capsys.readouterr().err


def test_rows_of_one_rank_alone_are_refused(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    with RowWriter(path) as writer:
        writer.write(row(1, 100.0))
    assert main(["bench", "scaling", str(path)]) == 2
    assert "--simulate-ranks 1,2,8" in capsys.readouterr().err


def test_links_get_slower():
    speeds = [link.bytes_per_second for name, link in LINKS.items() if name[0].isdigit()]
    assert speeds == sorted(speeds, reverse=True) and all(name == link.name for name, link in LINKS.items())
