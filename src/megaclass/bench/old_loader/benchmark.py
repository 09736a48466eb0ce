"""The loader as a benchmark: a turn is a pass over some batches."""

from statistics import median
from typing import Any

from megaclass.bench.benchmark import Tell, samples_ms
from megaclass.bench.old_loader.bare import BareDecode
from megaclass.bench.old_loader.cases import LoaderCase
from megaclass.bench.old_loader.contender import Contender
from megaclass.bench.old_loader.ours import Megaclass, Synthetic, WithDali
from megaclass.bench.peers.dali import Dali
from megaclass.bench.peers.nvjpeg import NvJpeg
from megaclass.bench.peers.pillow import Pillow
from megaclass.bench.timing import Stopwatch
from megaclass.parallel.groups import World
from megaclass.results.rows import timed

CONTENDERS: dict[str, Any] = {"simplejpeg": BareDecode, "dali": Dali, "pillow": Pillow, "nvjpeg": NvJpeg}
OURS: dict[str, Any] = {"threads": Megaclass, "dali": WithDali}


class LoaderBenchmark:
    """See :class:`megaclass.bench.benchmark.Benchmark`."""

    case_type = LoaderCase

    def load_libraries(self, case: LoaderCase, world: World) -> None:
        """Nothing: each contender has libraries of its own."""

    def contender(
        self, implementation: str, case: LoaderCase, world: World, options: dict[str, Any]
    ) -> Contender:
        ours = Synthetic if case.source == "synthetic" else OURS[options.get("loader", "threads")]
        made: Contender = CONTENDERS.get(implementation, ours)(case, world, options)
        return made

    def turn(self, contender: Contender, index: int, watch: Stopwatch, tell: Tell) -> dict[str, Any]:
        turn = contender.turn(index)
        stages = {name: time.cpu_ms for name, time in turn.stages.items()}
        return {"ms": turn.whole.ms, "cpu_ms": turn.whole.cpu_ms, "stages": stages}

    def limits(self, case: LoaderCase, world: World) -> dict[str, float]:
        return {}

    def measures(
        self,
        implementation: str,
        case: LoaderCase,
        turns: list[list[dict[str, Any]]],
        limits: list[dict[str, float]],
    ) -> dict[str, Any]:
        answers = [answer for (answer,) in turns]
        cpu_ms = [round(answer["cpu_ms"], 4) for answer in answers]
        cpu_us = 1000 * median(cpu_ms) / case.images
        work = {"cpu_us": round(cpu_us, 3), "samples_per_cpu_second": round(1e6 / cpu_us, 3)}
        return (
            timed(samples_ms(turns), case.images)
            | {"cpu_ms": cpu_ms}
            | {"work": work | _stages_us([answer["stages"] for answer in answers], case.images)}
        )


def _stages_us(turns: list[dict[str, float]], images: int) -> dict[str, float]:
    """CPU time an image that each stage adds to the one before it, from the passes of all turns."""
    added = {}
    names = list(turns[0])
    for before, name in zip([None, *names], names, strict=False):
        passes_ms = [turn[name] - (turn[before] if before else 0.0) for turn in turns]
        added[f"cpu_us_{name}"] = round(1000 * median(passes_ms) / images, 3)
    return added
