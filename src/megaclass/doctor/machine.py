"""What a machine has for a training: probes of two seconds or less each."""

import contextlib
import functools
import os
import platform
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import simplejpeg
import torch

from megaclass import __version__
from megaclass.bench.processes import Ended
from megaclass.data.decode import decode
from megaclass.doctor.findings import FAIL, OK, WARN, Finding, in_bytes, judged, look
from megaclass.doctor.ranks import BYTES, exchange
from megaclass.results.machine import available_memory, snapshot, usable_cores
from megaclass.train.arithmetic import cpu_has_bf16

TORCH = ((2, 11), (2, 13))  # the oldest and the newest that are supported, as in pyproject.toml
_LIMIT_S = 10.0  # of a probe
_DISK_BYTES, _DISK_S = 64 << 20, 1.0  # written at most, in this time at most
_DECODE_S = 0.5
# Of NVML's reasons for a lower clock those that are no choice: slowed by hardware, its heat, or its power supply.
_SLOWED = {0x08: "hardware slowdown", 0x20: "heat", 0x40: "heat (hardware)", 0x80: "power brake"}


def findings(folder: Path) -> Iterator[Finding]:
    """Look at this machine. ``folder``: where a run would write; a file in it is made, and removed."""
    facts: dict[str, Any] = {}  # of results.machine
    for what, probe in _PROBES.items():
        yield from look(what, _LIMIT_S, functools.partial(probe, facts))
    yield from look("disk", _LIMIT_S, functools.partial(_disk, folder))


def _software(facts: dict[str, Any]) -> Iterator[Finding]:
    facts |= snapshot()
    yield Finding(OK, "machine", f"{facts['cpu'] or facts['system']}; {facts['os']}")
    yield Finding(OK, "software", f"megaclass {__version__}, Python {platform.python_version()}")
    found = tuple(map(int, torch.__version__.split(".")[:2]))
    wanted = "install PyTorch {}.{} to {}.{}".format(*TORCH[0], *TORCH[1])
    capability = torch.backends.cpu.get_cpu_capability()
    features = ", ".join(name for name in facts["cpu_features"] or () if "bf16" in name)
    yield judged(
        "PyTorch",
        f"{torch.__version__}; CPU: {capability}, {f'bf16 by {features}' if cpu_has_bf16() else 'fp32, no bf16'}",
        (found < TORCH[0], FAIL, wanted),
        (found > TORCH[1], WARN, f"newer than what is tested; {wanted}"),
        (capability == "DEFAULT", WARN, "a CPU without AVX2 trains slowly"),
    )


def _threads(facts: dict[str, Any]) -> Iterator[Finding]:
    usable, asked, load = usable_cores(), os.environ.get("OMP_NUM_THREADS", ""), psutil.getloadavg()[0]
    yield judged(
        "CPU threads",
        f"{usable} of {psutil.cpu_count()} usable, OMP_NUM_THREADS {asked or 'not set'}, load {load:.1f}",
        (asked.isdigit() and int(asked) > usable, WARN, f"set OMP_NUM_THREADS to {usable} or less"),
        (load > usable / 2 + 1, WARN, "other programs compute here: what is measured below is too low"),
    )


def _memory(facts: dict[str, Any]) -> Iterator[Finding]:
    free, total = available_memory(), (facts.get("memory_mb") or 0) << 20
    told = f"{in_bytes(free)} free of {in_bytes(total)}"
    yield judged(
        "memory", told, (free < 2e9, WARN, "end other programs: the smallest recipes take a GB or two")
    )
    shared = shutil.disk_usage("/dev/shm").free
    advice = "nccl and DALI exchange data there: docker run --shm-size 8g"
    yield judged("/dev/shm", f"{in_bytes(shared)} free", (shared < 1 << 30, WARN, advice))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield judged("open files", f"up to {soft:,}", (0 <= soft < 1024, WARN, f"ulimit -n {min(hard, 65536)}"))


def _gpus(facts: dict[str, Any]) -> Iterator[Finding]:
    if not torch.cuda.is_available():
        there = (
            f"{facts.get('gpu')}, driver {facts.get('driver')}, but PyTorch {torch.__version__} cannot use it"
        )
        fault = bool(facts.get("gpu_count")), FAIL, "install PyTorch's CUDA build, or a newer driver"
        yield judged("GPU", there if fault[0] else "none", fault)
        return
    for index in range(torch.cuda.device_count()):
        yield _gpu(index, torch.cuda.get_device_properties(index))
        torch.ones(8, device=f"cuda:{index}").sum().item()  # a build without code for this GPU fails here
    try:
        import triton
    except ImportError as error:
        yield Finding(WARN, "Triton", str(error), "install triton: without it the head is slower")
    else:
        yield Finding(OK, "Triton", triton.__version__)


def _gpu(index: int, properties: Any) -> Finding:
    told = _by_driver(f"GPU-{properties.uuid}")
    total, (free,), (slowed,) = (
        int(properties.total_memory),
        told.pop("free", (None,)),
        told.pop("slowed", (0,)),
    )
    words = [f"{properties.name}, compute capability {properties.major}.{properties.minor}"]
    words += [f"{'' if free is None else f'{in_bytes(free)} free of '}{in_bytes(total)}"]
    words += [f"{' of '.join(f'{value:.0f}' for value in values)} {unit}" for unit, values in told.items()]
    why = ", ".join(name for bit, name in _SLOWED.items() if slowed & bit)
    return judged(
        f"GPU {index}",
        ", ".join(words),
        (told.get("ECC errors", (0,)) > (0,), FAIL, "its memory is damaged: reset the GPU, or replace it"),
        (why != "", WARN, f"its clock is lowered by {why}: look at cooling and power"),
        (
            free is not None and free < 0.9 * total,
            WARN,
            "another process holds memory there: nvidia-smi names it",
        ),
    )


def _by_driver(uuid: str) -> dict[str, tuple]:
    """What NVML tells of a GPU now, without what it does not: numbers of a unit, and the highest there can be."""
    import pynvml as nvml

    def errors(gpu: Any) -> int:
        return nvml.nvmlDeviceGetTotalEccErrors(
            gpu, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
        )

    asked: dict[str, Callable[[Any], tuple]] = {
        "free": lambda gpu: (nvml.nvmlDeviceGetMemoryInfo(gpu).free,),
        "MHz": lambda gpu: (
            nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM),
            nvml.nvmlDeviceGetMaxClockInfo(gpu, nvml.NVML_CLOCK_SM),
        ),
        "W": lambda gpu: (
            nvml.nvmlDeviceGetPowerUsage(gpu) / 1000,
            nvml.nvmlDeviceGetEnforcedPowerLimit(gpu) / 1000,
        ),
        "ECC errors": lambda gpu: (errors(gpu),),
        "slowed": lambda gpu: (nvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu),),
    }
    found = {}
    with contextlib.suppress(nvml.NVMLError):
        nvml.nvmlInit()
        gpu = nvml.nvmlDeviceGetHandleByUUID(uuid)
        for name, ask in asked.items():
            with contextlib.suppress(nvml.NVMLError):
                found[name] = ask(gpu)
    return found


def _ranks(facts: dict[str, Any]) -> Iterator[Finding]:
    gpus = torch.cuda.device_count()
    for backend, ranks in (("gloo", 2), ("nccl", min(2, gpus)))[: 1 + bool(gpus)]:
        try:
            large_s, small_s = exchange(backend, ranks, _LIMIT_S - 1)
        except Ended as ended:
            advice = f"set {backend.upper()}_SOCKET_IFNAME to a network interface that works"
            yield Finding(FAIL, backend, f"{ranks} processes cannot train together: {ended.reason}", advice)
        else:
            rate, delay = in_bytes(BYTES / large_s), f"{1e6 * small_s:.0f} µs"
            yield Finding(
                OK, backend, f"{ranks} ranks sum {in_bytes(BYTES)} at {rate}/s, one number in {delay}"
            )


def _decoding(facts: dict[str, Any]) -> Iterator[Finding]:
    cores, random, told = usable_cores(), np.random.default_rng(0), []
    for side in (112, 224):  # faces, photographs
        small = random.integers(0, 256, (side // 8, side // 8, 3), np.uint8)  # pure noise is no photograph
        encoded = simplejpeg.encode_jpeg(small.repeat(8, 0).repeat(8, 1), quality=90)
        with ThreadPoolExecutor(cores) as pool:
            told.append(f"{sum(pool.map(_decoded, [encoded] * cores)) / _DECODE_S:,.0f} of {side} px")
    yield Finding(OK, "decoding", f"{' and '.join(told)} a second on {cores} cores")


def _decoded(encoded: bytes) -> int:
    count, end = 0, time.perf_counter() + _DECODE_S
    while time.perf_counter() < end:
        decode(encoded, "")
        count += 1
    return count


def _disk(folder: Path) -> Iterator[Finding]:
    block, written, began = os.urandom(1 << 20), 0, time.perf_counter()
    with tempfile.TemporaryFile(dir=folder) as file:
        while written < _DISK_BYTES and time.perf_counter() - began < _DISK_S:
            written += file.write(block)
        file.flush()
        os.fsync(file.fileno())
        write_s, began = time.perf_counter() - began, time.perf_counter()
        if hasattr(os, "posix_fadvise"):  # or memory would be read
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        while file.read(1 << 20):
            pass
        read_s = time.perf_counter() - began
    free = shutil.disk_usage(folder).free
    write, read = (in_bytes(written / seconds) for seconds in (write_s, read_s))
    told = f"{in_bytes(free)} free, {write}/s written, {read}/s read, in {folder}"
    yield judged("disk", told, (free < 1e9, WARN, "make room: checkpoints will not fit"))


_PROBES: dict[str, Callable[[dict[str, Any]], Iterator[Finding]]] = {
    "software": _software,
    "CPU threads": _threads,
    "memory": _memory,
    "GPU": _gpus,
    "ranks": _ranks,
    "decoding": _decoding,
}
