"""The benchmarks by name."""

from megaclass.bench.benchmark import Benchmark
from megaclass.bench.head.benchmark import HeadBenchmark
from megaclass.bench.loader.benchmark import LoaderBenchmark

BENCHMARKS: dict[str, Benchmark] = {"head": HeadBenchmark(), "loader": LoaderBenchmark()}
