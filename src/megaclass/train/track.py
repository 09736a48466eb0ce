"""Where else the numbers of a run go: TensorBoard, Weights & Biases, MLflow. None of them ends a run.

A tracker is a function of the run's directory, its configuration and the step that it goes on from. It returns what
takes numbers by their names, after a step, and what is told at the end whether the run has finished.
"""

import contextlib
import os
import platform
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from megaclass.config import Config, values
from megaclass.errors import first_line
from megaclass.results.rundir import RunDirectory, write_whole

Tracker = tuple[Callable[[dict[str, float], int], Any], Callable[[bool], Any]]
_PROJECT = "megaclass"  # where neither WANDB_PROJECT nor MLFLOW_EXPERIMENT_NAME says otherwise


class Tracking:
    """The trackers that ``run.track`` names. ``warn`` is told the first error of each, which then gets nothing more."""

    def __init__(self, directory: RunDirectory, config: Config, step: int, warn: Callable[[str], None]) -> None:
        self._warn, self._open, self._wanted = warn, dict[str, Tracker](), config.run.track
        for name in {"auto": "tensorboard", "none": ""}.get(self._wanted, self._wanted).split(","):
            with self._trying(name):
                if name:
                    self._open[name] = TRACKERS[name](directory, config, step)

    def add(self, numbers: Mapping[str, float | None], step: int) -> None:
        for name, (add, _) in list(self._open.items()):
            with self._trying(name):
                add({key: value for key, value in numbers.items() if value is not None}, step)

    def close(self, finished: bool) -> None:
        for name, (_, close) in list(self._open.items()):
            with self._trying(name):
                close(finished)

    @contextlib.contextmanager
    def _trying(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._open.pop(name, None)
            lacks = isinstance(error, ImportError)
            if not (lacks and self._wanted == "auto"):
                why = f"{first_line(error)}{'; pip install megaclass[tracking]' if lacks else ''}"
                self._warn(f"run.track: {name} cannot be written ({why}); the run goes on without it")


def _tensorboard(directory: RunDirectory, config: Config, step: int) -> Tracker:
    """Event files, without TensorBoard's own writer: its thread meets a full disk where nobody catches the error."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    directory.tensorboard.mkdir(exist_ok=True)
    name = f"events.out.tfevents.{time.time():.6f}.{platform.node()}"
    records = RecordWriter((directory.tensorboard / name).open("xb"))

    def write(**what: Any) -> None:
        records.write(Event(wall_time=time.time(), **what).SerializeToString())
        records.flush()

    def add(numbers: dict[str, float], step: int) -> None:
        write(step=step, summary={"value": [{"tag": n, "simple_value": v} for n, v in numbers.items()]})

    write(file_version="brain.Event:2")
    # What an earlier process wrote of later steps is not shown.
    write(step=step + 1, session_log={"status": "START"})
    return add, lambda finished: records.close()


def _wandb(directory: RunDirectory, config: Config, step: int) -> Tracker:
    """A run of Weights & Biases, at the address and with the key that its own settings say."""
    import wandb

    kept = directory.path / "wandb.id"
    run = wandb.init(
        id=kept.read_text() if kept.exists() else uuid.uuid4().hex[:12],
        resume="allow",
        project=os.environ.get("WANDB_PROJECT", _PROJECT),
        name=directory.path.name,
        dir=str(directory.path),
        config=values(config),
        allow_val_change=True,
        settings=wandb.Settings(console="off", init_timeout=30, finish_timeout=60, finish_timeout_raises=True),
    )
    write_whole(kept, run.id)
    # Its own count of steps never goes back, as a resumed run does.
    run.define_metric("*", step_metric="step")
    return lambda numbers, step: run.log({**numbers, "step": step}), lambda finished: run.finish(not finished)


def _mlflow(directory: RunDirectory, config: Config, step: int) -> Tracker:
    """A run of MLflow, at MLFLOW_TRACKING_URI."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # seven take minutes, and training waits
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    client, kept = MlflowClient(), directory.path / "mlflow.id"
    if kept.exists():
        client.update_run(kept.read_text(), status="RUNNING")
    else:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        known = client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else client.create_experiment(name)
        write_whole(kept, client.create_run(experiment, run_name=directory.path.name).info.run_id)
        settings = [Param(key, str(value)) for key, value in values(config).items()]
        for first in range(0, len(settings), 100):  # no more at once
            client.log_batch(kept.read_text(), params=settings[first : first + 100])
    run = kept.read_text()

    def add(numbers: dict[str, float], step: int) -> None:
        plain = {re.sub(r"[^\w./ -]", "_", name): value for name, value in numbers.items()}
        client.log_batch(run, [Metric(name, value, round(1000 * time.time()), step) for name, value in plain.items()])

    return add, lambda finished: client.set_terminated(run, "FINISHED" if finished else "FAILED")


TRACKERS = {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow}
