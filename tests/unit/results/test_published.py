"""The published numbers: every row is there, cells say what the reports say, and cases use the words of rows."""

import hashlib
import json
import re

import pytest

from megaclass.config import recipe_names
from megaclass.errors import UserError
from megaclass.results import published

# Of machines, titles and cells, all of which were compared with the documents.
DIGESTS = {
    "arcface-a10": "4d6a6d9d0db6bff8",
    "arcface-a100": "c52a914b051f9795",
    "arcface-a30": "f856213fd93ce540",
    "arcface-rtx3080": "480c25d44c871246",
    "arcface-rtx3090": "2ea731f7d0587ab8",
    "partial-fc-v100": "fc62a37988b4e26e",
    "resnet50-abci": "fc861217629f9ebc",
    "resnet50-ffcv": "0c373eb6aa486daa",
    "resnet50-lambda": "b9b6afa62d4f60cb",
    "resnet50-mlperf": "fe25dd782d6b12db",
    "resnet50-nvidia": "cd6da8b4859b1f0f",
    "resnet50-nvidia-pytorch": "ddc4f596adfc5428",
}
REPORTS = {name: published.load(name) for name in DIGESTS}

FACE = {
    "recipe": "faces_r50",
    "image_size": 112,
    "embedding_dim": 512,
    "world_size": 8,
    "backbone": "iresnet50",
}
TRAINED = {"recipe": "resnet50_imagenet", "image_size": 224}
IMAGENET = TRAINED | {"backbone": "resnet50", "num_classes": 1000}


def faces(classes, precision, rate, batch=1024, **more):
    return FACE | {
        "num_classes": classes, "precision": precision, "sample_rate": rate, "global_batch_size": batch, **more
    }  # fmt: skip


def on(devices, batch, precision, **more):
    return {"world_size": devices, "global_batch_size": devices * batch, "precision": precision, **more}


# report, table, row, title of the column, value, unit, machine, case
SPOTS = [
    ("arcface-a100", "training", 13, "Samples/sec", 1080, "samples/s", "a100",
     faces(80_000_000, "fp16", 0.1, tf32=True)),
    ("arcface-rtx3080", "2-million-identities", 0, "Samples/sec", None, "samples/s", "rtx3080",
     faces(2_000_000, "fp32", 1.0, 512)),
    ("arcface-rtx3090", "2-million-identities", 6, "Samples/sec", 5330, "samples/s", "rtx3090",
     faces(2_000_000, "fp16", 0.1, 2048, tf32=True)),
    ("partial-fc-v100", "test-speed", 3, "Partial FC 0.1 (samples/sec)", 5274.43, "samples/s", "v100",
     faces(3_000_000, "fp16", 0.1, parallelism="model")),
    ("partial-fc-v100", "memory", 5, "Data Parallel", None, "MB", "v100",
     faces(2_000_000, "fp16", 1.0, parallelism="data")),
    ("resnet50-abci", "tf32-fp32", 2, "Performance", 6102.28, "samples/s", "a100",
     IMAGENET | {"world_size": 8, "precision": "tf32"}),
    ("resnet50-ffcv", "resnet50", 5, "Time (mins)", 14.9, "min", "p4",
     {"recipe": "resnet50_imagenet", "any_settings": True, "world_size": 8, "epochs_trained": 16}),
    ("resnet50-lambda", "fp16", 23, "resnet50", 11439, "samples/s", "a100-80gb-sxm4", IMAGENET | on(8, 1280, "fp16")),
    ("resnet50-mlperf", "closed", 7, "Minutes", 0.509, "min", "h100-512",
     {"recipe": "resnet50_imagenet", "any_settings": True, "world_size": 512}),
    ("resnet50-nvidia-pytorch", "train-dgx1", 1, "Throughput - FP32 (img/s)", 2855, "samples/s", "dgx1",
     IMAGENET | on(8, 112, "fp32")),
    ("resnet50-nvidia", "stability-dgx1", 2, "FP32 maximum top1", 78.598, "%", "dgx1",
     TRAINED | on(8, 96, "fp32", epochs_trained=250, settings={"augment.mixup": 0.2})),
    ("resnet50-nvidia", "train-dgx2", 4, "Weak scaling - FP32", 15.19, "", "dgx2", IMAGENET | on(16, 128, "fp32")),
    ("resnet50-nvidia", "infer-dgx1", 9, "90% latency (ms) - mixed precision", 92.26, "ms", "dgx1",
     IMAGENET | {"batch_size": 256, "precision": "fp16"}),
]  # fmt: skip

TRAINING = {
    "recipe", "backbone", "num_classes", "embedding_dim", "image_size", "global_batch_size", "world_size", "precision",
    "tf32", "sample_rate", "parallelism",
}  # fmt: skip
WORDS = {
    "train": TRAINING,
    "infer": {"recipe", "backbone", "num_classes", "image_size", "batch_size", "precision", "tf32", "engine"},
    "stability": TRAINING | {"epochs_trained", "settings", "any_settings"},
}
UNITS = {
    **{"samples_per_second": {"samples/s"}, "gpu_memory_mb": {"GB", "MB"}},
    **{"seconds": {"h"}, "time_to_train_s": {"min"}},
    **{f"latency_{which}_ms": {"ms"} for which in ("mean", "p50", "p90", "p95", "p99")},
    **{"top1": {"%", ""}, "top5": {""}, "top1_min": {"%"}, "top1_max": {"%"}, "top1_std": {""}},
}

every_report = pytest.mark.parametrize("name", DIGESTS)


def table_of(name, table):
    return next(t for t in REPORTS[name].tables if t.name == table)


def published_cells(name):
    """(table, column, row, cell) of every cell that is no label."""
    for table in REPORTS[name].tables:
        for row in table.rows:
            for column, cell in zip(table.columns, row, strict=True):
                if column.kind != "label":
                    yield table, column, row, cell


def frozen(measure, case):
    return measure, tuple(sorted((key, str(value)) for key, value in case.items()))


def test_the_reports_are_there():
    assert published.names() == [*DIGESTS] == [report.name for report in REPORTS.values()]
    with pytest.raises(UserError, match="did you mean 'arcface-a100'"):
        published.load("arcface-a1000")


@every_report
def test_every_cell_is_as_it_was_when_it_was_compared_with_the_document(name):
    found = [[machine.title, machine.spec] for machine in REPORTS[name].machines.values()]
    for table in REPORTS[name].tables:
        found.append([column.title for column in table.columns])
        found += [[cell.text for cell in row] for row in table.rows]
    assert hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16] == DIGESTS[name]


@pytest.mark.parametrize(("name", "table", "row", "title", "value", "unit", "machine", "case"), SPOTS)
def test_a_cell_says_what_the_report_says(name, table, row, title, value, unit, machine, case):
    columns = table_of(name, table).columns
    (place,) = [i for i, column in enumerate(columns) if column.title == title]
    cell = table_of(name, table).rows[row][place]
    assert (cell.value, columns[place].unit, cell.machine) == (value, unit, machine)
    assert cell.case == case


@every_report
def test_cells_use_the_words_of_rows_and_are_numbers_or_say_that_there_is_none(name):
    report = REPORTS[name]
    for table in report.tables:
        assert "label" in {column.kind for column in table.columns}, "nothing says which line is which"
        for row in table.rows:
            assert len(row) == len(table.columns) and len({cell.machine for cell in row}) == 1
            labels = [cell for cell, c in zip(row, table.columns, strict=True) if c.kind == "label"]
            assert all(cell.case == {} and cell.value is None for cell in labels)
        # No two lines are of one case, unless it was watched for a while.
        distinct = {(row[0].machine, str([cell.case for cell in row])) for row in table.rows}
        assert len(distinct) == (1 if table.name.startswith("test-") else len(table.rows))
    for table, column, _, cell in published_cells(name):
        for case in (cell.case, cell.case | (cell.over or {})):
            assert case.keys() <= WORDS[table.benchmark], (table.name, column.title)
            free = "fp32" if case.get("any_settings") else ""
            assert case.get("precision", free) in ("fp32", "tf32", "fp16", "bf16")
            assert case["recipe"] in recipe_names()
            assert case.get("parallelism", "model") in ("model", "data")
            assert 0 < case.get("sample_rate", 1.0) <= 1
        assert column.kind in ("value", "ratio") and (column.kind == "ratio") == (cell.over is not None)
        assert column.unit in (UNITS[column.measure] if column.kind == "value" else {""})
        if cell.text in ("Fail", "-"):
            assert cell.value is None
        else:
            assert re.fullmatch(r"~?\d+(\.\d+)?", cell.text)
            assert cell.value == float(cell.text.lstrip("~")) > 0


def test_published_ratios_are_those_of_the_published_numbers():
    """As printed they are rounded or cut, by less than one in a hundred; one of them is another number."""
    report, checked, odd = REPORTS["resnet50-nvidia"], 0, []
    for table in report.tables:
        cells = [entry[1:] for entry in published_cells(report.name) if entry[0] is table]
        known = {frozen(c.measure, cell.case): cell.value for c, _, cell in cells if c.kind == "value"}
        for column, row, cell in cells:
            if column.kind == "ratio" and frozen(column.measure, cell.case | cell.over) in known:
                value = known[frozen(column.measure, cell.case)]
                other = known[frozen(column.measure, cell.case | cell.over)]
                ratio = other / value if column.inverse else value / other
                checked += 1
                if cell.value != pytest.approx(ratio, rel=0.01):
                    odd.append((table.name, column.title, row[0].text, cell.text))
    assert checked == 5 + 3 * (3 + 4 + 5)
    assert odd == [("train-a100", "Throughput speedup (TF32 - mixed precision)", "1", "2.18")]


def test_the_grid_of_a_suite_is_its_distinct_cases():
    cases = REPORTS["resnet50-abci"].cases()
    assert len(cases) == 8  # AMP has three sizes, on two GPUs
    assert cases[0] == ("train", IMAGENET | {"world_size": 1, "precision": "tf32"})
    assert (
        len(REPORTS["partial-fc-v100"].cases()) == 2 + 3 * 11
    )  # tables of speed and of memory: the same cases
    cases = REPORTS["resnet50-nvidia"].cases()
    assert {benchmark for benchmark, _ in cases} == {"train", "infer"}
    # Only a ratio to this one is printed.
    assert ("infer", IMAGENET | {"batch_size": 512, "precision": "tf32"}) in cases
    assert all(cases.count(case) == 1 for case in cases)
