"""Own numbers in the shape of published tables: which rows stand beside which number, and what is said of them."""

import csv
from io import StringIO

import pytest

from made_rows import (
    FACES,
    INFER,
    LAPTOP,
    PHOTOGRAPHS,
    document_of,
    every_row,
    lost,
    row,
    table_of,
    tables_of,
    texts,
)
from megaclass.report.page import render_csv
from megaclass.results import published

ARCFACE = ("arcface-a100", "Experiments on arcface_torch")
TRAIN_A100 = ("resnet50-nvidia", "Training performance: DGX A100")
INFER_A100 = ("resnet50-nvidia", "Inference performance: DGX A100")
STABILITY = ("resnet50-nvidia", "Training stability")
SPEED, MEMORY = 8, 9  # columns of arcface_torch's table


def _lines(table, kind):
    return [line for line in table.lines if line.kind == kind]


def _beside(tmp_path, rows, where=ARCFACE):
    """The table, its own lines, and the ratios."""
    table = table_of(document_of(tmp_path, rows, against=[where[0]]), where[1])
    return table, _lines(table, "own"), _lines(table, "ratio")


def test_the_tables_are_the_published_ones_and_no_cell_holds_numbers_of_two_machines(tmp_path):
    document = document_of(tmp_path, every_row(), against=published.names())
    tables = {table.title: table for table in tables_of(document)}
    for name in published.names():
        for table in published.load(name).tables:
            found = tables[table.title]
            assert [c.title for c in found.columns] == ["Machine", *(c.title for c in table.columns)]
            lines = [texts(line.cells[1:]) for line in _lines(found, "published")]
            assert lines == [texts(row) for row in table.rows]
    cells = [cell for table in tables_of(document) for line in table.lines for cell in line.cells]
    machines = [{source.machine for source in cell.sources} for cell in cells]
    assert max(map(len, machines)) == 1 and len(set.union(*machines)) == 2


def test_a_line_of_the_machine_and_its_ratio_follow_the_published_line(tmp_path):
    table, (own,), (ratio,) = _beside(tmp_path, [row("train", FACES, 200.0)])
    place = table.lines.index(own)
    kinds = [line.kind for line in table.lines[place - 1 : place + 3]]
    assert kinds == ["published", "own", "ratio", "published"]
    assert table.lines[place - 1].cells[SPEED].text == "~5400" and not table.remarks
    assert texts(own.cells[:SPEED]) == ["8 x Testcard T1 80GB", *[""] * 7]
    speed, part = own.cells[SPEED], ratio.cells[SPEED]
    assert speed.value == pytest.approx(1024 / 0.200, rel=0.02)
    assert part.value == pytest.approx(speed.value / 5400)
    low, high = (float(end) for end in part.text.split("(")[1].rstrip(")").split(" to "))
    assert low <= round(part.value, 2) <= high and low < high


def test_a_published_failure_has_no_ratio(tmp_path):
    case = FACES | {"num_classes": 2_000_000, "global_batch_size": 512, "precision": "fp32"}
    _, own, ratios = _beside(tmp_path, [row("train", case, 300.0)], ("arcface-rtx3080", "2 Million"))
    assert own and not ratios


# -- which rows -----------------------------------------------------------------------------------------

TRAIN = PHOTOGRAPHS | {"simulate_ranks": 1, "sample_rate": 1.0, "settings": {}, "iterations": 5}
INFERENCE = INFER | {"settings": {}, "iterations": 5, "sample_rate": 1.0}
# What a published case leaves open: how it is run, how often, and what follows from what it names.
FREE = {"engine", "storage", "device", "data", "seed", "iterations", "threads", "parallelism", "tf32"}


def _other(value):
    if isinstance(value, dict):
        return {"augment.mixup": 0.2}
    if isinstance(value, bool):
        return not value
    return "other" if isinstance(value, str) else value / 2 if value == 1.0 else value + 1


@pytest.mark.parametrize(
    ("benchmark", "case", "where"),
    [
        ("train", TRAIN, TRAIN_A100),
        ("infer", INFERENCE, INFER_A100),
        ("train", FACES | {"settings": {}}, ARCFACE),
    ],
    ids=["train", "infer", "faces"],
)
def test_a_row_that_differs_in_anything_that_counts_is_not_put_beside(tmp_path, benchmark, case, where):
    beside = set()
    for key in ("", *case):
        folder = tmp_path / f"other {key}"
        folder.mkdir()
        other = case | {key: _other(case[key])} if key else case
        if _beside(folder, [row(benchmark, other, 100.0)], where)[1]:
            beside.add(key)
    assert beside == {"", *case} & {"", *FREE}  # other tf32 is another line of arcface_torch's table
    swapped = "infer" if benchmark == "train" else "train"
    assert not _beside(tmp_path, [row(swapped, case, 100.0)], where)[1]


def test_of_rows_measured_again_the_latest_stands_and_a_failure_gives_way(tmp_path):
    rows = [
        row("train", FACES, 100.0, measured_at="2026-02-02T00:00:00+00:00"),
        row("train", FACES, 200.0, measured_at="2026-01-01T00:00:00+00:00"),
        lost("train", FACES, "failed", "later"),
    ]
    _, (own,), _ = _beside(tmp_path, rows)
    assert own.cells[SPEED].sources[0].line == 1
    assert any("1 more of the case" in note for note in own.cells[SPEED].notes)


def test_ways_to_run_have_a_line_each_and_a_table_without_any_says_so(tmp_path):
    rows = [row("infer", INFER | {"engine": engine}, ms) for engine, ms in (("eager", 2.0), ("onnx", 1.0))]
    names = [line.cells[0].text for line in _beside(tmp_path, rows, INFER_A100)[1]]
    assert names == ["8 x Testcard T1 80GB, eager", "8 x Testcard T1 80GB, onnx"]
    table, own, _ = _beside(tmp_path, rows[:1])
    assert not own and "No row of this report" in table.remarks[0]


def test_a_report_that_states_no_batch_takes_no_row_of_another_suite(tmp_path):
    where = ("resnet50-abci", "ComputeNode(A) vs ComputeNode(V)")
    rows = [
        row("train", PHOTOGRAPHS | {"global_batch_size": batch}, 100.0, suite=suite)
        for batch, suite in ((512, "resnet50-nvidia"), (256, "resnet50-abci"), (64, ""))
    ]
    table, own, _ = _beside(tmp_path, rows, where)
    # One device stands there for two machines.
    told = [f"8 x Testcard T1 80GB, batch {n} a device" for _ in "AV" for n in (256, 64)]
    assert [line.cells[0].text for line in own] == told
    names = {line.cells[0].text for line in _lines(table, "published")}
    assert names == {f"published: ABCI ComputeNode({n}), {n}100" for n in "AV"}


# -- scaled down, failed, disturbed ---------------------------------------------------------------------


def test_a_row_that_was_scaled_down_is_marked_labelled_by_what_ran_and_has_no_ratio(tmp_path):
    case = FACES | {"global_batch_size": 64, "precision": "bf16", "world_size": 1, "simulate_ranks": 8}
    scaled = row("train", case, 900.0, environment=LAPTOP, asked=FACES)
    table, (own,), ratios = _beside(tmp_path, [scaled])
    assert not ratios and own.cells[SPEED].text.endswith("*") and "not comparable" in table.remarks[0]
    assert texts(own.cells[1:SPEED]) == ["", "", "", "64", "", "", ""]
    (note,) = own.cells[SPEED].notes
    for part in ("1,024 → 64", "precision fp16 → bf16", "1 of 8 simulated ranks"):
        assert part in note
    (tmp_path / "again").mkdir()
    text = render_csv(document_of(tmp_path / "again", [scaled], against=[ARCFACE[0]]), tmp_path)
    (line,) = [
        one for one in csv.DictReader(StringIO(text))
        if one["table"] == ARCFACE[1] and one["column"] == "Samples/sec" and one["kind"] == "own"
    ]  # fmt: skip
    assert "Backbone IResNet-50; Batch-size 64" in line["labels"] and "Machine Testchip" in line["labels"]


def test_what_was_asked_for_counts_and_not_what_it_was_scaled_down_to(tmp_path):
    other = FACES | {"settings": {"data.accumulate": 2}}
    rows = [row("train", FACES | {"global_batch_size": 8}, ms, asked=a) for a, ms in ((FACES, 1.0), (other, 2.0))]
    _, (own,), _ = _beside(tmp_path, rows)
    assert [source.line for source in own.cells[SPEED].sources] == [1]


@pytest.mark.parametrize(
    ("changed", "told"),
    [({"world_size": 1}, "the whole job on 1 instead of 8 devices"), ({"iterations": 5}, "500 → 5")],
)
def test_fewer_devices_or_steps_are_the_published_case_and_told(tmp_path, changed, told):
    asked = FACES | {key: 500 for key in changed if key == "iterations"}
    _, (own,), (ratio,) = _beside(tmp_path, [row("train", FACES | changed, 200.0, asked=asked)])
    assert "*" not in own.cells[SPEED].text and ratio.cells[SPEED].value > 0
    assert own.cells[SPEED].notes[0].startswith("as published, but: ") and told in own.cells[SPEED].notes[0]


def test_a_case_without_a_number_shows_its_status_and_the_reason(tmp_path):
    _, (own,), ratios = _beside(tmp_path, [lost("train", FACES, "oom", "for a reason")])
    assert {(cell.text, cell.notes) for cell in own.cells[SPEED:]} == {("oom", ("oom: for a reason",))}
    assert not ratios


# -- which numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("memory_mb", "text", "note"),
    [
        ({"driver": 10240.0, "reserved": 9000.0, "process": 1.0}, "10.00", ""),
        ({"driver": None, "reserved": 5120.0, "process": 1.0}, "5.000", "the driver told none"),
        ({"driver": None, "reserved": None, "allocated": None, "process": 2048.0}, "2.000", "on a CPU"),
    ],
)
def test_memory_is_the_drivers_else_reserved_else_of_the_process(tmp_path, memory_mb, text, note):
    _, (own,), _ = _beside(tmp_path, [row("train", FACES, 200.0, memory_mb=memory_mb)])
    assert own.cells[MEMORY].text == text and note in " ".join(own.cells[MEMORY].notes)


def test_total_throughput_goes_before_that_of_the_median_step_and_busy_neighbours_are_told(tmp_path):
    rates = {"total": 4444.0, "compute": 5000.0, "data": None}
    _, (own,), _ = _beside(tmp_path, [row("train", FACES, 200.0, rates=rates, cpu_wait_percent=50.0)])
    assert own.cells[SPEED].value == 4444.0
    assert any("other programs were busy" in note for note in own.cells[SPEED].notes)


def test_ratio_columns_are_of_own_cells(tmp_path):
    cases = (("fp16", 1, 100.0), ("fp16", 8, 125.0), ("tf32", 1, 300.0))
    sizes = {n: {"world_size": n, "global_batch_size": 512 * n} for n in (1, 8)}
    rows = [row("train", PHOTOGRAPHS | sizes[n] | {"precision": p}, ms, noise=0) for p, n, ms in cases]
    _, (one, eight), _ = _beside(tmp_path, rows, TRAIN_A100)
    assert texts(one.cells[4:]) == ["3.00", "1.00", "1.00"] and texts(eight.cells[4:]) == ["", "6.40", ""]
    assert [source.row.case["world_size"] for source in eight.cells[5].sources] == [8, 1]


def test_a_speed_up_of_latencies_is_the_other_way_round(tmp_path):
    rows = [row("infer", INFER | {"precision": p}, ms, noise=0) for p, ms in (("fp16", 1.0), ("tf32", 1.9))]
    table, (own,), _ = _beside(tmp_path, rows, INFER_A100)
    by_title = dict(zip((column.title for column in table.columns), texts(own.cells), strict=True))
    assert by_title["Throughput - speedup"] == by_title["99% latency - speedup"] == "1.90"
    assert by_title["50% latency (ms) - mixed precision"] == "1.000"


def test_devices_that_were_not_there_scale_nothing(tmp_path):
    cases = [PHOTOGRAPHS | {"world_size": n, "global_batch_size": 512 * n} for n in (1, 8)]
    here = {"world_size": 1, "global_batch_size": 8}
    rows = [row("train", case | here, 100.0, asked=case, environment=LAPTOP) for case in cases]
    for line in _beside(tmp_path, rows, TRAIN_A100)[1]:
        assert line.cells[5].text == "–" and "no ratio" in line.cells[5].notes[0]


def _trained(seed, top1, *, at="2026-01-01", **fields):
    case = {
        "recipe": "resnet50_imagenet", "seed": seed, "metric": "top1", "epochs_trained": 50.0, "precision": "fp16",
        "image_size": 224, "global_batch_size": 1536, "data": "photographs", "world_size": 8, "device": "cuda",
        "settings": {},
    }  # fmt: skip
    return row("stability", case | fields, 10.0, result={"top1": top1, "seconds": 7200.0}, measured_at=at)


def test_seeds_give_the_published_stability_table(tmp_path):
    rows = [_trained(seed, top1, epochs_trained=90) for seed, top1 in enumerate((0.76, 0.77, 0.78))]
    table, (own,), _ = _beside(tmp_path, rows, STABILITY)
    values = {column.title: cell.value for column, cell in zip(table.columns, own.cells, strict=True)}
    names = ("avg top1", "standard deviation", "minimum top1", "maximum top1")
    found = [values[f"mixed precision {name}"] for name in names]
    assert found == pytest.approx([77.0, 0.01, 76.0, 78.0]) and len(own.cells[2].sources) == 3


def test_seeds_of_other_trainings_are_not_pooled(tmp_path):
    rows = [
        _trained(0, 0.10),
        _trained(1, 0.76),
        _trained(2, 0.99, settings={"optim.lr": 9.0}),
        _trained(3, 0.98, data="other photographs"),
        _trained(4, 0.97, threads=5, at="2025-01-01"),
        _trained(0, 0.74, at="2026-02-01", settings={"data.workers": 4, "run.log_every": 1}),
    ]
    _, (own, other), _ = _beside(tmp_path, rows, STABILITY)
    assert own.cells[0].text.endswith(", photographs") and other.cells[0].text.endswith(", other photographs")
    assert [source.line for source in other.cells[2].sources] == [4]
    assert [source.line for source in own.cells[2].sources] == [2, 6]
    assert own.cells[2].value == pytest.approx(75.0) and "of 2 seeds" in own.cells[2].notes
    assert any(note.startswith("2 more of the case") for note in own.cells[2].notes)


def test_a_setting_that_is_published_is_asked_for(tmp_path):
    for place, (settings, lines) in enumerate((({}, 0), ({"augment.mixup": 0.2}, 1))):
        (tmp_path / str(place)).mkdir()
        rows = [_trained(seed, 0.5, epochs_trained=250.0, settings=settings) for seed in (0, 1)]
        assert len(_beside(tmp_path / str(place), rows, STABILITY)[1]) == lines


def test_a_time_to_an_accuracy_stands_beside_any_recipe_of_its_model(tmp_path):
    settings = ({"optim.lr": 0.5, "data.start_size": 160}, {"model.name": "resnet18"})
    rows = [_trained(seed, 0.7, epochs_trained=16.0, settings=s) for seed, s in enumerate(settings)]
    _, (own,), _ = _beside(tmp_path, rows, ("resnet50-ffcv", "ffcv: ResNet-50"))
    assert [source.line for source in own.cells[1].sources] == [1]
