"""Where the time of a training step goes, kernel by kernel, into a text file:

    python benchmarks/profile_step.py --recipe faces_r50 --num-classes 618K -b 1024 --device cuda --output profile.txt

Takes the options of ``megaclass bench train`` that name one case. After the warm-up epochs a few steps run under
torch.profiler; its table follows, by time on the device, and shares of it by what the kernels do.
"""

import re
import sys
from pathlib import Path
from typing import Any

import torch
from megaclass.bench.old_train.cases import TrainCase
from megaclass.bench.old_train.contender import Training
from megaclass.bench.old_train.plan import planned
from megaclass.cli.bench.train import options_of_train, settings_of
from torch.profiler import ProfilerActivity, profile

from megaclass.cli.parsing import make_parser, parse_with_settings
from megaclass.errors import UserError
from megaclass.parallel import groups
from megaclass.results import machine as environment
from megaclass.train import arithmetic

ROWS = 40
# What a kernel does, by its name: the first that matches.
PARTS = (
    ("head", r"(pass_one|pass_two|catch_up|unit|inverse|mark)_kernel"),
    ("convolution", r"conv|implicit|xmma|dgrad|wgrad|fprop|cudnn.*gemm|mkldnn"),
    ("matrix product", r"gemm|cutlass|cublas|addmm|aten::mm|nvjet"),
    ("norm", r"norm|bn_"),
    ("optimizer", r"multi_tensor|foreach|sgd"),
    ("copy, cast", r"copy|memcpy|memset|_to_copy|fill"),
    ("element by element", r"elementwise|triton|relu|add|mul|vectorized"),
)


def main(words: list[str]) -> None:
    parser = make_parser("profile_step [options of bench train]", "Profile a training step.")
    options_of_train(parser)
    options, given = parse_with_settings(parser, words)
    options.settings = settings_of(given)
    cases = [one.case for one in planned(options)]
    if len(cases) != 1 or not options.output:
        raise UserError("profile_step takes one case, and --output FILE.txt")
    Path(options.output).write_text(profiled(cases[0]))
    print(options.output)


def profiled(case: TrainCase) -> str:
    arithmetic.use_threads(case.threads)
    on_gpu = case.device == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with groups.started(case.device) as world:
        training = Training(case, world)
        for _ in range(case.warmup):
            training.epoch(lambda done: None)
        with profile(activities=activities) as found:
            training.epoch(lambda done: None)
    averages = found.key_averages()
    table = averages.table(sort_by=f"self_{'device' if on_gpu else 'cpu'}_time_total", row_limit=ROWS)
    machine = environment.snapshot()
    heading = [
        case.text,
        f"{machine['gpu'] or machine['cpu']}, PyTorch {machine['pytorch']}, revision {machine['revision']}",
        f"{case.iterations} steps after {case.warmup} epochs of as many",
    ]
    return "\n".join([*heading, "", *shares(averages, on_gpu), "", table])


def shares(averages: Any, on_gpu: bool) -> list[str]:
    """The part of the time on the device (on a CPU: of operators themselves) by what takes it."""
    times: dict[str, float] = {}
    for event in averages:
        if on_gpu and (event.device_type != torch.autograd.DeviceType.CUDA or event.is_user_annotation):
            continue  # an operator or a range of some, whose kernels are events of their own
        spent = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        part = next((name for name, words in PARTS if re.search(words, event.key, re.IGNORECASE)), "other")
        times[part] = times.get(part, 0.0) + spent
    whole = sum(times.values()) or 1.0
    return [f"{spent / whole:6.1%}  {name}" for name, spent in sorted(times.items(), key=lambda one: -one[1])]


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
