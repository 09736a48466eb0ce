"""Numbers that also go to TensorBoard, Weights & Biases and MLflow; train.log; what a resumed run has otherwise."""

import errno
import json
import re
import sys

import pytest

import tiny
from megaclass import checkpoint
from megaclass.cli import main
from megaclass.config import from_mapping
from megaclass.config.sections import TRACKERS
from megaclass.errors import UserError
from megaclass.evaluation.evaluators import Evaluation
from megaclass.train import loop, track

RESUMED = ("--resume", "--schedule.steps", "5")


def trained(folder, tracker, *words):
    """Steps 1 to 3; again, with RESUMED, those after them."""
    recipe = tiny.recipe(folder, run={"track": tracker}, schedule={"steps": 3})
    assert main(["train", recipe, *words]) == 0
    return folder / "run"


def read_tensorboard(run):
    loading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = loading.EventAccumulator(str(run / "tensorboard")).Reload()
    return [(found.step, found.value) for found in events.Scalars("train/loss")]


def read_wandb(run):
    """Of its files, each a LevelDB log of one block: records behind a checksum, a length and a kind."""
    from wandb.proto.wandb_internal_pb2 import Record

    found = []
    for path in sorted(run.glob(f"wandb/offline-run-*/run-{(run / 'wandb.id').read_text()}.wandb")):
        content, at = path.read_bytes(), 7
        while at + 7 <= len(content):
            at, size = at + 7, int.from_bytes(content[at + 4 : at + 6], "little")
            items = Record.FromString(content[at : at + size]).history.item
            numbers = {item.nested_key[0]: item.value_json for item in items}
            found += [(int(numbers["step"]), float(numbers["train/loss"]))] if "step" in numbers else []
            at += size
    return found


def read_mlflow(run):
    from mlflow import MlflowClient

    client, name = MlflowClient(), (run / "mlflow.id").read_text()
    assert client.get_run(name).data.params["optim.lr"] == "0.01"
    return [(metric.step, metric.value) for metric in client.get_metric_history(name, "train/loss")]


READERS = {"tensorboard": read_tensorboard, "wandb": read_wandb, "mlflow": read_mlflow}


@pytest.mark.parametrize("name", READERS)
def test_a_resumed_run_goes_on_in_the_same_one(tmp_path, monkeypatch, name):
    package = pytest.importorskip(name)
    if name == "wandb":
        package.teardown()  # an earlier test's session, which would not hear of these variables
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path}/mlflow")
    trained(tmp_path, name)
    run = trained(tmp_path, name, *RESUMED)
    lines = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    expected = [(line["step"], pytest.approx(line["loss"])) for line in lines if line["event"] == "step"]
    assert READERS[name](run) == expected and len(expected) == 5


@pytest.mark.parametrize("refused", ["open", "add", "close"])
def test_one_that_fails_is_a_warning_and_the_others_go_on(tmp_path, monkeypatch, capsys, refused):
    def call(name, result=None):
        if name == refused:
            raise OSError(errno.ENOSPC, "No space left on device")
        return result

    tracker = (lambda *_: call("add"), lambda _: call("close"))
    monkeypatch.setitem(track.TRACKERS, "mlflow", lambda *_: call("open", tracker))
    run = trained(tmp_path, "mlflow,tensorboard")
    (warning,) = re.findall(r"^Warning: run.track: .*", capsys.readouterr().out, re.MULTILINE)
    assert "mlflow cannot be written ([Errno 28] No space left on device)" in warning
    assert len(read_tensorboard(run)) == 3


def test_one_that_is_not_installed_is_told_unless_nobody_asked_for_it(tmp_path, monkeypatch, capsys):
    for module in ("mlflow", "tensorboard.compat.proto.event_pb2"):
        monkeypatch.setitem(sys.modules, module, None)
    trained(tmp_path / "asked", "mlflow")
    assert "pip install megaclass[tracking]" in capsys.readouterr().out
    trained(tmp_path / "auto", "auto")
    assert "Warning: run.track" not in capsys.readouterr().out


def test_names_and_earlier_settings():
    assert set(track.TRACKERS) == set(TRACKERS)
    for earlier, now in [(True, "auto"), (False, "none")]:
        assert from_mapping({"run": {"tensorboard": earlier}}).run.track == now
    with pytest.raises(UserError, match=r"^run.track: 'wandb,mlfow' is neither none nor auto, nor some of"):
        from_mapping({"run": {"track": "wandb,mlfow"}})


def test_train_log_has_every_line_with_its_time_and_what_is_left(told, tmp_path):
    """And a resume lists what differs: in the recipe, which it does not follow, and in the run's own file."""
    run = trained(tmp_path, "none")
    for path, was, now in [
        ("tiny.toml", "lr = 0.01", "lr = 0.5"),
        ("run/config.toml", "grad_norm = 5.0", "grad_norm = 4.0"),
    ]:
        (tmp_path / path).write_text((tmp_path / path).read_text().replace(was, now))
    assert "optim.lr stays 0.01 as the run has it" in told("train", tmp_path / "tiny.toml", *RESUMED)
    text = (run / "train.log").read_text()
    assert re.fullmatch(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d   \S.*\n)+", text)
    told = re.findall(r"Global Step: (\d) .* Of: (\d)   Left: \d:\d\d:\d\d\n", text)
    assert told == [("1", "3"), ("2", "3"), ("3", "3"), ("4", "5"), ("5", "5")]
    assert re.findall(r"(\S+ is \S+) from here on, and was (\S+)\n", text) == [
        ("optim.clip_grad_norm is 4.0", "5.0"),
        ("schedule.steps is 5", "3"),
    ]
    assert re.search(r"finished, at step 5 of 5, after \d+\.\d s of training\n$", text)


@pytest.mark.parametrize(("every", "best", "kept"), [(2, 8, "step-00000008"), (3, 9, "step-00000006")])
def test_the_best_that_a_result_names_is_there(tmp_path, monkeypatch, every, best, kept):
    """Of equal scores it is the last; of a step that was not saved, the best that was."""
    scores = iter([0.5, 0.9, 0.9, 0.9, 0.1] if every == 2 else [0.4, 0.5, 0.6, 0.1])
    found = lambda job: Evaluation("classification", {"top1": next(scores), "top5": 1.0})  # noqa: E731
    monkeypatch.setattr(loop, "evaluation", found)
    evaluation = {"task": "verification", "path": str(tmp_path / "records"), "every": every}
    recipe = tiny.recipe(tmp_path, run={"checkpoint_every": 2, "keep_last": 1}, evaluate=evaluation)
    assert main(["train", recipe]) == 0
    told = json.loads((tmp_path / "run" / "result.json").read_text())["best"]
    assert (told["step"], told["checkpoint"]) == (best, kept)
    assert checkpoint.best(tmp_path / "run" / "checkpoints").name == kept
