"""Numbers that also go to TensorBoard, Weights & Biases and MLflow, train.log, and what a resumed run has otherwise."""

import errno
import json
import os
import re
import struct
import sys

import pytest

import tiny
from megaclass import checkpoint
from megaclass.cli import main
from megaclass.config import from_mapping
from megaclass.config.sections import TRACKERS
from megaclass.errors import UserError
from megaclass.train import track


def trained(folder, tracker, *words):
    """Steps 1 to 3; again, with --resume and --schedule.steps, those after them."""
    recipe = tiny.recipe(folder, run={"track": tracker}, schedule={"steps": 3})
    assert main(["train", recipe, *words]) == 0
    return folder / "run"


RESUMED = ("--resume", "--schedule.steps", "5")


def read_tensorboard(folder):
    loading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = loading.EventAccumulator(str(folder / "run" / "tensorboard"))
    events.Reload()
    return [(found.step, found.value) for found in events.Scalars("train/loss")]


def read_wandb(folder):
    """Of its files, each a LevelDB log of one block: records behind a checksum, a length and a kind."""
    from wandb.proto.wandb_internal_pb2 import Record

    found = []
    for path in sorted((folder / "run" / "wandb").glob("offline-run-*/*.wandb")):
        assert path.stem == f"run-{(folder / 'run' / 'wandb.id').read_text()}"
        content, at = path.read_bytes(), 7
        while at + 7 <= len(content):
            length = struct.unpack_from("<H", content, at + 4)[0]
            record = Record.FromString(content[at + 7 : at + 7 + length])
            items = {(item.key or item.nested_key[0]): item.value_json for item in record.history.item}
            if "train/loss" in items:
                found.append((int(items["step"]), float(items["train/loss"])))
            at += 7 + length
    return found


def read_mlflow(folder):
    from mlflow import MlflowClient

    client, name = MlflowClient(), (folder / "run" / "mlflow.id").read_text()
    run = client.get_run(name)
    assert run.data.params["optim.lr"] == "0.01" and run.info.status == "FINISHED"
    return [(metric.step, metric.value) for metric in client.get_metric_history(name, "train/loss")]


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("tensorboard", read_tensorboard),
        pytest.param("wandb", read_wandb, marks=pytest.mark.process),
        ("mlflow", read_mlflow),
    ],
)
def test_a_resumed_run_goes_on_in_the_same_one(tmp_path, monkeypatch, name, read):
    pytest.importorskip(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path}/mlflow")
    trained(tmp_path, name)
    run = trained(tmp_path, name, *RESUMED)
    lines = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    expected = [(line["step"], line["loss"]) for line in lines if line["event"] == "step"]
    found = read(tmp_path)
    assert [step for step, _ in found] == [1, 2, 3, 4, 5]
    assert found == [(step, pytest.approx(loss, rel=1e-5)) for step, loss in expected]


class Refusing:
    """Says nothing until the call that it refuses."""

    def __init__(self, *_):
        self._asked("__init__")

    def __getattr__(self, name):
        return lambda *_: self._asked(name)

    def _asked(self, name):
        if name == self.refused:
            raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("refused", ["__init__", "add", "close"])
def test_one_that_fails_is_a_warning_and_the_others_go_on(tmp_path, monkeypatch, capsys, refused):
    pytest.importorskip("tensorboard")
    monkeypatch.setattr(Refusing, "refused", refused, raising=False)
    monkeypatch.setitem(track.TRACKERS, "mlflow", Refusing)
    trained(tmp_path, "mlflow,tensorboard")
    (warning,) = re.findall(r"^Warning: run.track: .*", capsys.readouterr().out, re.MULTILINE)
    assert "mlflow cannot be written ([Errno 28] No space left on device)" in warning
    assert len(read_tensorboard(tmp_path)) == 3


def test_a_full_disk_under_tensorboard_is_one_line(tmp_path, monkeypatch, capfd):
    """Its own writer has a thread, which would print a traceback."""
    pytest.importorskip("tensorboard")
    folder = tmp_path / "run" / "tensorboard"
    full = track._TensorBoard.add

    def add(self, numbers, step):
        with open("/dev/full", "wb") as disk:  # noqa: PTH123
            os.dup2(disk.fileno(), self._records._writer.fileno())
        full(self, numbers, step)

    monkeypatch.setattr(track._TensorBoard, "add", add)
    trained(tmp_path, "tensorboard")
    said, errors = capfd.readouterr()
    assert said.count("No space left on device") == 1 and "Traceback" not in errors and folder.is_dir()


def test_one_that_is_not_installed_is_told_unless_nobody_asked_for_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.setattr(track, "_is_installed", lambda name: False)
    trained(tmp_path / "asked", "mlflow")
    assert "mlflow is not installed" in (said := capsys.readouterr().out) and "megaclass[tracking]" in said
    run = trained(tmp_path / "auto", "auto")
    assert "Warning: run.track" not in capsys.readouterr().out and not (run / "tensorboard").exists()


def test_names_and_earlier_settings():
    assert set(track.TRACKERS) == set(TRACKERS)
    for earlier, now in [(True, "auto"), (False, "none")]:
        assert from_mapping({"run": {"tensorboard": earlier}}).run.track == now
    with pytest.raises(UserError, match=r"^run.track: 'wandb,mlfow' is neither none nor auto, nor some of"):
        from_mapping({"run": {"track": "wandb,mlfow"}})


def test_train_log_has_every_line_with_the_time_and_what_is_left(tmp_path, capsys):
    """And a resume lists what differs: in the recipe, which it does not follow, and in the run's own file."""
    trained(tmp_path, "none")
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(recipe.read_text().replace("lr = 0.01", "lr = 0.5"))
    own = tmp_path / "run" / "config.toml"
    own.write_text(own.read_text().replace("clip_grad_norm = 5.0", "clip_grad_norm = 4.0"))
    assert main(["train", str(recipe), *RESUMED]) == 0
    assert "optim.lr stays 0.01 as the run has it" in capsys.readouterr().out
    lines = (tmp_path / "run" / "train.log").read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d   \S", line) for line in lines)
    told = [line for line in lines if "Global Step" in line]
    assert [re.search(r"Step: (\d+) .* Of: (\d+)   Left: \d:\d\d:\d\d$", line).groups() for line in told] == [
        ("1", "3"), ("2", "3"), ("3", "3"), ("4", "5"), ("5", "5")
    ]  # fmt: skip
    assert [line[22:] for line in lines if " from here on" in line] == [
        "optim.clip_grad_norm is 4.0 from here on, and was 5.0",
        "schedule.steps is 5 from here on, and was 3",
    ]
    assert re.search(r"finished, at step 5 of 5, after \d+\.\d s of training$", lines[-1])


@pytest.mark.parametrize(("every", "best", "kept"), [(2, 8, "step-00000008"), (3, 9, "step-00000006")])
def test_the_best_that_a_result_names_is_there(tmp_path, every, best, kept, monkeypatch):
    """Of equal scores it is the last; of a step that was not saved, the best that was."""
    from megaclass.evaluate.evaluators import Evaluation
    from megaclass.train import loop

    scores = iter([0.5, 0.9, 0.9, 0.9, 0.1, 0.1] if every == 2 else [0.4, 0.5, 0.6, 0.1])
    monkeypatch.setattr(
        loop, "evaluation", lambda job: Evaluation("classification", {"top1": next(scores), "top5": 1.0})
    )
    evaluation = {"task": "verification", "path": str(tmp_path / "records"), "pairs": 40, "every": every}
    recipe = tiny.recipe(tmp_path, run={"checkpoint_every": 2, "keep_last": 1}, evaluate=evaluation)
    assert main(["train", recipe]) == 0
    found = json.loads((tmp_path / "run" / "result.json").read_text())["best"]
    assert (found["step"], found["checkpoint"]) == (best, kept)
    assert checkpoint.best(tmp_path / "run" / "checkpoints").name == kept
