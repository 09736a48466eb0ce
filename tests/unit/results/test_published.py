"""The published numbers: every row is there, cells say what the reports say, and cases use the words of rows."""

import hashlib
import json

import pytest

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


def test_the_reports_are_there():
    assert published.names() == [*DIGESTS] == [report.name for report in REPORTS.values()]


@pytest.mark.parametrize("name", DIGESTS)
def test_every_cell_is_as_it_was_when_it_was_compared_with_the_document(name):
    found = [[machine.title, machine.spec] for machine in REPORTS[name].machines.values()]
    for table in REPORTS[name].tables:
        found.append([column.title for column in table.columns])
        found += [[[cell.text, cell.value, cell.case, cell.over] for cell in row] for row in table.rows]
    assert hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16] == DIGESTS[name]


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
