"""Cases, sizes and bandwidths of the collectives, and that a wrong result is seen."""

from types import SimpleNamespace

import pytest
import torch

from megaclass.bench.collectives import contender
from megaclass.bench.collectives.benchmark import CollectivesBenchmark
from megaclass.bench.collectives.cases import ITEM_BYTES, MOST_RANKS, OPS, CollectiveCase, sweep
from megaclass.bench.collectives.contender import Collective
from megaclass.bench.collectives.messages import Messages
from megaclass.bench.collectives.plan import planned, sizes
from megaclass.bench.timing import Stopwatch
from megaclass.errors import UserError
from megaclass.parallel.groups import World
from ranks import run_ranks

CPU = torch.device("cpu")


def test_sizes_are_binary():
    assert sizes("size", "1000,4K, 1.5m,2G") == [1000, 4096, 3 << 19, 2 << 30]


@pytest.mark.parametrize("text", ["", "K", "1.5", "0.0001K", "nan", "infG", "4KB"])
def test_what_is_no_size(text):
    with pytest.raises(UserError, match="--size: "):
        sizes("size", text)


def test_what_does_not_divide_is_rounded_down():
    case = CollectiveCase(op="all_gather", size_bytes=1000, world_size=3, dtype="bfloat16")
    assert (case.elements, case.bytes) == (498, 996) and not case.why_skipped(0)
    assert CollectiveCase(size_bytes=11, world_size=3).why_skipped(0)


def test_more_processes_than_gpus_are_skipped():
    case = CollectiveCase(device="cuda", world_size=4)
    assert case.backend == "nccl" and "there is 1" in case.why_skipped(1) and not case.why_skipped(4)


@pytest.mark.parametrize(
    ("op", "ranks", "bus"),
    [("all_reduce", 4, 1.5), ("all_gather", 4, 0.75), ("reduce_scatter", 8, 0.875), ("broadcast", 8, 1.0)],
)
def test_bandwidths_are_those_of_nccl_tests(op, ranks, bus):
    case = CollectiveCase(op=op, size_bytes=4096, world_size=ranks)
    turns = [[{"ms": 1.0}, {"ms": 2.0}], [{"ms": 2.0}, {"ms": 0.5}], [{"ms": 4.0}, {"ms": 5.0}]]
    found = CollectivesBenchmark().measures("megaclass", case, turns, [])
    assert found["samples_ms"] == [2.0, 2.0, 5.0]  # of the slowest rank
    assert found["work"]["algorithm_bytes_per_second"] == 4096 / 2e-3
    assert found["work"]["bus_bytes_per_second"] == bus * 4096 / 2e-3


def test_the_default_sweep():
    options = SimpleNamespace(op=",".join(OPS), size="", world_size="", dtype="float32", device="cpu", steps=20,
                              warmup=3, threads=0, seed=0, timeout=600.0)  # fmt: skip
    plan = planned(options)
    found = [p.case for p in plan]
    assert len(found) == 32 and {case.world_size for case in found} == {2}
    assert [case.size_bytes for case in found[:8]] == [4096 * 4**k for k in range(8)]
    assert not any(p.skip for p in plan)


@pytest.mark.parametrize("change", [{"world_size": 1}, {"size_bytes": 0}, {"steps": 0}, {"seed": -1}])
def test_what_makes_no_sense(change):
    with pytest.raises(UserError):
        sweep({}, **change)


@pytest.mark.parametrize("dtype", ITEM_BYTES)
def test_sums_of_the_most_ranks_are_exact(dtype):
    messages = Messages(23, MOST_RANKS, getattr(torch, dtype), CPU)
    exact = sum(messages.sent(rank, 3).double() for rank in range(MOST_RANKS))
    assert torch.equal(messages.summed(3).double(), exact)
    assert not torch.equal(messages.summed(3), messages.summed(4))  # of another turn


def one_turn(op, dtype):
    """On each rank what a call has left, and how many calls there were."""
    case = CollectiveCase(op=op, size_bytes=84, dtype=dtype)
    world = World(torch.distributed.get_rank(), 2, CPU)
    benchmark = CollectivesBenchmark()
    collective = benchmark.contender("megaclass", case, world, {})
    answer = benchmark.turn(collective, 1, Stopwatch(CPU), lambda done: None)
    return collective._outputs.clone(), collective.calls, answer["ms"]


def skip_work(op):
    """The operation does nothing on the last rank: is it seen there?"""
    world = World(torch.distributed.get_rank(), 2, CPU)
    collective = Collective(CollectiveCase(op=op, size_bytes=84), world)
    collective.calls, real = 1, contender._OPERATIONS[op]
    collective._make_room()
    collective.prepare(5)
    if world.rank == 1:
        contender._OPERATIONS[op] = lambda output, sent: real(output.clone(), sent)
    collective.call()
    contender._OPERATIONS[op] = real
    try:
        collective.check(5)
    except ArithmeticError as error:
        return str(error)
    return ""


@pytest.mark.dist
@pytest.mark.parametrize(("op", "dtype"), [(op, "float32") for op in OPS] + [("reduce_scatter", "bfloat16")])
def test_every_operation_on_two_ranks(op, dtype):
    (first, calls, ms), (second, other_calls, _) = run_ranks(2, one_turn, op, dtype)
    assert calls == other_calls > 1 and ms > 0
    elements = 20 if dtype == "float32" else 42
    received = elements // 2 if op == "reduce_scatter" else elements
    assert first.shape == second.shape == (calls, received)
    messages = Messages(elements, 2, getattr(torch, dtype), CPU)
    if op == "broadcast":
        assert torch.equal(first[0], messages.sent(0, 1)) and torch.equal(second, first)
    if op == "all_reduce":
        assert torch.equal(first[0], messages.sent(0, 1) + messages.sent(1, 1)) and torch.equal(second, first)
    if op == "all_gather":
        half = elements // 2
        assert torch.equal(first[0], torch.cat([messages.sent(0, 1)[:half], messages.sent(1, 1)[:half]]))
    if op == "reduce_scatter":
        whole = messages.sent(0, 1) + messages.sent(1, 1)
        assert torch.equal(torch.cat([first[0], second[0]]), whole)


@pytest.mark.dist
@pytest.mark.parametrize("op", OPS)
def test_a_wrong_result_is_seen(op):
    first, second = run_ranks(2, skip_work, op)
    assert first == "" and second == "call 0 of turn 5 gave a wrong result on rank 1"
