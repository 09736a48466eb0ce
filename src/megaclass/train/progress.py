"""How far a run is, the scalars that a checkpoint restores, and the clock of its training."""

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch

from megaclass.evaluation.evaluators import Evaluation


@dataclass
class Progress:
    """Counted in optimizer steps from the start of the run, across restarts. Only the loop writes it."""

    step: int = 0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    lost_steps: int = 0  # skipped, and not in search of the fp16 loss scale
    loss_mean: float | None = None  # of the last steps, to know a spike by
    rate_factor: float = 1.0  # of the learning rate: a rollback lowers it
    seconds: float = 0.0  # spent training: evaluation and checkpoints stop this clock
    evaluation_seconds: float = 0.0
    loss: float | None = None  # of the last step that was read
    damaged_samples: int = 0  # left out with data.on_error skip, since the run was last started
    evaluation: Evaluation | None = None  # the last one, of the step ``evaluated_at``
    evaluated_at: int = -1
    best_score: float | None = None  # of all evaluations
    best_step: int = -1

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Progress":
        """What ``asdict`` gave. ValueError or TypeError for anything else: the file may come from anywhere."""
        found = state["evaluation"]
        progress = cls(**state | {"evaluation": Evaluation(**found) if found else None})
        if "best_score" not in state and progress.evaluation is not None:  # of a version that did not keep it
            progress.best_score, progress.best_step = progress.evaluation.score, progress.evaluated_at
        for f in fields(cls):
            value = getattr(progress, f.name)
            lowest = -1 if f.name in ("evaluated_at", "best_step") else 0
            if (
                (f.type is int and not (type(value) is int and lowest <= value < 1 << 62))
                or (f.type is float and not (type(value) is float and 0 <= value < 1e12))
                or (f.type == float | None and not isinstance(value, float | None))
            ):
                raise ValueError(f"its {f.name} is {value!r}")
        return progress

    def evaluated(self, evaluation: Evaluation) -> None:
        """Note what was just found of the model as it is."""
        self.evaluation, self.evaluated_at = evaluation, self.step
        score = -math.inf if evaluation.score is None else evaluation.score
        if math.isfinite(score) and (self.best_score is None or score >= self.best_score):
            self.best_score, self.best_step = score, self.step

    @property
    def score(self) -> float | None:
        """The score of the model as it is now, if it was evaluated at this very step."""
        return self.evaluation.score if self.evaluation and self.evaluated_at == self.step else None


class Clock:
    """Seconds spent training, those before a restart included."""

    def __init__(self, device: torch.device, before_s: float) -> None:
        self._device = device
        self._began = time.perf_counter() - before_s

    def seconds(self) -> float:
        return time.perf_counter() - self._began

    @contextlib.contextmanager
    def stopped(self) -> Iterator[float]:
        """What happens inside is not training time; gives the time until then, at which the clock goes on."""
        self._synchronise()  # what the device still has to do is training time
        seconds = self.seconds()
        yield seconds
        self._synchronise()
        self._began = time.perf_counter() - seconds

    def _synchronise(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
