"""docs/performance.md is what benchmarks/performance.py makes of the committed rows."""

import importlib.util
from pathlib import Path

import pytest

from made_rows import LAPTOP
from megaclass.bench.old_infer.cases import InferCase
from megaclass.bench.old_infer.cases import resolved as resolved_infer
from megaclass.bench.old_train.cases import TrainCase, resolved
from megaclass.results.rows import Row, timed

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "performance.py"
specification = importlib.util.spec_from_file_location("performance_script", SCRIPT)
script = importlib.util.module_from_spec(specification)
specification.loader.exec_module(script)

SMALL = {
    "recipe": "faces_r50",
    "backbone": "convnet",
    "image_size": 16,
    "num_classes": 1000,
    "precision": "bf16",
}


def trained(step_ms, settings=None, implementation="megaclass", group="g", **case):
    made = resolved(TrainCase(**SMALL | {"global_batch_size": 8} | case))
    return Row(
        implementation=implementation,
        benchmark="train",
        status="ok",
        case=made.parameters() | {"settings": settings or {}},
        epochs=[{"total": 1.0}] * 3,
        memory_mb={"reserved": None, "process": 512.0},
        environment=LAPTOP,
        group=group,
        **timed([step_ms, step_ms * 1.01, step_ms * 0.99], 8),
    )


def peaks(flops=1e12, **case):
    return Row(
        implementation="megaclass",
        benchmark="roofline",
        status="ok",
        case={"precision": "bf16", "machine": "here", "threads": 1} | case,
        work={"peak_flops_per_second": flops, "peak_bytes_per_second": 1e10},
        environment=LAPTOP,
    )


def test_the_page_is_what_its_rows_say():
    page = script.PAGE.read_text()
    assert script.render(page, script.committed_rows()) == page, "run python benchmarks/performance.py"


def test_made_again_the_page_stays():
    page = "".join(f"<!-- {name} -->\nold\n<!-- end {name} -->\n" for name in script.PARTS)
    once = script.render(page, [])
    assert "old" not in once and script.NONE_YET in once and script.render(once, []) == once


def test_a_page_without_a_part_is_refused():
    with pytest.raises(ValueError, match="numbers"):
        script.render("<!-- numbers -->", [])


def test_the_headline_is_the_fastest_with_its_machine_and_number():
    rows = [trained(20.0), trained(10.0), trained(5.0, simulate_ranks=2, global_batch_size=16)]
    line = script.numbers([*rows, peaks()])
    assert line.startswith(
        "- **800 images/s**: training of convnet, 16 px, 1K classes, batch 8, bf16; Testchip"
    )
    assert (
        "PyTorch 2.13.0+cpu; median of n = 3 steps" in line and "% of the bound" in line and "\n" not in line
    )


def test_rows_count_against_the_peaks_of_as_many_threads():
    one, other = trained(20.0), trained(20.0, threads=2)
    text = script.fractions([one, other, peaks(threads=2), peaks(5e11, threads=2)])
    assert text.count("megaclass") == 1 and "2 threads: bf16 0.5 TFLOP/s, 10 GB/s (measured)" in text
    assert script.fractions([one, peaks(threads=2)]) == script.NONE_YET


def test_inference_is_there_too():
    case = resolved_infer(
        InferCase(backbone="resnet18", image_size=32, batch_size=4, num_classes=10, precision="bf16")
    )
    row = Row(implementation="megaclass", benchmark="infer", status="ok", case=case.parameters(), environment=LAPTOP,
              **timed([5.0] * 3, 4))  # fmt: skip
    text = script.fractions([row, peaks()])
    assert "infer resnet18, 32 px" in text and "megaclass, eager" in text
    assert "inference of resnet18" in script.numbers([row])


def ablated():
    base = {"speed.compile": "none", "precision.channels_last": True}
    return [
        trained(10.0, base),
        trained(5.0, base | {"speed.compile": "blocks"}),
        trained(12.0, base | {"precision.channels_last": False}),
        Row(implementation="megaclass", benchmark="train", status="oom", reason="no memory", group="g",
            case=trained(1.0).case | {"settings": base | {"speed.compile": "whole"}}),
    ]  # fmt: skip


def test_every_setting_has_its_line_and_failures_stay():
    lines = script.ablation(ablated()).splitlines()
    assert lines[0].endswith("as it is: speed.compile=none, precision.channels_last=true")
    told = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[4:]]
    changed = ["as it is", "speed.compile=blocks", "precision.channels_last=false", "speed.compile=whole"]
    assert [cells[0] for cells in told] == changed
    assert told[0][1:] == ["10", "2.0%", "1", "512", "3"]
    assert told[1][3].startswith("2.00") and told[2][3].startswith("0.83")
    assert told[3][1] == "oom: no memory"


def test_what_did_not_help():
    slower = trained(12.0, ablated()[0].case["settings"] | {"speed.bucket_mb": 5.0})
    told = script.no_help([*ablated(), slower])
    # Not a default that was switched off: that it was slower speaks for the default.
    assert "bucket_mb" in told and "0.83" in told and "compile" not in told and "channels_last" not in told
    assert script.no_help(ablated()[:2]) == "None of them." and script.no_help([]) == script.NONE_YET


def test_others_beside_ours():
    text = script.beside([trained(10.0), trained(30.0, implementation="arcface_torch")])
    assert "3.00 (" in text and text.count("\n| arcface_torch") == 1
    assert script.beside([trained(10.0), trained(30.0, {"a.b": 1})]) == script.NONE_YET


def test_weak_scaling_has_its_prices():
    text = script.weak([trained(10.0), trained(11.0, simulate_ranks=2, global_batch_size=16)])
    assert "| NVLink 4 | 450 |" in text and "| 2 | 11 |" in text and script.NONE_YET not in text
    assert script.NONE_YET in script.weak([trained(10.0)])
