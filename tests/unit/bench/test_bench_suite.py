"""`megaclass bench suite`: how the cases of a published report are scaled to a machine, and the command."""

from dataclasses import replace

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench_words import on_cpu
from megaclass.bench import suite
from megaclass.bench.infer import InferCase
from megaclass.bench.suite import LeftOut, Machine, head_bytes, in_memory, in_time, on_devices
from megaclass.bench.sweep import keys_of
from megaclass.bench.train import TrainCase, step_flops
from megaclass.cli.bench import options_of_suite
from megaclass.errors import UserError
from megaclass.results import published
from megaclass.results.published import Cell, Column, Report, Table
from megaclass.results.published import Machine as PublishedMachine
from megaclass.results.rows import read_rows

GIB = 2**30
SPEEDS = {"fp32": 4e11, "bf16": 8e11, "tf32": 4e14, "fp16": 8e14}  # of products; steps reach a quarter
CPU = Machine("cpu", 1, 16 * GIB, SPEEDS, 1e10)
GPU = Machine("cuda", 1, 72 * GIB, SPEEDS, 2e12)
FACES = on_cpu(
    TrainCase(
        recipe="faces_r50",
        num_classes=618_000,
        world_size=8,
        precision="fp16",
        global_batch_size=1024,
        iterations=100,
    )
)
PHOTOS = on_cpu(TrainCase(world_size=1, precision="fp16", global_batch_size=256, iterations=100))


@pytest.fixture
def on(monkeypatch):
    """Plan a suite as if on another machine."""

    def plan(machine, *words):
        gpus = machine.devices if machine.device == "cuda" else 0
        monkeypatch.setattr(suite, "device_type", lambda name: machine.device)
        monkeypatch.setattr(Machine, "here", classmethod(lambda cls, device: machine))
        monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
        return suite.plan(options_of_suite([*words]))

    return plan


AS_USUAL, SIMULATE, WHOLE = (
    options_of_suite(["a", "--fit", *word]) for word in ([], ["--simulate-ranks"], ["--whole-job"])
)


def test_ranks_without_devices_are_simulated_or_left_out():
    case = on_devices(FACES, GPU, AS_USUAL)
    assert (case.world_size, case.simulate_ranks, case.ranks) == (1, 8, 8)
    assert case.global_batch_size == 1024 and case.num_classes == 618_000
    photos = replace(PHOTOS, world_size=4)
    with pytest.raises(LeftOut, match="needs 4 devices"):
        on_devices(photos, GPU, AS_USUAL)
    assert on_devices(photos, GPU, SIMULATE).simulate_ranks == 4
    assert on_devices(photos, GPU, WHOLE).ranks == 1
    assert on_devices(photos, replace(GPU, devices=4), AS_USUAL) == photos


def test_a_processor_without_half_precision_takes_what_it_has(monkeypatch):
    for has_bf16, precision in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr("megaclass.heads.precision.cpu_has_bf16", lambda has=has_bf16: has)
        assert on_devices(PHOTOS, CPU, AS_USUAL).precision == precision
    assert on_devices(PHOTOS, GPU, AS_USUAL).precision == "fp16"
    with pytest.raises(LeftOut, match="CUDA"):
        on_devices(replace(PHOTOS, precision="tf32"), CPU, AS_USUAL)


def test_a_head_that_does_not_fit_is_left_out_and_a_batch_is_halved_until_it_fits():
    large = replace(FACES, num_classes=80_000_000, world_size=1, simulate_ranks=8, sample_rate=0.1)
    with pytest.raises(LeftOut, match=r"41\.0 GB"):
        in_memory(large, CPU)
    assert in_memory(large, GPU) and in_memory(replace(large, storage="int8_rowwise"), CPU)
    of_scales = 4 * 10_000_000  # one of each centre
    assert head_bytes(replace(large, storage="int8_rowwise")) == head_bytes(large) / 8 + of_scales
    assert head_bytes(replace(large, parallelism="data")) == 8 * head_bytes(large)
    small = in_memory(replace(PHOTOS, global_batch_size=4096), CPU)
    assert 2 <= small.global_batch_size < 4096 and 4096 % small.global_batch_size == 0
    assert in_memory(PHOTOS, replace(CPU, memory_bytes=1000 * GIB)) == PHOTOS


@pytest.mark.long
@settings(deadline=None)
@given(seconds=st.floats(12, 1e5), batch=st.integers(2, 10_000), speed=st.floats(1e9, 1e15))
def test_a_case_takes_the_time_it_is_given_or_is_as_small_as_can_be(seconds, batch, speed):
    asked = replace(PHOTOS, precision="bf16", global_batch_size=batch)
    machine = replace(CPU, product_flops={"bf16": 4 * speed})
    case = in_time(asked, machine, seconds)
    epoch_s = 2 * step_flops(case) / speed  # two epochs of a step
    left_s = max(seconds - 7.0, 1.0)
    assert case.global_batch_size <= batch and 5 <= case.iterations <= 100
    assert case.iterations == 5 or case.iterations * epoch_s <= left_s
    assert case.global_batch_size <= 3 or 5 * epoch_s <= left_s
    assert case.global_batch_size == batch or 3 * 5 * epoch_s > left_s  # not halved for nothing


def test_a_large_head_takes_time_and_a_batch_of_an_inference_is_what_it_is():
    small = replace(FACES, world_size=1, simulate_ranks=8, precision="bf16")
    large = replace(small, num_classes=20_000_000)
    found = [in_time(case, CPU, 120.0) for case in (small, large)]
    assert found[0].global_batch_size * found[0].iterations > found[1].global_batch_size * found[1].iterations
    case = on_cpu(InferCase(batch_size=256, precision="fp32", iterations=500))
    with pytest.raises(LeftOut, match="would take"):
        in_time(case, CPU, 20.0)
    fitted = in_time(case, CPU, 2000.0)
    assert fitted.batch_size == 256 and fitted.iterations < 500


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in published.names() if published.load(name).cases()])
def test_every_case_of_a_report_is_measured_or_left_out_with_a_reason(on, name):
    report = published.load(name)
    plan = on(CPU, name, "--fit")
    assert len(plan) == len(report.cases())
    assert any(not one.skip for one in plan)
    for one, (benchmark, case) in zip(plan, report.cases(), strict=True):
        asked = (one.original_case or one.case).parameters()
        assert one.case.benchmark == benchmark and one.suite == name
        assert case.items() <= asked.items()  # by which the report finds its row
        assert one.skip or not one.case.why_skipped(0)


def test_cases_that_scaling_makes_the_same_are_measured_once(on):
    plan = [one for one in on(CPU, "arcface-a100", "--fit") if not one.skip]
    assert len({str(replace(one.case, iterations=1)) for one in plan}) == len(plan) > 1
    assert any("the same as a case before it" in one.skip for one in on(CPU, "arcface-a100", "--fit"))


def test_without_fit_the_cases_are_as_published(on):
    plan = on(GPU, "arcface-a100")
    assert {one.case.world_size for one in plan} == {8} and not any(one.original_case for one in plan)
    assert all("8 processes need as many GPUs" in one.skip for one in plan)
    eight = on(replace(GPU, devices=8), "arcface-a100")
    assert not any(one.skip for one in eight) and [one.case.num_classes for one in eight][-1] == 80_000_000
    plan = on(replace(GPU, devices=16), "resnet50-nvidia")
    assert {(one.case.iterations, one.case.epochs, one.case.warmup) for one in plan} == {(500, 2, 1)}
    assert {one.case.engine for one in plan if one.case.benchmark == "infer"} == {"eager"}


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["arcface-a1000"], "arcface-a100"),
        (["resnet50-mlperf"], "bench stability"),
        (["arcface-a100", "--minutes", "0"], "--minutes"),
        (["arcface-a100", "--fit", "--whole-job", "--simulate-ranks"], "--whole-job"),
        (["arcface-a100", "--whole-job"], "--fit"),
        (["arcface-a100", "--data-root", "nowhere"], "nowhere"),
        (["arcface-a100", "--storage", "int4"], "int8"),
        (["resnet50-nvidia", "--engine", "tensorflow"], "eager"),
    ],
)
def test_what_makes_no_sense(words, part):
    with pytest.raises(UserError) as caught:
        suite.plan(options_of_suite(words))
    assert part in str(caught.value) and "\n" not in str(caught.value)


def test_another_time_is_another_question(on):
    short, long = (on(CPU, "resnet50-abci", "--fit", "--minutes", minutes) for minutes in ("8", "60"))
    asked = [{key for one in plan for key in keys_of(one)} for plan in (short, long)]
    assert not asked[0] & asked[1]


@pytest.mark.process
def test_the_machine_is_measured_by_a_process_that_ends():
    machine = Machine.here("cpu")
    assert machine.devices == 1 and machine.memory_bytes > GIB / 4
    assert machine.product_flops["fp32"] > 1e8 and machine.bytes_per_second > 1e8
    assert not [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]


def small_report(name):
    """Training on 8 devices, and inferences, of a network of a few layers."""
    shared = {"recipe": "glyphs", "image_size": 16}
    columns = [
        Column("GPUs", "label"),
        Column("Throughput", "value", "samples_per_second", "img/s"),
    ]

    def table(kind, cases):
        label = Cell("1", None, {}, None, "big")
        rows = [[label, Cell("100", 100.0, case, None, "big")] for case in cases]
        return Table(kind, kind, kind, columns, rows)

    train = [shared | {"world_size": 8, "global_batch_size": 64, "num_classes": 50, "precision": "fp32"}]
    infer = [shared | {"batch_size": 2, "precision": kind} for kind in ("fp32", "tf32")]
    return Report(
        name, "A small report", {"project": "none"}, [], {"big": PublishedMachine("8 x big", [])},
        [table("train", train), table("infer", infer)],
    )  # fmt: skip


@pytest.mark.process
def test_a_suite_is_measured_reported_and_goes_on(refused, told, monkeypatch, tmp_path):
    monkeypatch.setattr(published, "load", small_report)
    monkeypatch.setattr(published, "names", lambda: ["small"])
    monkeypatch.setattr(Machine, "here", classmethod(lambda cls, device: replace(CPU, memory_bytes=GIB)))
    words = ["bench", "suite", "small", "--fit", "--minutes", "0.2", "--device", "cpu"]
    assert "CUDA" in told(*words, "--output", "out", "--plan") and not (tmp_path / "out").exists()
    (tmp_path / "notes").write_text("mine")
    refused([*words, "--output", "notes"])

    said = told(*words, "--output", "out")
    rows = read_rows(tmp_path / "out" / "rows.jsonl")
    assert [row.status for row in rows] == ["ok", "ok", "skipped"], [row.reason for row in rows]
    assert {row.suite for row in rows} == {"small"}
    share, latency, left_out = rows
    assert share.case["simulate_ranks"] == 8 and share.asked["world_size"] == 8
    assert latency.benchmark == "infer" and latency.rates["total"] > 0 and not latency.asked
    assert "CUDA" in left_out.reason
    for name in ("report.html", "report.md", "report.csv"):
        assert (tmp_path / "out" / name).stat().st_size > 0 and name in said
    assert "A small report" in (tmp_path / "out" / "report.html").read_text()

    assert "cases are in" in told(*words, "--output", "out")
    assert len(read_rows(tmp_path / "out" / "rows.jsonl")) == 3
