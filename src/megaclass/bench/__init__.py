"""Measurements: cases, each in processes of its own, that become the rows of :mod:`megaclass.results.rows`.

A benchmark declares itself in one file here, see :mod:`megaclass.bench.case`, and stands in ``BENCHMARKS`` below. A
new one is a file and a line.
"""

from megaclass.bench import head, infer, loader, stability, train
from megaclass.bench.case import Benchmark

BENCHMARKS: dict[str, Benchmark] = {
    module.BENCHMARK.name: module.BENCHMARK for module in (head, train, infer, loader, stability)
}
