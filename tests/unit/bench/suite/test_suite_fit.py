"""How the cases of a published report are scaled down to a machine, and what is left out."""

from dataclasses import replace

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megaclass.bench.old_infer.cases import InferCase
from megaclass.bench.old_infer.cases import resolved as resolved_infer
from megaclass.bench.old_suite import plan as suite_plan
from megaclass.bench.old_suite.fit import in_memory, in_time, on_devices
from megaclass.bench.old_suite.machine import Machine
from megaclass.bench.old_suite.plan import planned
from megaclass.bench.sweep import Planned
from megaclass.bench.old_train.cases import TrainCase, resolved
from megaclass.bench.old_train.cost import head_bytes, step_flops
from megaclass.cli import parsing
from megaclass.cli.bench.suite import options_of_suite
from megaclass.errors import UserError
from megaclass.results import published

GIB = 2**30
SPEEDS = {"fp32": 4e11, "bf16": 8e11, "tf32": 4e14, "fp16": 8e14}  # of products; steps reach a quarter
CPU = Machine("cpu", 1, 16 * GIB, SPEEDS, 1e10)
GPU = Machine("cuda", 1, 72 * GIB, SPEEDS, 2e12)
FACES = resolved(
    TrainCase(
        recipe="faces_r50",
        num_classes=618_000,
        world_size=8,
        precision="fp16",
        global_batch_size=1024,
        iterations=100,
    )
)
PHOTOS = resolved(TrainCase(world_size=1, precision="fp16", global_batch_size=256, iterations=100))


def options(*words):
    parser = parsing.make_parser("megaclass bench suite", "")
    options_of_suite(parser)
    return parsing.parse(parser, [*words])


@pytest.fixture
def on(monkeypatch):
    """Plan a suite as if on another machine."""

    def plan(machine, *words):
        monkeypatch.setattr(suite_plan, "device_type", lambda name: machine.device)
        monkeypatch.setattr(Machine, "here", classmethod(lambda cls, device: machine))
        monkeypatch.setattr(
            "torch.cuda.device_count", lambda: machine.devices if machine.device == "cuda" else 0
        )
        return planned(options(*words))

    return plan


def test_ranks_of_a_sharded_head_are_simulated_where_devices_are_missing():
    case = on_devices(FACES, GPU, simulate=False, whole_job=False).case
    assert (case.world_size, case.simulate_ranks, case.ranks) == (1, 8, 8)
    assert case.global_batch_size == 1024 and case.num_classes == 618_000


def test_ranks_of_a_linear_head_are_left_out_unless_told():
    photos = replace(PHOTOS, world_size=4)
    assert "needs 4 devices" in on_devices(photos, GPU, simulate=False, whole_job=False).skip
    assert on_devices(photos, GPU, simulate=True, whole_job=False).case.simulate_ranks == 4
    assert on_devices(photos, GPU, simulate=False, whole_job=True).case.ranks == 1
    assert on_devices(photos, replace(GPU, devices=4), simulate=False, whole_job=False).case == photos


def test_a_processor_without_half_precision_takes_what_it_has(monkeypatch):
    monkeypatch.setattr("megaclass.bench.old_suite.machine.cpu_has_bf16", lambda: True)
    assert on_devices(PHOTOS, CPU, simulate=False, whole_job=False).case.precision == "bf16"
    monkeypatch.setattr("megaclass.bench.old_suite.machine.cpu_has_bf16", lambda: False)
    assert on_devices(PHOTOS, CPU, simulate=False, whole_job=False).case.precision == "fp32"
    assert on_devices(PHOTOS, GPU, simulate=False, whole_job=False).case.precision == "fp16"
    assert "CUDA" in on_devices(replace(PHOTOS, precision="tf32"), CPU, simulate=False, whole_job=False).skip


def test_a_head_that_does_not_fit_is_left_out_and_says_how_large_it_is():
    large = replace(FACES, num_classes=80_000_000, world_size=1, simulate_ranks=8, sample_rate=0.1)
    assert "38.1 GiB" in in_memory(large, CPU).skip
    assert not in_memory(large, GPU).skip
    assert not in_memory(replace(large, storage="int8_rowwise"), CPU).skip
    assert head_bytes(replace(large, storage="int8_rowwise")) == head_bytes(large) / 8
    assert head_bytes(replace(large, parallelism="data")) == 8 * head_bytes(large)


def test_a_batch_is_halved_until_its_activations_fit():
    small = in_memory(replace(PHOTOS, global_batch_size=4096), CPU).case
    assert 2 <= small.global_batch_size < 4096 and 4096 % small.global_batch_size == 0
    assert in_memory(PHOTOS, replace(CPU, memory_bytes=1000 * GIB)).case == PHOTOS


@given(seconds=st.floats(12, 1e5), batch=st.integers(2, 10_000), speed=st.floats(1e9, 1e15))
def test_a_case_takes_the_time_it_is_given_or_is_as_small_as_can_be(seconds, batch, speed):
    asked = replace(PHOTOS, precision="bf16", global_batch_size=batch)
    machine = replace(CPU, product_flops={"bf16": 4 * speed})
    case = in_time(asked, machine, seconds).case
    moved_s = 2.5 * head_bytes(case) / CPU.bytes_per_second
    epoch_s = 2 * (step_flops(case) / speed + moved_s)  # two epochs of a step
    left_s = max(seconds - CPU.start_s - head_bytes(case) / 5e8, 1.0)
    assert case.global_batch_size <= batch and 5 <= case.iterations <= 100
    assert case.iterations == 5 or case.iterations * epoch_s <= left_s
    assert case.global_batch_size <= 3 or 5 * epoch_s <= left_s
    assert case.global_batch_size == batch or 3 * 5 * epoch_s > left_s  # not halved for nothing


def test_a_large_head_takes_time_to_draw_and_to_move():
    small = replace(FACES, world_size=1, simulate_ranks=8, precision="bf16")
    large = replace(small, num_classes=20_000_000)
    found = [in_time(case, CPU, 120.0).case for case in (small, large)]
    assert found[0].global_batch_size * found[0].iterations > found[1].global_batch_size * found[1].iterations


def test_a_batch_of_an_inference_is_what_it_is():
    case = resolved_infer(InferCase(batch_size=256, precision="fp32", iterations=500))
    assert "would take" in in_time(case, CPU, 20.0).skip
    fitted = in_time(case, CPU, 2000.0)
    assert not fitted.skip and fitted.case.batch_size == 256 and fitted.case.iterations < 500


@pytest.mark.parametrize("name", published.names())
def test_every_case_of_a_report_is_measured_or_left_out_with_a_reason(on, name):
    report = published.load(name)
    plan = on(CPU, name, "--fit")
    assert len(plan) == len(report.cases())
    assert any(not one.skip for one in plan)
    for one, (benchmark, case) in zip(plan, report.cases(), strict=True):
        asked = (one.asked or one.case).parameters()
        assert one.case.benchmark == benchmark and one.suite == name
        assert case.items() <= asked.items()  # by which the report finds its row
        assert one.skip or not one.case.why_skipped(0)


def test_without_fit_the_cases_are_as_published(on):
    plan = on(GPU, "arcface-a100")
    assert {one.case.world_size for one in plan} == {8} and all(one.asked is None for one in plan)
    assert all("8 processes need as many GPUs" in one.skip for one in plan)
    eight = on(replace(GPU, devices=8), "arcface-a100")
    assert not any(one.skip for one in eight) and [one.case.num_classes for one in eight][-1] == 80_000_000


def test_one_gpu_holds_what_a_rank_of_eight_holds(on):
    plan = on(GPU, "arcface-a100", "--fit", "--minutes", "60")
    assert not any(one.skip for one in plan)
    assert {(one.case.simulate_ranks, one.case.precision) for one in plan} >= {(8, "fp16"), (8, "tf32")}
    whole = on(GPU, "arcface-a100", "--fit", "--whole-job")
    assert {one.case.ranks for one in whole} == {1}


def test_numbers_of_the_published_commands(on):
    plan = on(replace(GPU, devices=16), "resnet50-nvidia")
    assert {(one.case.iterations, one.case.epochs, one.case.warmup) for one in plan} == {(500, 2, 1)}
    assert {one.case.engine for one in plan if one.case.benchmark == "infer"} == {"eager"}
    only = on(GPU, "resnet50-nvidia", "--only", "infer", "--engine", "compiled")
    assert {(one.case.benchmark, one.case.engine) for one in only} == {("infer", "compiled")}


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["arcface-a10"], "arcface-a100"),
        (["arcface-a100", "--minutes", "0"], "--minutes"),
        (["arcface-a100", "--whole-job", "--simulate-ranks"], "--whole-job"),
        (["arcface-a100", "--data-root", "nowhere"], "nowhere"),
        (["arcface-a100", "--storage", "int4"], "int8"),
        (["arcface-a100", "--only", "head"], "train"),
        (["resnet50-nvidia", "--engine", "tensorrt"], "eager"),
    ],
)
def test_what_makes_no_sense(words, part):
    with pytest.raises(UserError) as caught:
        planned(options(*words))
    assert part in str(caught.value) and "\n" not in str(caught.value)


def test_the_machine_is_measured_by_a_process_that_ends(monkeypatch):
    before = {child.pid for child in psutil.Process().children()}
    machine = Machine.here("cpu")
    assert machine.devices == 1 and machine.memory_bytes > GIB / 4
    assert machine.flops_per_second("fp32") > 1e8 and machine.bytes_per_second > 1e8
    assert {child.pid for child in psutil.Process().children()} == before


def test_another_time_is_another_question(on):
    short, long = (on(CPU, "resnet50-abci", "--fit", "--minutes", minutes) for minutes in ("8", "60"))
    asked = [{key for planned in plan for key in Planned.keys(planned)} for plan in (short, long)]
    assert not asked[0] & asked[1]
