"""``megaclass bench loader``: images to batches, by stage, beside bare decode and DALI."""

from dataclasses import dataclass
from typing import Any, ClassVar

from megaclass.bench.case import MEMORY, SPEED, Benchmark, Case, Metric, parameter, value_of

WORKLOADS = ("faces", "imagenet", "imagenet-eval")


@dataclass(frozen=True, kw_only=True)
class LoaderCase(Case):
    """One measurement of a loader: passes of ``batches`` batches by ``threads`` threads."""

    benchmark: ClassVar[str] = "loader"
    world_size: ClassVar[int] = 1

    workload: str = parameter(
        "faces",
        "faces (112 px, flip), imagenet (random crop 224), imagenet-eval",
        sweeps=True,
        choices=WORKLOADS,
    )
    source: str = parameter("records")
    batch_size: int = parameter(128, "images of a batch", low=1)
    batches: int = parameter(0, "batches of a pass; 0: as many as take about a second", low=0)
    threads: int = parameter(0, "of a loader; 0: as many as there are cores", low=0)
    prefetch: int = parameter(2, "batches that are made ahead", low=1)
    device: str = parameter("auto", "auto, cpu or cuda: where our loader delivers the batches")
    rounds: int = parameter(10, "timed passes of every loader", low=1, effort=True)
    warmup: int = parameter(1, "passes before them that are not timed", low=0, effort=True)
    seed: int = parameter(0, "of images, order and augmentation", low=0)

    @property
    def steps(self) -> int:
        """Timed turns."""
        return self.rounds


def prepare(case: LoaderCase, world: Any, name: str, options: dict[str, Any]) -> Any:
    raise NotImplementedError


STAGES = ("read", "decode", "augment", "assemble", "copy")

METRICS = (
    SPEED,
    Metric(
        "samples_per_cpu_second", "Images a CPU second", value_of("work", "samples_per_cpu_second"), "higher"
    ),
    Metric("cpu_us", "CPU µs an image", value_of("work", "cpu_us"), "lower"),
    *(
        Metric(f"cpu_us_{name}", f"{name}, CPU µs", value_of("work", f"cpu_us_{name}"), "lower")
        for name in STAGES
    ),
    MEMORY,
)

BENCHMARK = Benchmark(
    "loader",
    "Loader",
    "images to batches, by stage, beside bare decode and DALI",
    LoaderCase,
    METRICS,
    "samples_per_cpu_second",
    prepare=prepare,
)
