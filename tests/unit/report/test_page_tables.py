"""One's own tables: every row by benchmark, scaling, seeds, and what was left out."""

from pathlib import Path

import pytest

from made_rows import FACES, INFER, LAPTOP, PHOTOGRAPHS, SERVER, every_row, lost, row
from megaclass.report.page import collect
from megaclass.report.page.document import Headlines
from megaclass.report.page.scaling import speedup
from megaclass.results.stats import ratio_of_medians
from page_documents import column, document_of, notes_of, sources_of, table_of, texts


def _on(n, batch, step_ms, **fields):
    case = PHOTOGRAPHS | {"world_size": n, "global_batch_size": batch, "iterations": 10 * n}
    case |= {"collectives": "included"} if n > 1 else {}
    return row("train", case, step_ms, noise=0, **fields)


def test_every_row_of_every_benchmark_stands_in_a_table(tmp_path):
    document = document_of(tmp_path, every_row())
    shown = {s for table in document.tables() for line in table.lines for c in line.cells for s in c.sources}
    assert shown == set(document.sources)


def test_what_differs_is_a_column_and_the_rest_is_said_once(tmp_path):
    rows = [row("infer", INFER | {"batch_size": batch}, 2.0) for batch in (1, 8)]
    table = table_of(document_of(tmp_path, rows), "Inference:")
    assert [cell.text for cell in column(table, "Batch")] == ["1", "8"]
    assert "image size 224" in table.remarks[0] and "batch" not in table.remarks[0]


def test_inference_has_all_percentiles(tmp_path):
    table = table_of(document_of(tmp_path, [row("infer", INFER, 2.0, noise=0.3)]), "Inference:")
    values = [column(table, f"{name} latency")[0].value for name in ("50%", "90%", "95%", "99%", "100%")]
    assert values == sorted(values) and values[0] < values[-1]


def test_weak_scaling_keeps_the_batch_of_a_device(tmp_path):
    rows = [_on(1, 32, 100.0), _on(2, 64, 110.0), _on(4, 256, 110.0)]
    table = table_of(document_of(tmp_path, rows), "Weak scaling")
    assert [cell.text for cell in column(table, "Devices")] == ["1", "2"]
    assert column(table, "Scaling")[1].value == pytest.approx(2 * 100 / 110)
    assert column(table, "Efficiency")[1].value == pytest.approx(100 * 100 / 110)


def test_strong_scaling_keeps_the_global_batch(tmp_path):
    rows = [_on(1, 64, 100.0), _on(2, 64, 60.0)]
    document = document_of(tmp_path, rows)
    table = table_of(document, "Strong scaling")
    assert column(table, "Scaling")[1].value == pytest.approx(100 / 60)
    assert column(table, "Efficiency")[1].value == pytest.approx(100 * 100 / 120)
    assert not [t for t in document.tables() if t.title.startswith("Weak")]


def test_machines_are_not_scaled_against_one_another(tmp_path):
    rows = [_on(1, 32, 100.0, environment=LAPTOP), _on(2, 64, 110.0, environment=SERVER)]
    assert not [t for t in document_of(tmp_path, rows).tables() if "scaling" in t.title]


def test_a_simulated_rank_scales_nothing(tmp_path):
    simulated = PHOTOGRAPHS | {"world_size": 2, "simulate_ranks": 2, "global_batch_size": 64}
    rows = [_on(1, 32, 100.0), row("train", simulated, 9.0)]
    assert not [t for t in document_of(tmp_path, rows).tables() if "scaling" in t.title]


def test_seeds_are_told_by_mean_deviation_minimum_and_maximum(tmp_path):
    case = {"recipe": "glyphs", "metric": "pair_accuracy"}
    rows = [
        row("stability", case | {"seed": seed}, 5.0, result={"pair_accuracy": v, "seconds": 10.0 * v})
        for seed, v in enumerate((0.90, 0.92, 0.94))
    ]
    (line,) = table_of(document_of(tmp_path, rows), "Stability, all seeds").lines
    assert [cell.text for cell in line.cells[-6:]] == ["3", "92.000", "2.000", "90.000", "94.000", "9.200"]
    assert len(line.cells[-5].sources) == 3


def test_collectives_show_both_bandwidths(tmp_path):
    work = {"algorithm_bytes_per_second": 2e9, "bus_bytes_per_second": 3e9}
    case = {"op": "all_reduce", "size_bytes": 1 << 20, "world_size": 2, "backend": "gloo"}
    table = table_of(document_of(tmp_path, [row("collectives", case, 1.0, work=work)]), "Collectives")
    assert column(table, "Algorithm")[0].text == "2.000" and column(table, "Bus")[0].text == "3.000"
    assert column(table, "Message")[0].text == "1 MiB"


def test_an_unknown_benchmark_has_a_table_all_the_same(tmp_path):
    document = document_of(tmp_path, [row("juggling", {"balls": 3}, 1.0)])
    assert table_of(document, "juggling: 8 x Testcard").lines


def test_cases_without_a_number_are_listed_with_their_reasons(tmp_path):
    lost_ones = [lost("infer", INFER, "oom", "too large"), lost("train", PHOTOGRAPHS, "skipped", "no device")]
    document = document_of(tmp_path, [row("infer", INFER, 1.0), *lost_ones])
    listed = texts(table_of(document, "Left out and failed"))
    assert [line[-2:] for line in listed] == [["oom", "too large"], ["skipped", "no device"]]
    table = table_of(document, "Inference:")
    ok, oom = column(table, "Throughput")
    assert notes_of(table, oom) == ["oom: too large"] and not notes_of(table, ok)


@pytest.mark.parametrize(("percent", "said"), [(9.9, False), (10.0, False), (10.1, True), (None, False)])
def test_busy_neighbours_are_told(tmp_path, percent, said):
    document = document_of(tmp_path, [row("infer", INFER, 1.0, cpu_wait_percent=percent)])
    assert any(table.title == "Other programs were busy" for table in document.tables()) == said
    table = table_of(document, "Inference:")
    assert any("other programs were busy" in note for note in table.notes.texts) == said


def test_a_report_opens_with_number_machine_versions_and_n(tmp_path):
    document = document_of(tmp_path, [row("infer", INFER | {"batch_size": b}, 2.0, steps=7) for b in (1, 8)])
    first = document.sections[0].blocks[0]
    assert isinstance(first, Headlines)
    (headline,) = first.items
    assert headline.source.row.case["batch_size"] == 8 and "batch 8" in headline.detail
    assert headline.machine == "8 x Testcard T1 80GB"
    assert "PyTorch 2.13.0+cu130" in headline.basis and "CUDA 13.0" in headline.basis
    assert "revision 012345678-dirty" in headline.basis
    assert "n = 7 steps" in headline.basis and "2 rows" in headline.basis
    text = document.sections[0].blocks[1]
    assert text.startswith("2 rows of 1 file, 14 timed steps in all, measured on 2026-01-02.")


def test_rows_of_the_benchmarks_that_exist_are_shown(repository_results):
    document = collect([str(path) for path in repository_results])
    assert {section.title for section in document.sections} >= {"Head", "Loader"}
    head, loader = table_of(document, "Head:"), table_of(document, "Loader:")
    assert len(head.lines) == repository_results[0].read_bytes().count(b"\n")
    assert all(cell.text for cell in column(head, "Median step"))
    assert any("(" in cell.text for cell in column(head, "GFLOP/s"))
    assert all(cell.text for cell in column(loader, "Images a CPU second"))


@pytest.fixture
def repository_results():
    results = Path(__file__).parents[3] / "benchmarks" / "results"
    return [results / "head-cpu.jsonl", results / "loader-cpu.jsonl"]


def test_sources_keep_their_number_when_more_follow(tmp_path):
    first = sources_of(tmp_path / "a.jsonl", [row("infer", INFER, 1.0)])
    second = sources_of(tmp_path / "b.jsonl", [row("infer", INFER, 1.0)], first=2)
    assert [s.number for s in first + second] == [1, 2]


def _headline(tmp_path, rows):
    (headline,) = document_of(tmp_path, rows).sections[0].blocks[0].items
    return headline


def test_a_simulated_rank_is_the_headline_only_where_nothing_else_is_and_says_so(tmp_path):
    share = row("train", FACES | {"world_size": 1, "simulate_ranks": 8}, 10.0)
    headline = _headline(tmp_path, [share, row("train", FACES | {"simulate_ranks": 1}, 99.0)])
    assert headline.source.line == 2 and "share" not in headline.detail
    (tmp_path / "alone").mkdir()
    alone = _headline(tmp_path / "alone", [share])
    assert "one of 8 ranks, the others simulated" in alone.detail and alone.unit.endswith("a rank")
    assert float(alone.number.replace(",", "")) == pytest.approx(1024 / 8 / 0.010, rel=0.03)


@pytest.mark.parametrize(("percent", "said"), [(9.0, False), (31.0, True)])
def test_a_headline_says_that_neighbours_were_busy(tmp_path, percent, said):
    headline = _headline(tmp_path, [row("infer", INFER, 1.0, cpu_wait_percent=percent)])
    assert ("other programs were busy" in headline.basis) == said


def test_processes_of_other_threads_are_not_scaled_against_one_another_on_a_cpu(tmp_path):
    def on(n, threads, at):
        case = PHOTOGRAPHS | {
            "device": "cpu",
            "threads": threads,
            "world_size": n,
            "global_batch_size": 8 * n,
        }
        return row("train", case, 100.0, noise=0, measured_at=at)

    rows = [on(1, 2, "2026-01-01"), on(2, 2, "2026-01-02"), on(1, 1, "2026-01-03")]
    table = table_of(document_of(tmp_path, rows), "Weak scaling")
    speeds = column(table, "Samples/s")
    assert [cell.sources[0].line for cell in speeds] == [1, 2]
    (tmp_path / "others").mkdir()
    assert not [t for t in document_of(tmp_path / "others", rows[1:]).tables() if "scaling" in t.title]


def test_the_interval_of_a_scaling_is_that_of_resampled_medians(tmp_path):
    rows = [_on(1, 32, 100.0), _on(2, 64, 110.0)]
    noisy = [
        row("train", one.case, ms, noise=0.2, steps=60, seed=n)
        for n, (one, ms) in enumerate(zip(rows, (100, 110), strict=True))
    ]
    first, second = sources_of(tmp_path / "noisy.jsonl", noisy)
    found, expected = speedup(second, first), ratio_of_medians(first.samples_ms, second.samples_ms)
    assert found.low < found.value < found.high
    assert found.high / found.low == pytest.approx(expected.high / expected.low, rel=0.03)


def test_the_case_of_a_lost_row_is_what_tells_it_from_others(tmp_path):
    rows = [lost("infer", INFER | {"batch_size": batch}, "oom", "too large") for batch in (8, 16)]
    table = table_of(document_of(tmp_path, rows), "Left out and failed")
    cases = [cell.text for cell in column(table, "Case")]
    assert cases[0].endswith("batch 8") and cases[1].endswith("batch 16") and "image size" not in cases[0]
    assert any("image size 224" in remark for remark in table.remarks)
