"""Where else the numbers of a run go: TensorBoard, Weights & Biases, MLflow. None of them ends a run.

A tracker is a class in ``TRACKERS``: made from the run's directory, its configuration and the step it goes on from, it
takes numbers until it is closed. It may raise anything at any time.
"""

import contextlib
import importlib.util
import os
import platform
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from megaclass.config import Config, values
from megaclass.errors import first_line
from megaclass.results.rundir import RunDirectory, write_whole

_PROJECT = "megaclass"  # where neither WANDB_PROJECT nor MLFLOW_EXPERIMENT_NAME says otherwise


class Tracker(Protocol):
    def add(self, numbers: Mapping[str, float], step: int) -> None:
        """Numbers by their names, ``train/loss``, of the model after ``step`` steps."""

    def close(self, finished: bool) -> None:
        """The run has ended, well or not."""


class Tracking:
    """The trackers that ``run.track`` names. ``warn`` is told the first error of each, which then gets nothing more."""

    def __init__(
        self, directory: RunDirectory, config: Config, first_step: int, warn: Callable[[str], None]
    ) -> None:
        self._warn, self._open = warn, dict[str, Tracker]()
        names = config.run.track.replace("auto", "tensorboard" if _is_installed("tensorboard") else "none")
        for name in names.split(","):
            with self._trying(name):
                if name != "none":
                    self._open[name] = TRACKERS[name](directory, config, first_step)

    def add(self, numbers: Mapping[str, float | None], step: int) -> None:
        known = {name: value for name, value in numbers.items() if value is not None}
        for name, tracker in list(self._open.items()):
            with self._trying(name):
                tracker.add(known, step)

    def close(self, finished: bool) -> None:
        for name, tracker in list(self._open.items()):
            with self._trying(name):
                tracker.close(finished)

    @contextlib.contextmanager
    def _trying(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._open.pop(name, None)
            why = f"cannot be written ({first_line(error)})"
            if isinstance(error, ImportError):
                why = f"is not installed ({error}): pip install 'megaclass[tracking]'"
            self._warn(f"run.track: {name} {why}; the run goes on without it")


class _TensorBoard:
    """Event files, without TensorBoard's own writer: its thread meets a full disk where nobody catches the error."""

    def __init__(self, directory: RunDirectory, config: Config, first_step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = Event, Summary
        directory.tensorboard.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{time.time():.6f}.{platform.node()}"
        self._records = RecordWriter((directory.tensorboard / name).open("xb"))
        self._write(file_version="brain.Event:2")
        # What an earlier process wrote of later steps is not shown.
        self._write(step=first_step + 1, session_log=SessionLog(status=SessionLog.START))

    def add(self, numbers: Mapping[str, float], step: int) -> None:
        parts = [self._summary.Value(tag=name, simple_value=value) for name, value in numbers.items()]
        self._write(step=step, summary=self._summary(value=parts))

    def close(self, finished: bool) -> None:
        self._records.close()

    def _write(self, **what: Any) -> None:
        self._records.write(self._event(wall_time=time.time(), **what).SerializeToString())
        self._records.flush()


class _WandB:
    """A run of Weights & Biases, at the address and with the key that its own settings say."""

    def __init__(self, directory: RunDirectory, config: Config, first_step: int) -> None:
        import wandb

        kept = _id_file(directory, "wandb")
        name = kept.read_text() if kept.exists() else uuid.uuid4().hex[:12]
        self._run = wandb.init(
            id=name,
            resume="allow",
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=directory.path.name,
            dir=str(directory.path),
            config=values(config),
            allow_val_change=True,
            settings=wandb.Settings(
                console="off", init_timeout=30, finish_timeout=60, finish_timeout_raises=True
            ),
        )
        write_whole(kept, name)
        # Its own count of steps never goes back, as a resumed run does.
        self._run.define_metric("*", step_metric="step")

    def add(self, numbers: Mapping[str, float], step: int) -> None:
        self._run.log({**numbers, "step": step})

    def close(self, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)


class _MLflow:
    """A run of MLflow, at MLFLOW_TRACKING_URI."""

    def __init__(self, directory: RunDirectory, config: Config, first_step: int) -> None:
        os.environ.setdefault(
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3"
        )  # seven take minutes, and training waits
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._metric, self._client = Metric, MlflowClient()
        kept = _id_file(directory, "mlflow")
        if kept.exists():
            self._id = kept.read_text()
            self._client.update_run(self._id, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        self._id = self._client.create_run(experiment, run_name=directory.path.name).info.run_id
        write_whole(kept, self._id)
        settings = [Param(key, str(value)) for key, value in values(config).items()]
        for first in range(0, len(settings), 100):  # no more at once
            self._client.log_batch(self._id, params=settings[first : first + 100])

    def add(self, numbers: Mapping[str, float], step: int) -> None:
        now_ms = round(1000 * time.time())
        plain = {re.sub(r"[^\w./ -]", "_", name): value for name, value in numbers.items()}
        self._client.log_batch(self._id, [self._metric(name, v, now_ms, step) for name, v in plain.items()])

    def close(self, finished: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if finished else "FAILED")


TRACKERS: dict[str, Callable[[RunDirectory, Config, int], Tracker]] = {
    "tensorboard": _TensorBoard,
    "wandb": _WandB,
    "mlflow": _MLflow,
}


def _id_file(directory: RunDirectory, name: str) -> Path:
    """Names the tracker's run, so that a resumed one goes on there."""
    return directory.path / f"{name}.id"


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
