"""The training loop of others in a case of ``bench train``: their step, given what ours is given.

Shapes: b = rows of this rank's batch, S = image size.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from megaclass.bench.timing import device_clock, run_epoch
from megaclass.config import Config, Steps, steps_of

if TYPE_CHECKING:
    from torch import Tensor

    from megaclass.parallel.groups import World
    from megaclass.train.arithmetic import Arithmetic

_POOL = 2  # batches of images, taken in turns, as our synthetic loader has them

# What changes the work of a step, and its loop does not have.
_OURS_ALONE = (
    ("data", "start_size"),
    ("model", "checkpoint_activations"),
    ("model", "drop_path"),
    ("model", "mask_ratio"),
    ("model", "sync_norm"),
    ("optim", "ema_decay"),
)


class Loop(Protocol):
    """A peer's loop, ready for its first step."""

    def step(self, images: "Tensor", labels: "Tensor") -> float:
        """All that its loop does with a batch of fp32 images (b, 3, S, S) and labels (b,) int64; returns the loss."""
        ...

    def facts(self) -> dict[str, Any]:
        """Parameters of the case as this loop really ran it."""
        ...


@dataclass(frozen=True)
class PeerJob:
    """What a loop is made from."""

    case: Any
    config: Config
    world: "World"
    arithmetic: "Arithmetic"
    steps: Steps


class Peer(Protocol):
    """A module of :mod:`megaclass.bench.peers` with the loop of others. ``CHANNELS_LAST``: the memory format that it
    wants its images in."""

    NAME: str
    CHANNELS_LAST: bool

    def options(self, path: str) -> dict[str, Any]:
        """What the loop needs to know of ``--peer-path``. UserError: not what it needs there."""
        ...

    def why_not(self, case: Any, config: Config) -> str:
        """Why it cannot run the case, or an empty string."""
        ...

    def changes(self, case: Any) -> dict[str, Any]:
        """Fields of the case that it runs otherwise: the same work, its own arithmetic."""
        ...

    def Loop(self, job: PeerJob, options: dict[str, Any]) -> Loop:  # noqa: N802 - a class
        ...


class PeerTraining:
    """Epochs of a peer's loop. Its labels are ours; its images are noise that lies ready as its step takes them,
    normalised fp32, where our step begins with bytes."""

    def __init__(
        self, peer: Peer, case: Any, config: Config, world: "World", options: dict[str, Any]
    ) -> None:
        import torch

        from megaclass.train.arithmetic import pick_arithmetic
        from megaclass.train.batches import synthetic_loader
        from megaclass.train.model import input_function

        plan = steps_of(config, config.data.num_samples)
        self._case, self._peer, self._clock = case, peer, device_clock(world.device)
        self._arithmetic = pick_arithmetic(case.precision, peer.CHANNELS_LAST, world.device, case.tf32)
        torch.manual_seed(case.seed)
        self._loop = peer.Loop(PeerJob(case, config, world, self._arithmetic, plan), options)
        loader = synthetic_loader(config, world, plan.total)
        to_input = input_function(config, self._arithmetic)
        pool = [to_input(batch.images) for batch in loader.steps(0, _POOL)]
        steps = loader.steps(0, case.all_steps)
        self._batches = ((pool[i % _POOL], batch.labels) for i, batch in enumerate(steps))

    def turn(self, index: int, tell: Callable[[float], None]) -> dict[str, Any]:
        """An epoch of ``iterations`` steps; the loss of the last one comes with the times."""
        from megaclass.parallel import groups

        with self._arithmetic.active():
            groups.barrier()
            answer = run_epoch(self._batches, self._take, self._case.iterations, self._clock, tell)
        return answer | {"loss": self._loss}

    def _take(self, batch: "tuple[Tensor, Tensor]") -> None:
        self._loss = self._loop.step(*batch)
        if not math.isfinite(self._loss):  # the work of a network that has diverged is another
            raise ArithmeticError(f"the loss is {self._loss}; lower optim.lr")

    def facts(self) -> dict[str, Any]:
        common: dict[str, Any] = {
            "channels_last": self._peer.CHANNELS_LAST,
            "num_classes": self._case.num_classes,
        }
        if self._case.ranks > 1:
            common |= {"collectives": "included"}
        return common | self._loop.facts()


def why_no_peer(case: Any, config: Config) -> str:
    """Why no loop of others runs the case, or an empty string."""
    if case.simulate_ranks > 1:
        return "its loop simulates no ranks"
    if config.data.source != "synthetic":
        return "its step is measured on noise: leave out --data-root"
    if config.optim.name != "sgd":
        return "its loop is run with SGD alone"
    for section, name in _OURS_ALONE:
        if getattr(getattr(config, section), name):
            return f"its loop is run without {section}.{name}"
    return ""
