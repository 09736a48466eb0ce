"""`megaclass bench suite` as a user meets it, with a published report that is small enough for a test."""

import pytest

from megaclass.cli import main
from megaclass.results import published
from megaclass.results.published import Cell, Column, Machine, Report, Table, TableRow
from megaclass.results.rows import read_rows


def small(name):
    """Training on 1 and on 8 devices, and an inference, of a network of a few layers."""
    shared = {"recipe": "glyphs", "image_size": 16}
    columns = [
        Column("GPUs", "label", "", "", False),
        Column("Throughput", "value", "samples_per_second", "img/s", False),
    ]

    def table(kind, cases):
        rows = [
            TableRow(
                "big",
                [Cell(str(i), None, False, {}, None, "big"), Cell("100", 100.0, False, case, None, "big")],
            )
            for i, case in enumerate(cases)
        ]
        return Table(kind, kind, kind, columns, rows)

    train = [
        shared | {"world_size": n, "global_batch_size": 8 * n, "num_classes": 50, "precision": "fp32"}
        for n in (1, 8)
    ]
    infer = [shared | {"batch_size": 2, "precision": kind} for kind in ("fp32", "tf32")]
    return Report(
        name, "A small report", {"project": "none"}, [], {"big": Machine("8 x big", [])},
        [table("train", train), table("infer", infer)],
    )  # fmt: skip


@pytest.fixture
def suite(monkeypatch, tmp_path):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(published, "load", small)
    monkeypatch.setattr(published, "names", lambda: ["small"])
    return lambda *words: main(["bench", "suite", *map(str, words)])


def test_a_suite_is_measured_reported_and_goes_on(suite, tmp_path, capsys):
    words = ["small", "--fit", "--minutes", "0.2", "--device", "cpu", "--iterations", 3, "--output", "out"]
    assert suite(*words, "--plan") == 0
    assert "1 of 8 simulated ranks" in capsys.readouterr().out and not (tmp_path / "out").exists()

    assert suite(*words) == 0
    rows = read_rows(tmp_path / "out" / "rows.jsonl")
    assert [row.status for row in rows] == ["ok", "ok", "ok", "skipped"], [row.reason for row in rows]
    assert {row.suite for row in rows} == {"small"}
    one, share, latency, left_out = rows
    assert one.case["global_batch_size"] == 8 and not one.asked
    assert share.case["simulate_ranks"] == 8 and share.asked["world_size"] == 8
    assert latency.benchmark == "infer" and latency.rates["total"] > 0
    assert "CUDA" in left_out.reason
    said = capsys.readouterr().out
    for name in ("report.html", "report.md", "report.csv"):
        assert (tmp_path / "out" / name).stat().st_size > 0 and name in said
    assert "A small report" in (tmp_path / "out" / "report.html").read_text()

    assert suite(*words) == 0
    assert len(read_rows(tmp_path / "out" / "rows.jsonl")) == 4
    assert "cases are in" in capsys.readouterr().out


def test_suites_are_listed(monkeypatch, capsys):
    assert main(["bench", "suite"]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in published.names())


def test_an_unknown_suite_and_a_directory_that_is_a_file(suite, tmp_path, monkeypatch, capfd):
    (tmp_path / "notes").write_text("mine")
    assert suite("small", "--output", "notes") == 2
    monkeypatch.undo()
    assert main(["bench", "suite", "arcface-a10"]) == 2
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 2 and "notes" in said[0] and "arcface-a100" in said[1]
    assert (tmp_path / "notes").read_text() == "mine"
