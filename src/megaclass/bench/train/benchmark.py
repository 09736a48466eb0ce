"""Training as a benchmark: a turn is an epoch, which is a number of steps."""

from typing import Any

import torch

from megaclass.bench import epochs, limits
from megaclass.bench.benchmark import Tell
from megaclass.bench.peers import LOOPS
from megaclass.bench.timing import Stopwatch
from megaclass.bench.train.cases import TrainCase
from megaclass.bench.train.contender import Training
from megaclass.bench.train.cost import step_flops
from megaclass.bench.train.peer import PeerTraining
from megaclass.parallel import groups
from megaclass.parallel.groups import World


class TrainBenchmark:
    """See :class:`megaclass.bench.benchmark.Benchmark`."""

    case_type = TrainCase

    def load_libraries(self, case: TrainCase, world: World) -> None:
        """A small product, its derivative and an optimizer's step: what PyTorch loads when it first needs it is no
        memory of the training."""
        a = torch.nn.Parameter(torch.randn(64, 64, device=world.device))
        (a @ a).sum().backward()
        torch.optim.SGD([a], 0.1, momentum=0.9).step()

    def contender(
        self, implementation: str, case: TrainCase, world: World, options: dict[str, Any]
    ) -> Training | PeerTraining:
        if implementation in LOOPS:
            return PeerTraining(LOOPS[implementation], case, world, options)
        return Training(case, world)

    def turn(
        self, contender: Training | PeerTraining, index: int, watch: Stopwatch, tell: Tell
    ) -> dict[str, Any]:
        return contender.epoch(tell)

    def limits(self, case: TrainCase, world: World) -> dict[str, float]:
        groups.barrier()  # all ranks measure at the same time, as they compute
        return limits.measure(case.precision, world.device)

    def measures(
        self,
        implementation: str,
        case: TrainCase,
        turns: list[list[dict[str, Any]]],
        limits: list[dict[str, float]],
    ) -> dict[str, Any]:
        found = epochs.measures(turns, case.global_batch_size)
        whole = step_flops(case, ours=implementation not in LOOPS)
        flops = whole / case.simulate_ranks  # of the processes that ran
        work = {"flops": flops, "flops_per_second": 1000 * flops / found["step_ms"]["p50"]}
        known = set.intersection(*(set(limit) for limit in limits))
        return found | {
            "work": work | {name: sum(limit[name] for limit in limits) for name in sorted(known)},
            "result": {"final_loss": turns[-1][0]["loss"]},
        }
