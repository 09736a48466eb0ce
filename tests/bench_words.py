"""What words after `megaclass bench` are planned as."""

from megaclass.bench import BENCHMARKS
from megaclass.bench.sweep import plan, resolved
from megaclass.cli.bench import options_of


def planned(name, *words, device="cpu"):
    return plan(BENCHMARKS[name], options_of(BENCHMARKS[name], [*map(str, words), "--device", device]))


def cases(name, *words):
    return [one.case for one in planned(name, *words)]


def on_cpu(case):
    """As a plan has it."""
    return resolved(case, "cpu")
