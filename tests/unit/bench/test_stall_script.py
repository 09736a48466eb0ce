"""benchmarks/stall.py: what it makes of a run, and that `megaclass train` takes its words."""

import importlib.util
from pathlib import Path

import pytest

from megaclass.cli import parsing
from megaclass.config import load_recipe
from megaclass.errors import UserError
from megaclass.results.events import StartEvent, StepEvent
from megaclass.results.rows import Row, read_rows

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "stall.py"
specification = importlib.util.spec_from_file_location("stall_script", SCRIPT)
stall = importlib.util.module_from_spec(specification)
specification.loader.exec_module(stall)


def step(number, wait_percent, cause, samples_per_second):
    return StepEvent(step=number, epoch=0, samples=8 * number, loss=1.0, learning_rate=0.1, grad_norm=1.0,
                     samples_per_second=samples_per_second, wait_percent=wait_percent, skipped_steps=0, time_s=1.0,
                     wait_cause=cause)  # fmt: skip


def row(source="records", waits=(1.0, 3.0), speeds=(800.0, 1600.0)):
    start = StartEvent(config={"data": {"global_batch_size": 8}}, environment={"gpu": "G"}, world_size=1)
    steps = [step(10, 90.0, "disk", 1.0), step(20, 80.0, "disk", 2.0)]
    steps += [step(30 + 10 * i, wait, "copy" if i else None, speed)
              for i, (wait, speed) in enumerate(zip(waits, speeds, strict=True))]  # fmt: skip
    return stall.row_of_run({"workload": "faces", "source": source}, [start, *steps], warmup=20)


def test_the_warm_up_does_not_count_and_waits_have_causes():
    found = row()
    assert found.samples_ms == [10.0, 5.0] and found.environment == {"gpu": "G"}
    assert found.work == {"wait_percent": 2.0, "worst_wait_percent": 3.0, "wait_percent_disk": 0.0,
                          "wait_percent_decode": 0.0, "wait_percent_copy": 1.5}  # fmt: skip
    assert "waited 2.00% of the time" in stall.verdict(found) and "NOT below 2%" in stall.verdict(found)
    assert stall.verdict(row(waits=(1.0, 2.9))).endswith(": below 2%")


def test_a_step_is_compared_with_one_on_noise():
    noise = row("synthetic", (0.0, 0.0), (1000.0, 1600.0))
    assert stall.with_noise(row(), noise).work["slower_percent"] == pytest.approx(
        100 * (7.5 / 6.5 - 1), abs=1e-3
    )
    assert "below" not in stall.verdict(noise)
    failed = Row(
        implementation="megaclass", benchmark="stall", case=row().case, status="failed", reason="no GPU"
    )
    assert "slower_percent" not in stall.with_noise(row(), failed).work
    assert stall.verdict(failed) == "faces from records: failed: no GPU"


@pytest.mark.parametrize("case", stall.CASES)
def test_train_takes_the_words(case, tmp_path):
    options = stall.parsed(["--", "--model.width", "8"])
    verb, recipe, *words = stall.words_of_run(case, ["--data.source", "records"], tmp_path / "run", options)
    parser = parsing.make_parser("megaclass train", "")
    config, _ = parsing.configured(parser, words, lambda options, given: load_recipe(recipe))
    assert verb == "train" and config.schedule.steps == 120 and config.precision.compute == "bf16"
    assert config.evaluate.task == "none" and config.run.device == "cuda" and config.model.width == 8
    assert config.data.global_batch_size == {"faces": 512, "imagenet": 256}[case]
    assert config.model.name == {"faces": "iresnet50", "imagenet": "resnet50"}[case]


@pytest.mark.parametrize(
    ("words", "part"), [(["--case", "face"], "did you mean 'faces'"), (["--steps", "25"], "--steps")]
)
def test_what_it_cannot_measure(words, part):
    with pytest.raises(UserError, match=part):
        stall.parsed(words)


@pytest.mark.slow
def test_rows_of_real_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    words = [
        "--device",
        "cpu",
        "--precision",
        "fp32",
        "--case",
        "faces",
        "--batch-size",
        "4",
        "--steps",
        "20",
    ]
    words += ["--warmup", "10", "--images", "12", "--output", str(tmp_path / "rows.jsonl")]
    stall.main([*words, "--", "--model.name", "mobilefacenet", "--data.workers", "1"])
    noise, found = read_rows(tmp_path / "rows.jsonl")
    assert [(row.status, row.case["source"]) for row in (noise, found)] == [
        ("ok", "synthetic"),
        ("ok", "records"),
    ]
    assert noise.work["wait_percent"] == 0 <= found.work["wait_percent"] and len(found.samples_ms) == 1
    assert "slower_percent" in found.work and "faces from records" in capsys.readouterr().out
