"""The benchmarks by name."""

from megaclass.bench.benchmark import Benchmark
from megaclass.bench.collectives.benchmark import CollectivesBenchmark
from megaclass.bench.head.benchmark import HeadBenchmark
from megaclass.bench.infer.benchmark import InferBenchmark
from megaclass.bench.loader.benchmark import LoaderBenchmark
from megaclass.bench.train.benchmark import TrainBenchmark

BENCHMARKS: dict[str, Benchmark] = {
    "collectives": CollectivesBenchmark(),
    "head": HeadBenchmark(),
    "infer": InferBenchmark(),
    "loader": LoaderBenchmark(),
    "train": TrainBenchmark(),
}
