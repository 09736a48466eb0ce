"""`megaclass report RUN --mllog`: a run as MLPerf Training's log."""

import json
from dataclasses import replace

import pytest

from megaclass.cli import main
from megaclass.config import load_recipe, to_toml
from megaclass.errors import UserError
from megaclass.report.mlperf import mllog
from megaclass.results import events
from megaclass.results.events import EndEvent, EvaluationEvent, EventWriter, StartEvent

CARDS = {"gpu": "Testcard", "gpu_count": 8}
START = StartEvent(config={}, environment=CARDS, world_size=8, epoch_samples=1_281_167, init_s=30.0)
LAST = EvaluationEvent(step=2502, name="val", metrics={"top1": 0.76, "images": 50_000}, seconds=10.0)
END = EndEvent(reason="finished", steps=2502, seconds=1.0)
# Resumed, though it had ended.
RUN = [START, replace(LAST, step=1251, metrics={"top1": 0.5}), LAST, END, START, END]


def write_run(folder, monkeypatch, run=RUN):
    """A run of two epochs, one event a minute."""
    clock = iter(range(10_000, 100_000, 60))
    monkeypatch.setattr(events.time, "time", lambda: next(clock))
    (folder / "config.toml").write_text(to_toml(load_recipe("resnet50_imagenet")))
    with EventWriter(folder / "events.jsonl") as writer:
        for event in run:
            writer.write(event)
    return folder


def parsed(lines):
    return [json.loads(line.removeprefix(":::MLLOG ")) for line in lines]


def test_a_run_that_came_to_the_target_is_a_result_of_mlperfs(tmp_path, monkeypatch):
    lines, lacks = mllog(write_run(tmp_path, monkeypatch), ["org=Lab", "status=research"])
    assert lacks == []
    found = parsed(lines)
    values = {record["key"]: record["value"] for record in found}
    wanted = {
        "submission_benchmark": "resnet", "submission_division": "open", "submission_org": "Lab",
        "submission_platform": "8 x Testcard", "cache_clear": False, "global_batch_size": 1024, "model_bn_span": 128,
        "sgd_opt_base_learning_rate": 1.024, "opt_learning_rate_warmup_epochs": 5.0, "train_samples": 1_281_167,
        "eval_samples": 50_000, "eval_accuracy": 0.76,
    }  # fmt: skip
    assert {key: values[key] for key in wanted} == wanted
    spans = [r for r in found if r["event_type"] != "POINT_IN_TIME"]
    assert [(r["key"], r["time_ms"] - 10_000_000, *r["metadata"].values()) for r in spans] == [
        ("init_start", -30_000), ("init_stop", 0), ("run_start", 0),
        ("block_start", 0, 1, 1), ("block_stop", 50_000, 1), ("eval_start", 50_000, 1), ("eval_stop", 60_000, 1),
        ("block_start", 60_000, 2, 1), ("block_stop", 110_000, 2), ("eval_start", 110_000, 2),
        ("eval_stop", 120_000, 2),
        ("run_stop", 180_000, "success"),
    ]  # fmt: skip


def test_mlcommons_own_checker_finds_nothing(tmp_path, monkeypatch):
    checker = pytest.importorskip("mlperf_logging.compliance_checker.mlp_compliance")
    log = tmp_path / "run.log"
    words = ["--mllog", str(log), "--submission", "org=Lab", "status=research"]
    assert main(["report", str(write_run(tmp_path, monkeypatch)), *words]) == 0
    made = checker.make_checker("training", "4.0.0", quiet=False, werror=True)
    assert checker.main(str(log), "training_4.0.0/common.yaml", made)[0]
    assert main(["report", str(tmp_path), *words]) == 2  # what is there stays


def test_what_is_not_known_is_left_out_and_told(tmp_path, monkeypatch):
    low = replace(LAST, metrics={"top1": 0.4, "images": 3925})
    lines, lacks = mllog(write_run(tmp_path, monkeypatch, [replace(START, epoch_samples=9469), low]), [])
    assert not {r["key"] for r in parsed(lines)} & {"submission_org", "submission_status", "run_stop"}
    told = ["train_samples", "eval_samples", "top 1", "submission_org", "submission_status"]
    assert [lack.split(" is ")[0] for lack in lacks] == told


@pytest.mark.parametrize(
    ("run", "told"),
    [([], "no run directory"), ([START], "no evaluation of a classification"), (RUN, "noted no times")],
)
def test_what_is_no_such_run_is_refused(tmp_path, monkeypatch, run, told):
    path = write_run(tmp_path, monkeypatch, run) / "events.jsonl"
    if run == RUN:  # as earlier versions wrote it
        records = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(r | {"at": None}) + "\n" for r in records))
    with pytest.raises(UserError, match=told):
        mllog(tmp_path, [])
    with pytest.raises(UserError, match="KEY=VALUE"):
        mllog(tmp_path, ["org"])
