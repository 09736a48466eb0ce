"""The published numbers: every row is there, cells say what the reports say, and cases use the words of rows."""

import hashlib
import json

import pytest

from megaclass.errors import UserError
from megaclass.results import published

# Of machines, titles and cells with their cases, all of which were compared with the documents.
DIGESTS = {
    "arcface-a10": "6b693e40aa67baca",
    "arcface-a100": "61fc605682652f6f",
    "arcface-a30": "42efb3d9a93af750",
    "arcface-rtx3080": "d83bbb5a2654214c",
    "arcface-rtx3090": "a2af8d25555ffe50",
    "partial-fc-v100": "d92eec76ba21d424",
    "resnet50-abci": "7892b072bcdaada7",
    "resnet50-ffcv": "e2302ac3a4bb842e",
    "resnet50-lambda": "a531efd089ab0d71",
    "resnet50-mlperf": "946f9fce571b56b0",
    "resnet50-nvidia": "8e8901357a2c781c",
    "resnet50-nvidia-pytorch": "20d95dc422c7f441",
}
REPORTS = {name: published.load(name) for name in DIGESTS}

IMAGENET = {"recipe": "resnet50_imagenet", "image_size": 224, "backbone": "resnet50", "num_classes": 1000}

# report, table, row, title of the column, value, unit, machine, some of the case
SPOTS = [
    ("arcface-a100", "training", 13, "Samples/sec", 1080, "samples/s", "a100",
     {"num_classes": 80_000_000, "precision": "fp16", "sample_rate": 0.1, "global_batch_size": 1024, "tf32": True}),
    ("arcface-rtx3080", "2-million-identities", 0, "Samples/sec", None, "samples/s", "rtx3080",
     {"num_classes": 2_000_000, "precision": "fp32", "sample_rate": 1.0, "global_batch_size": 512}),
    ("resnet50-ffcv", "resnet50", 5, "Time (mins)", 14.9, "min", "p4",
     {"recipe": "resnet50_imagenet", "any_settings": True, "world_size": 8, "epochs_trained": 16}),
    ("resnet50-nvidia-pytorch", "train-dgx1", 1, "Throughput - FP32 (img/s)", 2855, "samples/s", "dgx1",
     IMAGENET | {"world_size": 8, "global_batch_size": 8 * 112, "precision": "fp32"}),
    ("resnet50-nvidia", "infer-dgx1", 9, "90% latency (ms) - mixed precision", 92.26, "ms", "dgx1",
     IMAGENET | {"batch_size": 256, "precision": "fp16"}),
]  # fmt: skip

every_report = pytest.mark.parametrize("name", DIGESTS)


def test_the_reports_are_there():
    assert published.names() == [*DIGESTS] == [report.name for report in REPORTS.values()]
    with pytest.raises(UserError, match="did you mean 'arcface-a100'"):
        published.load("arcface-a1000")


@every_report
def test_every_cell_is_as_it_was_when_it_was_compared_with_the_document(name):
    found = [[machine.title, machine.spec] for machine in REPORTS[name].machines.values()]
    for table in REPORTS[name].tables:
        found.append([column.title for column in table.columns])
        found += [[[cell.text, cell.value, cell.case, cell.over] for cell in row] for row in table.rows]
    assert hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16] == DIGESTS[name]


@pytest.mark.parametrize(("name", "table", "row", "title", "value", "unit", "machine", "case"), SPOTS)
def test_a_cell_says_what_the_report_says(name, table, row, title, value, unit, machine, case):
    found = next(one for one in REPORTS[name].tables if one.name == table)
    (place,) = [i for i, column in enumerate(found.columns) if column.title == title]
    cell = found.rows[row][place]
    assert (cell.value, found.columns[place].unit, cell.machine) == (value, unit, machine)
    assert case.items() <= cell.case.items()


def test_the_grid_of_a_suite_is_its_distinct_cases():
    cases = REPORTS["resnet50-abci"].cases()
    assert len(cases) == 8  # AMP has three sizes, on two GPUs
    assert cases[0] == ("train", IMAGENET | {"world_size": 1, "precision": "tf32"})
    assert len(REPORTS["partial-fc-v100"].cases()) == 2 + 3 * 11  # tables of speed and of memory: the same cases
    cases = REPORTS["resnet50-nvidia"].cases()
    assert {benchmark for benchmark, _ in cases} == {"train", "infer"}
    # Only a ratio to this one is printed.
    assert ("infer", IMAGENET | {"batch_size": 512, "precision": "tf32"}) in cases
    assert all(cases.count(case) == 1 for case in cases)
