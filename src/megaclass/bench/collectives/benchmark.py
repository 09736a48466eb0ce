"""Collectives as a benchmark: ranks start a turn together, and it takes as long as the slowest of them."""

from typing import Any

from megaclass.bench.benchmark import Tell, samples_ms
from megaclass.bench.collectives.cases import BUS_FACTORS, CollectiveCase
from megaclass.bench.collectives.contender import Collective
from megaclass.bench.timing import Stopwatch
from megaclass.parallel import groups
from megaclass.parallel.groups import World
from megaclass.results.rows import timed


class CollectivesBenchmark:
    """See :class:`megaclass.bench.benchmark.Benchmark`."""

    case_type = CollectiveCase

    def load_libraries(self, case: CollectiveCase, world: World) -> None:
        """The connections between ranks are no memory of a message."""
        groups.barrier()

    def contender(
        self, implementation: str, case: CollectiveCase, world: World, options: dict[str, Any]
    ) -> Collective:
        return Collective(case, world)

    def turn(self, contender: Collective, index: int, watch: Stopwatch, tell: Tell) -> dict[str, Any]:
        """``ms``: of one call, on this rank."""
        contender.prepare(index)
        groups.barrier()
        ms, _ = watch.time_ms(contender.call)
        contender.check(index)
        return {"ms": ms / contender.calls}

    def limits(self, case: CollectiveCase, world: World) -> dict[str, float]:
        return {}

    def measures(
        self,
        implementation: str,
        case: CollectiveCase,
        turns: list[list[dict[str, Any]]],
        limits: list[dict[str, float]],
    ) -> dict[str, Any]:
        timing = timed(samples_ms(turns), 1)
        # A collective has no samples, and calls a second would stand under a heading that is not theirs.
        return timing | {"samples_per_second": None, "work": _bandwidths(case, timing["step_ms"]["p50"])}


def _bandwidths(case: CollectiveCase, call_ms: float) -> dict[str, float]:
    """Of the median call, as nccl-tests defines them: the size of the message over its time, and what that asks of
    the link of each rank, by which operations and numbers of ranks compare."""
    algorithm = case.bytes / call_ms * 1000
    return {
        "bytes": case.bytes,
        "algorithm_bytes_per_second": algorithm,
        "bus_bytes_per_second": algorithm * BUS_FACTORS[case.op](case.world_size),
    }
