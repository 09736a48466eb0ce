"""The head as a benchmark: a turn is a whole step, forward, backward and update."""

import math
from typing import Any

import torch

from megaclass.bench import limits
from megaclass.bench.benchmark import Tell, samples_ms
from megaclass.bench.head import ours
from megaclass.bench.head.cases import HeadCase
from megaclass.bench.head.contender import Contender
from megaclass.bench.head.ours import Megaclass
from megaclass.bench.peers import PEERS
from megaclass.bench.peers.arcface_torch import ArcfaceTorch
from megaclass.bench.timing import Stopwatch
from megaclass.parallel import groups
from megaclass.parallel.groups import World
from megaclass.results.rows import timed

CONTENDERS: dict[str, Any] = {"megaclass": Megaclass, "arcface_torch": ArcfaceTorch}


class HeadBenchmark:
    """See :class:`megaclass.bench.benchmark.Benchmark`."""

    case_type = HeadCase

    def load_libraries(self, case: HeadCase, world: World) -> None:
        """A small product, its derivative and an optimizer's step: what PyTorch loads when it first needs it
        (its compiler for every optimizer: 80 MB) is no memory of the head."""
        a = torch.nn.Parameter(torch.randn(64, 64, device=world.device))
        (a @ a).exp().sum().backward()
        torch.optim.SGD([a], 0.1, momentum=0.9).step()
        limits.product_ms(case.precision, 64, world.device)

    def contender(
        self, implementation: str, case: HeadCase, world: World, options: dict[str, Any]
    ) -> Contender:
        made: Contender = CONTENDERS[implementation](case, world, options)
        return made

    def turn(self, contender: Contender, index: int, watch: Stopwatch, tell: Tell) -> dict[str, Any]:
        contender.prepare(index)
        groups.barrier()
        ms, loss_tensor = watch.time_ms(contender.step)
        loss = float(loss_tensor)
        if not math.isfinite(loss):  # a head may skip the update then: not the same work
            raise ArithmeticError(f"the loss of step {index} is {loss}")
        return {"ms": ms, "loss": loss}

    def limits(self, case: HeadCase, world: World) -> dict[str, float]:
        groups.barrier()  # all ranks measure at the same time, as they compute
        return limits.measure(case.precision, world.device)

    def measures(
        self,
        implementation: str,
        case: HeadCase,
        turns: list[list[dict[str, Any]]],
        limits: list[dict[str, float]],
    ) -> dict[str, Any]:
        timing = timed(samples_ms(turns), case.batch_size)
        return timing | {"work": _rates(work(implementation, case), timing["step_ms"]["p50"], limits)}


def work(implementation: str, case: HeadCase) -> dict[str, float]:
    """Operations and bytes of a step, as this implementation counts them."""
    return PEERS[implementation].work(case) if implementation in PEERS else ours.work(case)


def _rates(work: dict[str, float], step_ms: float, limits: list[dict[str, float]]) -> dict[str, float]:
    """The work of a step, what it makes a second at the median step, and the limits of all ranks together."""
    speeds = {f"{name}_per_second": amount / step_ms * 1000 for name, amount in work.items()}
    known = set.intersection(*(set(limit) for limit in limits))
    return work | speeds | {name: sum(limit[name] for limit in limits) for name in sorted(known)}
