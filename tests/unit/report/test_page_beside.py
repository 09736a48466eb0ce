"""Own numbers in the shape of published tables."""

import csv
from io import StringIO

import pytest

from made_rows import FACES, INFER, LAPTOP, PHOTOGRAPHS, SERVER, every_row, lost, row
from megaclass.report.page.table_csv import render_csv
from megaclass.results import published
from page_documents import column, document_of, notes_of, table_of

TRAINING = "Experiments on arcface_torch"
A100 = "Training performance: DGX A100"


def _lines(table, kind):
    return [line for line in table.lines if line.kind == kind]


def test_the_tables_have_the_published_columns_in_their_order(tmp_path):
    document = document_of(tmp_path, every_row(), against=published.names())
    tables = {table.title: table for table in document.tables()}
    for name in published.names():
        for table in published.load(name).tables:
            found = tables[table.title]
            assert [c.title for c in found.columns] == ["Machine", *(c.title for c in table.columns)]
            lines = [[cell.text for cell in line.cells[1:]] for line in _lines(found, "published")]
            assert lines == [[cell.text for cell in r.cells] for r in table.rows]


def test_no_cell_holds_numbers_of_two_machines(tmp_path):
    earlier = [row("infer", INFER, 5.0, environment=LAPTOP)]
    document = document_of(tmp_path, every_row(), against=published.names(), earlier=earlier)
    seen = set()
    for table in document.tables():
        for line in table.lines:
            for cell in line.cells:
                machines = {source.machine for source in cell.sources}
                assert len(machines) <= 1, (table.title, cell.text)
                seen |= machines
    assert len(seen) == 2


def test_a_line_of_the_machine_and_its_ratio_follow_the_published_line(tmp_path):
    document = document_of(tmp_path, [row("train", FACES, 200.0)], against=["arcface-a100"])
    table = table_of(document, TRAINING)
    place = next(place for place, line in enumerate(table.lines) if line.kind == "own")
    kinds = [line.kind for line in table.lines[place - 1 : place + 3]]
    assert kinds == ["published", "own", "ratio", "published"]
    assert table.lines[place - 1].cells[8].text == "~5400"
    own, ratio = table.lines[place].cells[8], table.lines[place + 1].cells[8]
    assert table.lines[place].cells[0].text == "8 x Testcard T1 80GB"
    assert own.value == pytest.approx(1024 / 0.200, rel=0.02)
    assert ratio.value == pytest.approx(own.value / 5400)
    low, high = (float(part) for part in ratio.text.split("(")[1].rstrip(")").split(" to "))
    assert low <= round(ratio.value, 2) <= high and low < high


@pytest.mark.parametrize("key", ["num_classes", "precision", "global_batch_size", "world_size", "backbone"])
def test_another_case_is_not_put_beside(tmp_path, key):
    case = FACES | {key: "other" if isinstance(FACES[key], str) else 3}
    table = table_of(document_of(tmp_path, [row("train", case, 200.0)], against=["arcface-a100"]), TRAINING)
    assert not _lines(table, "own") and "No row of this report" in table.remarks[0]


def test_another_benchmark_is_not_put_beside(tmp_path):
    table = table_of(document_of(tmp_path, [row("infer", FACES, 200.0)], against=["arcface-a100"]), TRAINING)
    assert not _lines(table, "own")


def test_a_row_that_was_scaled_down_is_marked_and_has_no_ratio(tmp_path):
    case = FACES | {"global_batch_size": 64, "precision": "bf16", "world_size": 1, "simulate_ranks": 8}
    scaled = row("train", case, 900.0, environment=LAPTOP, asked=FACES)
    table = table_of(document_of(tmp_path, [scaled], against=["arcface-a100"]), TRAINING)
    (own,) = _lines(table, "own")
    assert own.cells[8].text.endswith("*") and not _lines(table, "ratio")
    (note,) = notes_of(table, own.cells[8])
    assert "global batch 1,024 → 64" in note and "precision fp16 → bf16" in note
    assert "1 of 8 simulated ranks" in note and "devices" not in note


def test_one_device_that_does_the_job_of_eight_has_a_ratio_and_says_so(tmp_path):
    whole = row("train", FACES | {"world_size": 1}, 200.0, asked=FACES)
    table = table_of(document_of(tmp_path, [whole], against=["arcface-a100"]), TRAINING)
    (own,), (ratio,) = _lines(table, "own"), _lines(table, "ratio")
    assert not own.cells[8].text.endswith("*") and ratio.cells[8].value > 0
    assert "the whole job on 1 instead of 8 devices" in notes_of(table, own.cells[8])[0]


def test_a_row_with_fewer_steps_is_the_published_case_all_the_same(tmp_path):
    shorter = row("train", FACES | {"iterations": 5}, 200.0, asked=FACES | {"iterations": 500})
    table = table_of(document_of(tmp_path, [shorter], against=["arcface-a100"]), TRAINING)
    (own,) = _lines(table, "own")
    assert "*" not in own.cells[8].text and len(_lines(table, "ratio")) == 1
    assert "as published, but: steps an epoch 500 → 5" in notes_of(table, own.cells[8])


@pytest.mark.parametrize("status", ["oom", "failed", "timeout", "skipped"])
def test_a_case_without_a_number_shows_its_status_and_the_reason(tmp_path, status):
    document = document_of(tmp_path, [lost("train", FACES, status, "for a reason")], against=["arcface-a100"])
    table = table_of(document, TRAINING)
    (own,) = _lines(table, "own")
    for cell in own.cells[8:]:
        assert cell.text == status and notes_of(table, cell) == [f"{status}: for a reason"]
    assert not _lines(table, "ratio")


def test_a_published_failure_has_no_ratio(tmp_path):
    case = FACES | {"num_classes": 2_000_000, "global_batch_size": 512, "precision": "fp32"}
    table = table_of(
        document_of(tmp_path, [row("train", case, 300.0)], against=["arcface-rtx3080"]), "2 Million"
    )
    assert _lines(table, "own") and not _lines(table, "ratio")


@pytest.mark.parametrize(
    ("memory_mb", "text", "note"),
    [
        ({"driver": 10240.0, "reserved": 9000.0, "process": 1.0}, "10.00", ""),
        ({"driver": None, "reserved": 5120.0, "process": 1.0}, "5.000", "the driver told none"),
        ({"driver": None, "reserved": None, "allocated": None, "process": 2048.0}, "2.000", "on a CPU"),
    ],
)
def test_memory_is_the_drivers_else_reserved_else_of_the_process(tmp_path, memory_mb, text, note):
    rows = [row("train", FACES, 200.0, memory_mb=memory_mb)]
    table = table_of(document_of(tmp_path, rows, against=["arcface-a100"]), TRAINING)
    (own,) = _lines(table, "own")
    assert own.cells[9].text == text
    assert note in " ".join(notes_of(table, own.cells[9]))


def test_total_throughput_goes_before_that_of_the_median_step(tmp_path):
    rows = [row("train", FACES, 200.0, rates={"total": 4444.0, "compute": 5000.0, "data": None})]
    table = table_of(document_of(tmp_path, rows, against=["arcface-a100"]), TRAINING)
    assert _lines(table, "own")[0].cells[8].value == 4444.0


def test_ratio_columns_are_of_own_cells(tmp_path):
    rows = [
        row(
            "train",
            PHOTOGRAPHS | {"world_size": n, "global_batch_size": 512 * n, "precision": p},
            ms,
            noise=0,
        )
        for p, n, ms in (("fp16", 1, 100.0), ("fp16", 8, 125.0), ("tf32", 1, 300.0))
    ]
    table = table_of(document_of(tmp_path, rows, against=["resnet50-nvidia"]), A100)
    one, eight = _lines(table, "own")
    assert [cell.text for cell in one.cells[4:]] == ["3.00", "1.00", "1.00"]
    assert [cell.text for cell in eight.cells[4:]] == ["", "6.40", ""]
    assert eight.cells[5].sources[0].row.case["world_size"] == 8
    assert eight.cells[5].sources[1].row.case["world_size"] == 1


def test_a_speed_up_of_latencies_is_the_other_way_round(tmp_path):
    rows = [row("infer", INFER | {"precision": p}, ms, noise=0) for p, ms in (("fp16", 1.0), ("tf32", 1.9))]
    table = table_of(
        document_of(tmp_path, rows, against=["resnet50-nvidia"]), "Inference performance: DGX A100"
    )
    (own,) = _lines(table, "own")
    by_title = {c.title: cell.text for c, cell in zip(table.columns, own.cells, strict=True)}
    assert by_title["Throughput - speedup"] == by_title["99% latency - speedup"] == "1.90"
    assert by_title["50% latency (ms) - mixed precision"] == "1.000"


def test_devices_that_were_not_there_scale_nothing(tmp_path):
    cases = [PHOTOGRAPHS | {"world_size": n, "global_batch_size": 512 * n} for n in (1, 8)]
    here = {"world_size": 1, "global_batch_size": 8}
    rows = [row("train", case | here, 100.0, asked=case, environment=LAPTOP) for case in cases]
    table = table_of(document_of(tmp_path, rows, against=["resnet50-nvidia"]), A100)
    for line in _lines(table, "own"):
        cell = line.cells[5]
        assert cell.text == "–" and "no ratio" in notes_of(table, cell)[0]


def test_ways_to_run_have_a_line_each(tmp_path):
    rows = [row("infer", INFER | {"engine": engine}, ms) for engine, ms in (("eager", 2.0), ("onnx", 1.0))]
    table = table_of(
        document_of(tmp_path, rows, against=["resnet50-nvidia"]), "Inference performance: DGX A100"
    )
    names = [line.cells[0].text for line in _lines(table, "own")]
    assert names == ["8 x Testcard T1 80GB, eager", "8 x Testcard T1 80GB, onnx"]


def test_of_rows_measured_again_the_latest_stands_and_a_failure_gives_way(tmp_path):
    rows = [
        row("train", FACES, 100.0, measured_at="2026-02-02T00:00:00+00:00"),
        row("train", FACES, 200.0, measured_at="2026-01-01T00:00:00+00:00"),
        lost("train", FACES, "failed", "later"),
    ]
    table = table_of(document_of(tmp_path, rows, against=["arcface-a100"]), TRAINING)
    (own,) = _lines(table, "own")
    assert own.cells[8].sources[0].line == 1
    assert any("2 rows measured this case" in note for note in notes_of(table, own.cells[8]))


def test_seeds_give_the_published_stability_table(tmp_path):
    case = {"recipe": "resnet50_imagenet", "image_size": 224, "world_size": 8, "epochs_trained": 90}
    case |= {"precision": "fp16", "global_batch_size": 1536}
    rows = [
        row("stability", case | {"seed": seed}, 10.0, result={"top1": top1, "seconds": 7200.0})
        for seed, top1 in enumerate((0.76, 0.77, 0.78))
    ]
    table = table_of(document_of(tmp_path, rows, against=["resnet50-nvidia"]), "Training stability")
    (own,) = _lines(table, "own")
    by_title = {c.title: cell for c, cell in zip(table.columns, own.cells, strict=True)}
    assert by_title["mixed precision avg top1"].value == pytest.approx(77.0)
    assert by_title["mixed precision standard deviation"].value == pytest.approx(0.01)
    assert by_title["mixed precision minimum top1"].value == pytest.approx(76.0)
    assert by_title["mixed precision maximum top1"].value == pytest.approx(78.0)
    assert len(by_title["mixed precision avg top1"].sources) == 3


def test_the_published_machine_stands_in_its_line(tmp_path):
    rows = [row("train", PHOTOGRAPHS, 400.0, environment=SERVER)]
    table = table_of(
        document_of(tmp_path, rows, against=["resnet50-abci"]), "ComputeNode(A) vs ComputeNode(V)"
    )
    machines = [cell.text for cell in column(table, "Machine")]
    assert "published: ABCI ComputeNode(A), A100" in machines
    assert "published: ABCI ComputeNode(V), V100" in machines


def test_labels_of_the_published_case_stand_in_its_line_alone(tmp_path):
    scaled = row("train", FACES | {"global_batch_size": 16}, 900.0, environment=LAPTOP, asked=FACES)
    document = document_of(tmp_path, [scaled, row("train", FACES, 200.0)], against=["arcface-a100"])
    table = table_of(document, TRAINING)
    for line in (*_lines(table, "own"), *_lines(table, "ratio")):
        assert not any(cell.text for cell in line.cells[1:8])
    assert any("* scaled down" in remark for remark in table.remarks)
    lines = list(csv.DictReader(StringIO(render_csv(document, tmp_path))))
    (own,) = [one for one in lines if one["table"].startswith(TRAINING) and one["text"].endswith("*")]
    assert "Backbone IResNet-50" in own["labels"] and "Machine Testchip" in own["labels"]


def test_a_table_without_a_scaled_number_has_no_remark_on_them(tmp_path):
    table = table_of(document_of(tmp_path, [row("train", FACES, 200.0)], against=["arcface-a100"]), TRAINING)
    assert _lines(table, "own") and not table.remarks


def test_a_number_beside_a_published_one_says_that_neighbours_were_busy(tmp_path):
    rows = [row("train", FACES, 200.0, cpu_wait_percent=50.0)]
    table = table_of(document_of(tmp_path, rows, against=["arcface-a100"]), TRAINING)
    (own,) = _lines(table, "own")
    assert any("other programs were busy" in note for note in notes_of(table, own.cells[8]))


def test_a_small_ratio_keeps_the_digits_that_count(tmp_path):
    table = table_of(
        document_of(tmp_path, [row("train", FACES, 12_000.0)], against=["arcface-a100"]), TRAINING
    )
    (ratio,) = _lines(table, "ratio")
    assert ratio.cells[8].value < 0.1 and ratio.cells[8].text.startswith(f"{ratio.cells[8].value:.3g} (0.0")
