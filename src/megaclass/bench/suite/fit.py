"""Scales the cases of a suite down to what a machine holds, or says why it cannot measure them.

What makes a row what it is stays: backbone, image size, classes, sample rate, parallelism, and the batch size of an
inference. What gives way: the precision, where the device lacks it; ranks beyond the devices, of which one process then
does one rank's share; the batch of a training step, halved until it fits memory and time; and the number of steps.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from megaclass.bench.cost import backbone_cost
from megaclass.bench.infer.cases import InferCase
from megaclass.bench.infer.plan import forward_flops
from megaclass.bench.suite.machine import Machine
from megaclass.bench.train.cases import TrainCase, config_of
from megaclass.bench.train.cost import head_bytes, is_linear, step_flops

_LEAST_LOCAL_BATCH = 2  # batch norm needs two images
_LEAST_STEPS = 5  # of an epoch
_HALF_KEPT = 0.6  # of the bytes that a backward pass keeps, in 16 bits: statistics and the like stay in fp32
_GIB = 2**30
_DRAWN_BYTES_PER_S = {"cpu": 5e8, "cuda": 5e10}  # of centres that are drawn, and momentum that is cleared


@dataclass(frozen=True)
class Fitted:
    """``case`` can be measured here, unless ``skip`` says why not."""

    case: Any
    skip: str = ""


def on_devices(case: Any, machine: Machine, simulate: bool, whole_job: bool) -> Fitted:
    """The case in a precision of this machine and on its devices.

    simulate: ranks that there are no devices for are simulated, by one process, whatever the head. whole_job: one
    device does the work of all ranks instead.
    """
    if machine.device == "cpu" and case.precision == "tf32":
        return Fitted(case, "tf32 exists on CUDA only")
    if machine.device == "cpu":
        case = replace(
            case, tf32=False, precision=machine.half if case.precision == "fp16" else case.precision
        )
    if isinstance(case, InferCase) or case.world_size <= machine.devices:
        return Fitted(case)
    if whole_job:
        return Fitted(replace(case, world_size=1))
    if simulate or not is_linear(case):
        return Fitted(replace(case, world_size=1, simulate_ranks=case.world_size))
    return Fitted(
        case,
        f"needs {case.world_size} devices, this machine has {machine.devices}; --simulate-ranks does one rank's share, "
        "without the exchange of gradients",
    )


def in_memory(case: Any, machine: Machine) -> Fitted:
    """The case with a batch whose activations fit beside the head, which has to fit as it is."""
    if isinstance(case, InferCase):
        return Fitted(case)
    head, cost = head_bytes(case), backbone_cost(config_of(case))
    model = 4 * 4 * cost.parameters  # weights, gradients, momentum, and what is gathered of them
    if head + model > machine.memory_bytes:
        return Fitted(
            case,
            f"{head / _GIB:,.1f} GiB of centres and momentum do not fit into the {machine.memory_bytes / _GIB:,.1f} "
            "GiB that a case can have here; --storage int8_rowwise takes an eighth of what fp32 takes",
        )
    kept = cost.kept_bytes * (_HALF_KEPT if case.precision in ("fp16", "bf16") else 1.0)
    room = machine.memory_bytes - head - model
    return Fitted(_halved(case, lambda one: one.global_batch_size // one.ranks * kept <= room))


def in_time(case: Any, machine: Machine, seconds: float) -> Fitted:
    """The case with a batch and a number of steps that take about ``seconds``, starting its processes included."""
    epochs = case.epochs + case.warmup
    left_s = max(seconds - machine.start_s, 1.0)
    if isinstance(case, InferCase):
        step_s = forward_flops(case) / machine.flops_per_second(case.precision)
        if step_s * epochs * _LEAST_STEPS > left_s:
            return Fitted(
                case,
                f"a batch would take about {step_s:.2g} s, and {left_s:.2g} s are left for each case; see --minutes",
            )
    else:
        held = head_bytes(case)
        left_s = max(left_s - held / _DRAWN_BYTES_PER_S[machine.device], 1.0)
        # The least that a step moves of the head: pass 1 reads centres, pass 2 reads and writes them and the momentum.
        moved_s = 2.5 * held * case.sample_rate / machine.bytes_per_second
        case = _halved(case, lambda one: (_step_s(one, machine) + moved_s) * epochs * _LEAST_STEPS <= left_s)
        step_s = _step_s(case, machine) + moved_s
    iterations = min(case.iterations, max(_LEAST_STEPS, int(left_s / step_s / epochs)))
    return Fitted(replace(case, iterations=iterations))


def _halved(case: TrainCase, fits: Callable[[TrainCase], bool]) -> TrainCase:
    """The case with its batch halved until it fits, or can be halved no more."""
    local = case.global_batch_size // case.ranks
    while not fits(case) and local >= 2 * _LEAST_LOCAL_BATCH:
        local //= 2
        case = replace(case, global_batch_size=local * case.ranks)
    return case


def _step_s(case: TrainCase, machine: Machine) -> float:
    return step_flops(case) / case.simulate_ranks / machine.flops_per_second(case.precision)
