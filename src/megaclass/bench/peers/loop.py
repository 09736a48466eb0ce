"""The training loop of others in a case of ``bench train``: their step, given what ours is given.

Shapes: b = rows of this rank's batch, S = image size.
"""

import math
from typing import TYPE_CHECKING, Any

from megaclass.bench.case import Turns
from megaclass.bench.timing import device_clock, run_epoch
from megaclass.config import Config, steps_of, values

if TYPE_CHECKING:
    from torch import Tensor

    from megaclass.parallel.groups import World

_POOL = 2  # batches of images, taken in turns, as our synthetic loader has them

# What changes the work of a step, and its loop does not have.
_OURS_ALONE = (
    "data.start_size", "model.checkpoint_activations", "model.drop_path", "model.mask_ratio", "model.sync_norm",
    "optim.ema_decay",
)  # fmt: skip


class PeerLoop(Turns):
    """Epochs of a peer's loop.

    Its labels are ours; its images are noise that lies ready as its step takes them, normalised fp32, where our step
    begins with bytes.
    """

    channels_last = False  # the memory format that it wants its images in

    def __init__(self, case: Any, config: Config, world: "World", options: dict[str, Any]) -> None:
        import torch

        from megaclass.train.arithmetic import pick_arithmetic
        from megaclass.train.batches import synthetic_loader
        from megaclass.train.model import input_function

        plan = steps_of(config, config.data.num_samples)
        self.case, self.config, self.world, self.plan = case, config, world, plan
        self.arithmetic = pick_arithmetic(case.precision, self.channels_last, world.device, case.tf32)
        self._clock = device_clock(world.device)
        torch.manual_seed(case.seed)
        self.build(options)
        loader = synthetic_loader(config, world, plan.total)
        to_input = input_function(config, self.arithmetic)
        pool = [to_input(batch.images) for batch in loader.steps(0, _POOL)]
        steps = loader.steps(0, case.all_steps)
        self.batches = ((pool[i % _POOL], batch.labels) for i, batch in enumerate(steps))

    @staticmethod
    def options(path: str) -> dict[str, Any]:
        """What :meth:`build` needs to know of ``--peer-path``. UserError: the peer's code is not there."""
        return {}

    @classmethod
    def why_not(cls, case: Any, config: Config) -> str:
        """Why it cannot run the case, or an empty string."""
        if case.simulate_ranks > 1:
            return "its loop simulates no ranks"
        if config.data.source != "synthetic":
            return "its step is measured on noise: leave out --data-root"
        if config.optim.name != "sgd":
            return "its loop is run with SGD alone"
        ours = next((key for key in _OURS_ALONE if values(config)[key]), "")
        return ours and f"its loop is run without {ours}"

    @staticmethod
    def changes(case: Any) -> dict[str, Any]:
        """Fields of the case that it runs otherwise."""
        return {}

    def build(self, options: dict[str, Any]) -> None:
        """Network, head, optimizer and schedule."""
        raise NotImplementedError

    def step(self, images: "Tensor", labels: "Tensor") -> float:
        """All that its loop does with a batch of fp32 images (b, 3, S, S) and labels (b,) int64; returns the loss."""
        raise NotImplementedError

    def turn(self, index: int) -> dict[str, Any]:
        """An epoch of ``iterations`` steps; the loss of the last one comes with the times."""
        from megaclass.parallel import groups

        with self.arithmetic.active():
            groups.barrier()
            answer = run_epoch(self.batches, self.take, self.case.iterations, self._clock)
        return answer | {"loss": self.loss}

    def take(self, batch: "tuple[Tensor, Tensor]") -> None:
        self.loss = self.step(*batch)
        if not math.isfinite(self.loss):  # the work of a network that has diverged is another
            raise ArithmeticError(f"the loss is {self.loss}; lower optim.lr")

    def facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = {"channels_last": self.channels_last, "num_classes": self.case.num_classes}
        return facts | ({"collectives": "included"} if self.case.ranks > 1 else {})
