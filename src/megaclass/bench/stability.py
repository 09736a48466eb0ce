"""``megaclass bench stability``: one recipe trained with several seeds, and how far apart they end."""

from dataclasses import dataclass
from typing import Any, ClassVar

from megaclass.bench.case import SPEED, Benchmark, Case, Metric, parameter, value_of
from megaclass.results.rows import Row


@dataclass(frozen=True, kw_only=True)
class StabilityCase(Case):
    """The training of a recipe with one of its seeds."""

    benchmark: ClassVar[str] = "stability"
    steps: ClassVar[int] = 1
    warmup: ClassVar[int] = 0

    recipe: str = parameter("")
    seed: int = parameter(0)
    metric: str = parameter("final_loss")
    epochs_trained: float | None = parameter(None, title="epochs")
    precision: str = parameter("fp32")
    image_size: int = parameter(0)
    global_batch_size: int = parameter(0)
    data: str = parameter("")
    evaluation_data: str = parameter("")
    settings: dict[str, Any] = parameter({})
    world_size: int = parameter(1, "processes of each training", flags=("-n", "--world-size"), low=1)
    device: str = parameter("cpu")
    threads: int = parameter(1)


def prepare(case: StabilityCase, world: Any, name: str, options: dict[str, Any]) -> Any:
    raise NotImplementedError


def _final(row: Row) -> float | None:
    return row.result.get(row.case["metric"])


METRICS = (
    Metric("metric", "Final metric", _final, "higher", always=True),
    *(
        Metric(name, title, value_of("result", name), "higher")
        for name, title in (("top1", "Top 1"), ("top5", "Top 5"), ("pair_accuracy", "Pair accuracy"))
    ),
    Metric("final_loss", "Last loss", value_of("result", "final_loss"), "lower"),
    Metric("seconds", "Time to train, s", value_of("result", "seconds"), "lower"),
    SPEED,
)

BENCHMARK = Benchmark(
    "stability",
    "Stability",
    "a recipe trained with several seeds: mean and spread of its metric, time to train, curves",
    StabilityCase,
    METRICS,
    "metric",
    "seed",
    prepare=prepare,
)
