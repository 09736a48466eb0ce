"""What keeps numbers that go wrong out of a run: looked at on the device, so that no step waits for the host."""

from dataclasses import dataclass

import torch
from torch import Tensor

from megaclass.train.job import Job
from megaclass.train.progress import Progress

# A loss spikes above so many times the mean of the last fifty or so, and by so much at least: near the end of a
# training the loss is small, and three times of it is nothing.
SPIKE, LEAST_RISE = 3.0, 1.0
_MEAN_WEIGHT = 0.02  # of a step in the mean
_SETTLED_STEPS = 50  # before that a mean and a share say nothing


@dataclass
class Outcome:
    """One step's numbers, scalar tensors on the device: reading them is up to the loop."""

    loss: Tensor
    grad_norm: Tensor
    skipped: Tensor
    rescaled: Tensor  # skipped, but only because the fp16 loss scale is still too high


class DivergedError(Exception):
    """The numbers of the run have gone wrong, and more steps will not mend them."""


@dataclass(frozen=True)
class Suspect:
    """A step whose loss or gradient was not finite, or whose loss spiked."""

    step: int  # counted as in the log: 1 is the first
    loss: float
    grad_norm: float


def _side_by_side(tensors: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """A copy of all of them in one tensor, and the parts of it in their shapes."""
    whole = torch.cat([t.flatten() for t in tensors]) if tensors else torch.empty(0)
    parts = whole.split([t.numel() for t in tensors])
    return whole, [part.view_as(t) for part, t in zip(parts, tensors, strict=True)]


class Guard:
    """Leaves out steps that would spoil the weights, counts them, and remembers the first bad one.

    A step with a loss or gradient that is not finite changes nothing. ``run.on_divergence`` says what a spike of the
    loss means: ``stop`` tells of it, ``skip`` leaves the step out, ``rollback`` counts it as a bad one.
    """

    def __init__(self, job: Job, progress: Progress | None = None) -> None:
        progress, device = progress or Progress(), job.world.device
        self._run = job.config.run
        # Running statistics as they were before a step: a batch with a NaN would poison them for good. Side by side,
        # so that one kernel chooses for all of them.
        self._norms = [b for b in job.backbone.buffers() if b.is_floating_point()]
        self._before, self._norms_before = _side_by_side(self._norms)
        self._after, self._norms_after = _side_by_side(self._norms)
        counts = [progress.skipped_steps, progress.lost_steps, progress.skipped_in_a_row]
        self._counts = torch.tensor(counts, device=device)
        self._mean = torch.tensor(progress.loss_mean or 0.0, device=device)
        # Checkpoints of earlier versions have no mean: it begins anew.
        self._mean_from = 0 if progress.loss_mean is not None else progress.step
        self._spike = torch.zeros((), dtype=torch.bool, device=device)
        self._nobody = torch.full((3,), -1.0, dtype=torch.float64, device=device)
        self._first = self._nobody

    def begin_step(self) -> None:
        if self._norms:
            torch._foreach_copy_(self._norms_before, self._norms)

    def refuses(self, step: int, loss: Tensor) -> Tensor:
        """Whether step ``step`` (from 0) is left out for its loss, a bool scalar. Once a step."""
        finite, steps = torch.isfinite(loss), step - self._mean_from
        if steps >= _SETTLED_STEPS:
            limit = SPIKE * self._mean + LEAST_RISE
            self._spike = loss > limit
            taken = torch.minimum(loss, limit)  # a lasting rise is followed, a spike is not
        else:
            taken = loss
        weight = max(_MEAN_WEIGHT, 1 / (1 + steps))
        self._mean = torch.where(finite, self._mean.lerp(taken, weight), self._mean)
        return ~finite | self._spike if self._run.on_divergence == "skip" else ~finite

    def end_step(self, step: int, outcome: Outcome) -> None:
        if self._norms:
            torch._foreach_copy_(self._norms_after, self._norms)
            torch.where(outcome.skipped, self._before, self._after, out=self._after)
            torch._foreach_copy_(self._norms, self._norms_after)
        # Finding the loss scale takes a few skipped steps by design: they end no run, and no row of bad ones.
        lost = outcome.skipped & ~outcome.rescaled
        suspect = lost | self._spike
        if self._run.on_divergence == "rollback":
            lost = suspect
        self._counts += torch.stack([outcome.skipped, lost, lost])
        self._counts[2] *= lost | outcome.skipped
        number = torch.full_like(outcome.loss, step + 1, dtype=torch.float64)
        found = torch.stack([number, outcome.loss.double(), outcome.grad_norm.double()])
        self._first = torch.where(suspect & (self._first[0] < 0), found, self._first)

    def read(self, progress: Progress) -> Suspect | None:
        """Put the counts into ``progress`` (a host sync); the first bad step since the last call."""
        progress.skipped_steps, progress.lost_steps, progress.skipped_in_a_row = self._counts.tolist()
        progress.loss_mean = float(self._mean)
        number, loss, grad_norm = self._first.tolist()
        self._first = self._nobody
        return Suspect(int(number), loss, grad_norm) if number >= 0 else None

    def check(self, progress: Progress, at_end: bool) -> None:
        """DivergedError where too many steps were bad, in a row or in all."""
        run, lost, in_a_row = self._run, progress.lost_steps, progress.skipped_in_a_row
        how = "had a loss or gradient that is not finite"
        if run.on_divergence == "rollback":
            how += ", or a loss that spiked"
        if in_a_row >= run.max_skipped:
            raise DivergedError(f"step {progress.step}: {in_a_row} steps in a row {how} (run.max_skipped)")
        if lost > run.max_skipped_share * progress.step and (at_end or progress.step >= _SETTLED_STEPS):
            raise DivergedError(f"step {progress.step}: {lost} of {progress.step} steps {how} (run.max_skipped_share)")
