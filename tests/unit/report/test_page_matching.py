"""Which rows stand beside a published number: those of its case, whatever else a row records."""

import dataclasses

import pytest

from made_rows import row
from megaclass.bench.old_infer.cases import InferCase
from megaclass.bench.old_infer.cases import resolved as resolved_infer
from megaclass.bench.old_stability.cases import StabilityCase
from megaclass.bench.old_train.cases import TrainCase, resolved
from page_documents import column, document_of, notes_of, table_of

TRAIN = resolved(TrainCase(global_batch_size=512, precision="fp16", tf32=True, device="cuda"))
INFER = resolved_infer(InferCase(precision="fp16", tf32=True, device="cuda"))
FACES = resolved(
    TrainCase(recipe="faces_r50", num_classes=618_000, global_batch_size=1024, world_size=8, precision="fp32",
              sample_rate=1.0, device="cuda")
)  # fmt: skip
A100 = ("resnet50-nvidia", "Training performance: DGX A100")
INFER_A100 = ("resnet50-nvidia", "Inference performance: DGX A100")
STABILITY = ("resnet50-nvidia", "Training stability")
# What a published case leaves open: how it is run, how often, and what follows from what it names.
FREE = {
    *("engine", "storage", "device", "data", "seed", "iterations", "epochs", "warmup", "threads", "num_examples"),
    *("parallelism", "tf32", "embedding_dim"),
}  # fmt: skip


def _others(case):
    """The case with another value in one field after another."""
    for field in dataclasses.fields(case):
        value = getattr(case, field.name)
        if isinstance(value, dict):
            yield field.name, dataclasses.replace(case, **{field.name: {"augment.mixup": 0.2}})
        elif isinstance(value, bool):
            yield field.name, dataclasses.replace(case, **{field.name: not value})
        elif isinstance(value, int | float):
            yield (
                field.name,
                dataclasses.replace(case, **{field.name: value / 2 if value == 1.0 else value + 1}),
            )
        else:
            yield field.name, dataclasses.replace(case, **{field.name: "other"})


def _own(tmp_path, rows, where):
    name, title = where
    table = table_of(document_of(tmp_path, rows, against=[name]), title)
    return table, [line for line in table.lines if line.kind == "own"]


@pytest.mark.parametrize(
    ("case", "where"),
    [(TRAIN, A100), (INFER, INFER_A100), (FACES, ("arcface-a100", "Experiments on arcface_torch"))],
    ids=["train", "infer", "faces"],
)
def test_a_row_that_differs_in_anything_that_counts_has_no_ratio(tmp_path, case, where):
    assert len(_own(tmp_path, [row(case.benchmark, case.parameters(), 100.0)], where)[1]) == 1
    beside = set()
    for number, (field, other) in enumerate(_others(case)):
        folder = tmp_path / str(number)
        folder.mkdir()
        if _own(folder, [row(case.benchmark, other.parameters(), 100.0)], where)[1]:
            beside.add(field)
    named = {"embedding_dim"} if case is FACES else set()
    assert beside == (FREE - named) & {field.name for field in dataclasses.fields(case)}


def test_what_was_asked_for_counts_and_not_what_it_was_scaled_down_to(tmp_path):
    scaled = TRAIN.parameters() | {"global_batch_size": 8}
    other = TRAIN.parameters() | {"settings": {"data.accumulate": 2}}
    rows = [row("train", scaled, 100.0, asked=TRAIN.parameters()), row("train", scaled, 50.0, asked=other)]
    table, (own,) = _own(tmp_path, rows, A100)
    (cell,) = [cell for cell in own.cells[:3] if cell.sources]
    assert [source.line for source in cell.sources] == [1] and cell.text.endswith("*")
    assert any("not comparable with the published number" in remark for remark in table.remarks)


def _trained(seed, top1, *, at="2026-01-01", **fields):
    given = {
        "recipe": "resnet50_imagenet", "seed": seed, "metric": "top1", "epochs_trained": 50.0, "precision": "fp16",
        "image_size": 224, "global_batch_size": 1536, "data": "photographs", "world_size": 8, "device": "cuda",
    }  # fmt: skip
    case = StabilityCase(**given | fields)
    return row("stability", case.parameters(), 10.0, result={"top1": top1, "seconds": 60.0}, measured_at=at)


def test_seeds_of_other_trainings_are_not_pooled(tmp_path):
    rows = [
        _trained(0, 0.10),
        _trained(1, 0.76),
        _trained(2, 0.99, settings={"optim.lr": 9.0}),
        _trained(3, 0.98, data="other photographs"),
        _trained(4, 0.97, threads=5, at="2025-01-01"),
        _trained(0, 0.74, at="2026-02-01", settings={"data.workers": 4, "run.log_every": 1}),
    ]
    table, (own, other) = _own(tmp_path, rows, STABILITY)
    assert own.cells[0].text.endswith(", photographs") and other.cells[0].text.endswith(", other photographs")
    assert [source.line for source in other.cells[2].sources] == [4]
    mean = own.cells[2]
    assert [source.line for source in mean.sources] == [2, 6] and mean.value == pytest.approx(75.0)
    assert "of 2 seeds" in notes_of(table, mean)
    assert any(note.startswith("2 more rows of this case") for note in notes_of(table, mean))
    document = document_of(tmp_path, rows)
    seeds = [cell.text for cell in column(table_of(document, "Stability, all seeds"), "Seeds")]
    assert sorted(seeds) == ["1", "1", "1", "2"]


def test_a_setting_that_is_published_is_asked_for(tmp_path):
    longer = {"epochs_trained": 250.0}
    rows = [_trained(seed, 0.5, **longer) for seed in (0, 1)]
    assert not _own(tmp_path, rows, STABILITY)[1]
    rows = [_trained(0, 0.5, settings={"augment.mixup": 0.2}, **longer)]
    assert len(_own(tmp_path, rows, STABILITY)[1]) == 1


def test_a_report_that_states_no_batch_takes_no_row_of_another_suite(tmp_path):
    where = ("resnet50-abci", "ComputeNode(A) vs ComputeNode(V)")
    rows = [
        row("train", TRAIN.parameters() | {"global_batch_size": batch}, 100.0, suite=suite)
        for batch, suite in ((512, "resnet50-nvidia"), (256, "resnet50-abci"), (64, ""))
    ]
    own = _own(tmp_path, rows, where)[1]
    names = [line.cells[0].text for line in own]
    lines = ["8 x Testcard T1 80GB, batch 256 a device", "8 x Testcard T1 80GB, batch 64 a device"]
    assert names == [*lines, *lines]  # one device stands in the table for two machines
    assert {source.row.suite for line in own for cell in line.cells for source in cell.sources} == {
        "resnet50-abci",
        "",
    }
