"""Tables, curves and headline of one's own rows, derived from what a benchmark declares."""

import dataclasses
import io
from dataclasses import dataclass

import pytest
from rich.console import Console

import megaclass.bench
from made_rows import (
    FACES,
    INFER,
    LAPTOP,
    PHOTOGRAPHS,
    SERVER,
    column_of,
    document_of,
    lost,
    pictures_of,
    row,
    table_of,
    texts,
)
from megaclass.bench.case import Metric, parameter
from megaclass.report.own import console_tables
from megaclass.report.pictures import COLOURS, draw


@dataclass(frozen=True)
class Juggling:
    balls: int = parameter(3, "how many", sweeps=True)
    hand: str = parameter("left", "which", sweeps=True)
    throws: int = parameter(10, "how often", effort=True)
    day: int = parameter(0, "again", title="evening")
    device = threads = world_size = warmup = steps = 1


METRICS = (
    Metric("throws_per_second", "Throws/s", lambda row: row.work["throws"], "higher"),
    Metric("height_m", "Height, m", lambda row: row.result.get("height_m")),
)
TOY = dataclasses.replace(
    megaclass.bench.BENCHMARKS["head"],
    **{"name": "juggling", "title": "Juggling", "case": Juggling, "metrics": METRICS},
    headline="throws_per_second",
    repeats="day",
)


@pytest.fixture
def juggling(monkeypatch):
    """A benchmark that nobody has seen before, as one file would declare it."""
    monkeypatch.setitem(megaclass.bench.BENCHMARKS, "juggling", TOY)
    return lambda rate, **case: row("juggling", dataclasses.asdict(Juggling()) | case, 1.0, work={"throws": rate})


def console(renderable, width=80):
    shown = Console(width=width, file=io.StringIO())
    shown.print(renderable)
    return shown.file.getvalue()


def test_a_new_benchmark_has_tables_curves_and_a_headline(juggling, tmp_path):
    rows = [juggling(12.5 - n, balls=n, throws=n, hand=hand) for n in (3, 5, 7) for hand in ("left", "right")]
    document = document_of(tmp_path, rows)
    table = table_of(document, "Juggling: 8 x Testcard")
    titles = [column.title for column in table.columns]
    assert titles == ["Balls", "Hand", "Throws/s", "Steps", "CPU wait, %"]
    assert texts(column_of(table, "Balls")) == ["3", "3", "5", "5", "7", "7"]
    assert table.remarks == ["The same in all: evening 0."]
    (picture,) = pictures_of(document)
    assert (picture.title, picture.y_label) == ("Juggling by balls", "Throws/s")
    assert [series.points for series in picture.series] == [[(3, 9.5), (5, 7.5), (7, 5.5)]] * 2
    (headline,) = document.sections[0].headlines
    assert (headline.number, headline.unit) == ("9.500", "Throws/s")
    assert "balls 3, hand left" in headline.detail
    out = console(console_tables(rows))
    assert "Juggling" in out and "Throws/s" in out and "5.500" in out


def test_tables_fit_a_terminal_with_every_number_whole(juggling):
    rows = [juggling(n * 1234.5, balls=n, hand=f"hand {n} " * 4) for n in (1, 2)]
    rows += [row("infer", INFER | {"batch_size": n}, 123.4 + n, memory_mb={"driver": 1e6 + n}) for n in (1, 2)]
    for width in (60, 80, 140):
        out = console(console_tables(rows), width)
        assert max(map(len, out.splitlines())) <= width
        for value in ("1,234", "2,469", "1,000,001", "1,000,002", "hand"):
            assert value in out


def test_repeats_are_told_by_mean_deviation_minimum_and_maximum(juggling, tmp_path):
    rows = [juggling(value, day=day) for day, value in enumerate((90.0, 92.0, 93.0, 94.0))]
    again = dataclasses.replace(juggling(91.0, day=2), measured_at="2027-01-01")  # the latest counts
    once = juggling(99.0, hand="right")
    document = document_of(tmp_path, [*rows, again, once])
    line = table_of(document, "Juggling, repeated").lines[-1]
    assert texts(line.cells) == ["left", "4", "91.750", "1.708", "90.000", "94.000"]
    assert len(line.cells[2].sources) == 4
    (headline,) = document.sections[0].headlines  # of the most repeats, in its words too
    assert headline.number == "91.75" and "mean of 4 days" in headline.basis
    assert headline.source.line == 1 and "hand left" in headline.detail


def test_a_case_without_a_number_says_why_and_a_disturbed_one_that_it_was(tmp_path):
    cases = ((1, 10.0), (2, 10.1))
    rows = [row("infer", INFER | {"batch_size": b}, 1.0, cpu_wait_percent=wait) for b, wait in cases]
    rows.append(lost("infer", INFER, "oom", "too large"))
    table = table_of(document_of(tmp_path, rows), "Inference:")
    assert [line.cells[-1].notes != () for line in table.lines] == [False, True, False]
    assert column_of(table, "Steps")[2].text == "" and table.notes[-1] == "oom: too large"
    out = console(console_tables(rows), 120)
    assert "oom" in out and "too large" in out


def test_a_row_that_was_scaled_down_says_what_ran(tmp_path):
    scaled = row("infer", INFER | {"batch_size": 2}, 1.0, asked=INFER | {"batch_size": 256}, suite="s")
    table = table_of(document_of(tmp_path, [scaled, row("infer", INFER, 1.0)]), "Inference:")
    assert texts(line.cells[0] for line in table.lines) == ["2", "1"]
    assert any("256 → 2" in note for note in table.notes)


# -- rows that took turns -------------------------------------------------------------------------------


def _turns(implementation="megaclass", factor=1.0, slowed=(), **fields):
    """Six rounds of three steps; a neighbour slows whole rounds."""
    times = [factor * (100 + i % 3) * (3 if i // 3 in slowed else 1) for i in range(18)]
    case = PHOTOGRAPHS | fields.pop("case", {})
    one = row("train", case, 100.0, group="g", implementation=implementation, epochs=[{"total": 1.0}] * 6)
    return dataclasses.replace(one, samples_ms=times, memory_mb={"process": 100.0 * factor}, **fields)


def test_what_slows_a_round_for_all_leaves_the_ratio(tmp_path):
    rows = [_turns(slowed=(1, 3)), _turns("pytorch", 2.5, slowed=(1, 3), case={"precision": "fp32"})]
    document = document_of(tmp_path, rows)
    mine, other = column_of(table_of(document, "Training:"), "Ours, times as fast")
    assert mine.text == "" and other.text == "2.50" and len(other.sources) == 2
    first, second = document.sections[0].headlines
    assert second.number == "2.50" and second.unit == "times as fast as pytorch"
    assert "fp16 beside its fp32" in second.detail and first.machine == second.machine


def test_ours_alone_are_compared_with_the_first_and_by_the_time_of_processors_too(tmp_path):
    first, second = (
        _turns(factor=f, case={"settings": {"speed.compile": how}}) for f, how in ((2.0, "none"), (1.0, "blocks"))
    )
    apart = dataclasses.replace(second, group="h")
    table = table_of(document_of(tmp_path, [first, second, apart]), "Training:")
    assert texts(column_of(table, "speed.compile")) == ["none", "blocks", "blocks"]
    assert texts(column_of(table, "Ours, times as fast")) == ["", "0.50", ""]
    out = console(console_tables([_turns(cpu_ms=[2.0] * 18), _turns("pillow", 2.0, cpu_ms=[8.0] * 18)]), 200)
    assert " 2.00¹ " in out and " 4.00¹ " in out  # by the wall's clock, by processors


# -- headline and curves --------------------------------------------------------------------------------


def test_a_report_opens_with_number_machine_versions_and_n(tmp_path):
    document = document_of(tmp_path, [row("infer", INFER | {"batch_size": b}, 2.0, steps=7) for b in (1, 8)])
    (headline,) = document.sections[0].headlines
    assert headline.source.row.case["batch_size"] == 8 and headline.machine == "8 x Testcard T1 80GB"
    for part in ("PyTorch 2.13.0+cu130", "CUDA 13.0", "revision 012345678-dirty", "n = 7 steps", "2 rows"):
        assert part in headline.basis
    text = document.sections[0].texts[0]
    assert text.startswith("2 rows of 1 file, 14 timed steps in all, measured on 2026-01-02.")


def test_the_headline_is_no_share_no_scaled_case_and_not_the_least_work(tmp_path):
    share = row("train", FACES | {"world_size": 1, "simulate_ranks": 8}, 10.0, cpu_wait_percent=31.0)
    least, most = (row("train", FACES | {"num_classes": n}, 99.0) for n in (10, 10**6))
    scaled = row("train", FACES | {"global_batch_size": 8}, 0.01, asked=FACES)
    (headline,) = document_of(tmp_path, [share, least, most, scaled]).sections[0].headlines
    assert headline.source.line == 3
    (tmp_path / "alone").mkdir()
    (alone,) = document_of(tmp_path / "alone", [share]).sections[0].headlines
    assert "one of 8 ranks, the others simulated" in alone.detail and alone.unit.endswith("a rank")
    assert float(alone.number.replace(",", "")) == pytest.approx(1024 / 8 / 0.010, rel=0.03)
    assert "other programs were busy" in alone.basis


def test_curves_keep_machines_programs_and_published_numbers_apart(tmp_path):
    batches = (1, 2, 4)
    rows = [
        row("infer", INFER | {"batch_size": b}, 1.0 + b, environment=environment, implementation=who, seed=b)
        for environment, who in ((SERVER, "megaclass"), (LAPTOP, "megaclass"), (SERVER, "pytorch"))
        for b in batches
    ]
    rows += [row("infer", INFER | {"batch_size": b, "precision": "tf32"}, 1.0) for b in batches[:2]]  # no curve
    (picture,) = pictures_of(document_of(tmp_path, rows, against=["resnet50-nvidia"]))
    mine = [series for series in picture.series if series.kind == "own"]
    assert len(mine) == 3 and all([x for x, _ in series.points] == [*batches] for series in mine)
    labels = [series.label for series in picture.series]
    assert labels[:3] == ["8 x Testcard T1 80GB", "Testchip 9000, 2 threads", "8 x Testcard T1 80GB, pytorch"]
    assert any(label.startswith("published: NVIDIA DGX A100") for label in labels)
    assert len({colour for _, _, colour in picture.legend}) == len(labels)
    assert f"{mine[0].points[0][1]:,.4g} at 1" in picture.alt
    assert draw(picture, "dark") != draw(picture, "light") == draw(picture, "light")


def _on(n, batch, step_ms, **fields):
    case = PHOTOGRAPHS | {"world_size": n, "global_batch_size": batch, "iterations": 10 * n}
    case |= {"collectives": "included"} if n > 1 else {}
    return row("train", case | fields.pop("case", {}), step_ms, **{"noise": 0} | fields)


def test_many_curves_are_several_pictures_and_scaling_has_its_ideal(tmp_path):
    rows = [
        _on(n, 32 * n, 100.0 + n, case={"sample_rate": rate / 10, "num_classes": 10 + rate})
        for n in (1, 2, 4)
        for rate in range(1, len(COLOURS) + 2)
    ]
    pictures = [p for p in pictures_of(document_of(tmp_path, rows)) if "devices" in p.title]
    assert [p.title.rpartition(" (")[2] for p in pictures] == ["1 of 2)", "2 of 2)"]
    ideal = pictures[1].series[-1]
    x0, y0 = pictures[1].series[0].points[0]
    assert ideal.kind == "ideal" and ideal.points == [(1, y0), (4, 4 * y0)] and x0 == 1
