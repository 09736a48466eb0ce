"""``megaclass bench suite``: every case of a published report, as published or scaled down to this machine.

What makes a row what it is stays: backbone, image size, classes, sample rate, parallelism, and the batch size of an
inference. What gives way with ``--fit``: the precision, where the device lacks it; ranks beyond the devices, of which
one process then does one rank's share; the batch of a training step, halved until it fits memory and time; and the
number of steps.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from megaclass.bench import infer
from megaclass.bench.arguments import device_type
from megaclass.bench.case import Flag, Implementation, Planned
from megaclass.bench.infer import ENGINES, InferCase, forward_flops
from megaclass.bench.processes import Ended, Processes
from megaclass.bench.recipes import SYNTHETIC, backbone_cost, config_of, open_images
from megaclass.bench.sweep import planned, resolved
from megaclass.bench.train import TrainCase, step_flops
from megaclass.errors import UserError, lookup
from megaclass.results import published

# Where a report does not say it: images of a step on each device.
DEVICE_BATCH = 256
# As NVIDIA's reports were taken: 500 steps an epoch, three of them, the first a warm-up. Others do not say.
_EPOCHS = {"resnet50-nvidia": (500, 2, 1)}
_OTHER_EPOCHS = (100, 2, 1)
_LEAST_LOCAL_BATCH = 2  # batch norm needs two images
_LEAST_STEPS = 5  # of an epoch
_HALF_KEPT = 0.6  # of the bytes that a backward pass keeps, in 16 bits: statistics and the like stay in fp32
_GIB = 2**30
_DRAWN_BYTES_PER_S = {"cpu": 5e8, "cuda": 5e10}  # of centres that are drawn, and momentum that is cleared
# Of the speed of a large product, what whole steps of convolutional networks reach: low, so that a plan is kept.
_REACHED = {"cpu": 0.25, "cuda": 0.25}
_START_S = {"cpu": 7.0, "cuda": 20.0}
# Of its memory a device can give to one case.
_USABLE = {"cpu": 0.8, "cuda": 0.9}
_PRECISIONS = {"cpu": ("fp32", "bf16"), "cuda": ("fp32", "tf32", "bf16", "fp16")}
_SIDE = {"cpu": 1024, "cuda": 8192}
_PROBE = (sys.executable, "-P", "-m", "megaclass.bench.suite")


# -- the machine -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Machine:
    """device: ``cpu``, which is one device with all its cores, or ``cuda``. memory_bytes: of each device, usable.
    product_flops: operations a second of a large product, by precision. bytes_per_second: of a large copy."""

    device: str
    devices: int
    memory_bytes: float
    product_flops: dict[str, float]
    bytes_per_second: float

    @classmethod
    def here(cls, device: str) -> "Machine":
        """Measured by a process that ends: what it takes of the memory is there again for the cases."""
        probe = Processes(1, {}, _PROBE)
        try:
            (found,) = probe.ask({"device": device}, timeout_s=300.0)
        except Ended as ended:
            raise UserError(f"--fit: this machine could not be measured ({ended})") from None
        finally:
            probe.close()
        memory_bytes = _USABLE[device] * found.pop("memory_bytes")
        return cls(device=device, memory_bytes=memory_bytes, **found)

    @property
    def start_s(self) -> float:
        """That the processes of a case take before their first step."""
        return _START_S[self.device]

    @property
    def half(self) -> str:
        """The 16-bit precision that it computes in where fp16 was published."""
        if self.device == "cuda":
            return "fp16"
        from megaclass.train.arithmetic import cpu_has_bf16

        return "bf16" if cpu_has_bf16() else "fp32"

    def flops_per_second(self, precision: str) -> float:
        """Of training steps and forward passes, roughly."""
        return self.product_flops[precision] * _REACHED[self.device]


def probed(device: str) -> dict[str, Any]:
    """In a process that ends: what :class:`Machine` is made from; ``memory_bytes`` is what is free now."""
    import torch

    from megaclass.bench import limits
    from megaclass.results import machine

    on_gpu = device == "cuda"
    devices = torch.cuda.device_count() if on_gpu else 1
    free = [torch.cuda.mem_get_info(i)[0] for i in range(devices)] if on_gpu else [machine.available_memory()]
    where = torch.device(device)
    return {
        "devices": devices,
        "memory_bytes": min(free),
        "product_flops": {
            name: limits.product_flops(name, where, _SIDE[device]) for name in _PRECISIONS[device]
        },
        "bytes_per_second": limits.copy_bytes_per_second(where),
    }


# -- what fits ---------------------------------------------------------------------------------------


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
    if simulate or config_of(case).head.kind == "margin":
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
        flops = step_flops(case) / case.simulate_ranks / case.global_batch_size
        image_s = flops / machine.flops_per_second(case.precision)
        least_s = left_s / epochs / _LEAST_STEPS
        case = _halved(case, lambda one: one.global_batch_size * image_s + moved_s <= least_s)
        step_s = case.global_batch_size * image_s + moved_s
    iterations = min(case.iterations, max(_LEAST_STEPS, int(left_s / step_s / epochs)))
    return Fitted(replace(case, iterations=iterations))


def head_bytes(case: TrainCase) -> float:
    """Of the centres and their optimizer's state on each rank."""
    from megaclass.heads.storage import Storage

    config = config_of(case)
    dim = backbone_cost(config).embedding_dim
    if config.head.kind == "linear":
        return 3 * 4 * case.num_classes * dim  # weight, gradient, momentum
    storage = Storage.named(case.storage)
    held = case.num_classes / (case.ranks if case.parallelism == "model" else 1)
    return held * (2 if storage.momentum else 1) * dim * storage.dtype.itemsize


def _halved(case: TrainCase, fits: Callable[[TrainCase], bool]) -> TrainCase:
    """The case with its batch halved until it fits, or can be halved no more."""
    local = case.global_batch_size // case.ranks
    while not fits(case) and local >= 2 * _LEAST_LOCAL_BATCH:
        local //= 2
        case = replace(case, global_batch_size=local * case.ranks)
    return case


# -- the command ----------------------------------------------------------------------------------------


FLAGS = (
    Flag("", "of the suite; without it they are listed", ("name",)),
    Flag(
        False,
        "scale the cases down to this machine and to --minutes, and leave out what cannot be measured here",
        ("--fit",),
    ),
    Flag(
        False,
        "one process does one rank's share of a job of several devices (with --fit margin heads do so anyway where "
        "devices are missing)",
        ("--simulate-ranks",),
    ),
    Flag(False, "one device does the work of all devices of a job, instead", ("--whole-job",)),
    Flag(False, "show what would be measured, and why what not, and measure nothing", ("--plan",)),
    Flag(8.0, "that all cases together may take, roughly, with --fit", ("--minutes",)),
    Flag("", "cases of one benchmark: train or infer", ("--only",)),
    Flag("eager", "of inference: eager, compiled, cudagraph or onnx", ("--engine",)),
    Flag("", "of centres and momentum: fp32, bf16 or int8_rowwise (default: the recipe's)", ("--storage",)),
    Flag(
        SYNTHETIC,
        "record set, folder of class folders, or a directory with train/ and val/",
        ("--data-root",),
    ),
    Flag(
        0,
        "steps of an epoch; 0: 500 as NVIDIA's reports, 100 elsewhere, with --fit as time allows",
        ("--iterations",),
    ),
    Flag("auto", "auto, cpu or cuda", ("--device",)),
    Flag(0, "of each process on a CPU; 0: its share of the cores", ("--threads",)),
    Flag(0, "of weights, images and labels", ("--seed",)),
)


def plan(options: Any) -> list[Planned]:
    """The cases of the suite ``options.name``, scaled where ``options.fit`` says so. UserError: options that make no
    sense."""
    report = published.load(options.name)
    if not options.minutes > 0:
        raise UserError(f"--minutes: {options.minutes:g} is not a positive number")
    if options.whole_job and options.simulate_ranks:
        raise UserError(
            "--whole-job and --simulate-ranks say two things about ranks without a device: give one"
        )
    if options.data_root != SYNTHETIC and options.only != "train":
        open_images(options.data_root)
    lookup(dict.fromkeys(ENGINES), options.engine, "engine")
    device = device_type(options.device)
    asked = [_case(benchmark, case, options, device) for benchmark, case in report.cases()]
    if options.only:
        lookup(dict.fromkeys(case.benchmark for case in asked), options.only, "--only")
        asked = [case for case in asked if case.benchmark == options.only]
    if options.fit:
        fitted = _fitted(asked, Machine.here(device), options)
    else:
        fitted = [_on_one_device(case, options) for case in asked]
    ways = {
        "whole_job": options.whole_job,
        "simulate_ranks": options.simulate_ranks,
        "minutes": options.minutes if options.fit else 0,
    }
    found = []
    for before, one in zip(asked, fitted, strict=True):
        case = resolved(replace(one.case, threads=options.threads), device)
        before = replace(before, threads=case.threads)
        who = infer.implementations(case, options) if isinstance(case, InferCase) else (Implementation(),)
        original = before if case != before else None
        there = planned(case, who, original_case=original, suite=options.name, identity=ways)
        found.append(replace(there, skip=one.skip or there.skip))
    return found


def _case(benchmark: str, given: dict[str, Any], options: Any, device: str) -> Any:
    """The case that the report names, as this project measures it."""
    iterations, epochs, warmup = _EPOCHS.get(options.name, _OTHER_EPOCHS)
    common = {
        "iterations": options.iterations or iterations,
        "epochs": epochs,
        "warmup": warmup,
        "seed": options.seed,
        "data": options.data_root,
    }
    if benchmark == "infer":
        return resolved(InferCase(**given, **common, engine=options.engine), device)
    batch = {"global_batch_size": DEVICE_BATCH * given.get("world_size", 1)}
    storage = {"storage": options.storage} if options.storage else {}
    return resolved(TrainCase(**batch | given, **common, **storage), device)


def _on_one_device(case: Any, options: Any) -> Fitted:
    """What the flags about ranks say, on any machine."""
    if isinstance(case, TrainCase) and options.simulate_ranks:
        return Fitted(replace(case, world_size=1, simulate_ranks=case.world_size))
    if isinstance(case, TrainCase) and options.whole_job:
        return Fitted(replace(case, world_size=1))
    return Fitted(case)


def _fitted(asked: list[Any], machine: Machine, options: Any) -> list[Fitted]:
    """Every case as this machine can measure it, in ``options.minutes`` for all of them together."""
    found = [Fitted(case) for case in asked]
    rules = [
        partial(on_devices, machine=machine, simulate=options.simulate_ranks, whole_job=options.whole_job),
        partial(in_memory, machine=machine),
    ]
    for rule in rules:
        found = [one if one.skip else rule(one.case) for one in found]
    # Those that are too slow leave their time to the others.
    while True:
        kept = sum(not one.skip for one in found)
        seconds = 60 * options.minutes / max(kept, 1)
        timed = [one if one.skip else in_time(one.case, machine, seconds) for one in found]
        if sum(not one.skip for one in timed) == kept:
            return timed
        slowest = max(
            (i for i, one in enumerate(timed) if one.skip and not found[i].skip),
            key=lambda i: found[i].case.batch_size,
        )
        found[slowest] = timed[slowest]


if __name__ == "__main__":
    print(json.dumps(probed(json.loads(sys.stdin.readline())["device"])), flush=True)
