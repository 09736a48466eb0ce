"""What a machine has for a training: probes of a second or less each, and the results of those that take longer."""

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

from megaclass import __version__
from megaclass.bench.processes import Ended
from megaclass.data.decode import decode
from megaclass.doctor.findings import FAIL, OK, WARN, Finding, in_bytes, judged, look
from megaclass.doctor.ranks import exchange
from megaclass.results.machine import available_memory, snapshot, usable_cores
from megaclass.train.arithmetic import cpu_has_bf16

TORCH = ((2, 11), (2, 13))  # the oldest and the newest that are supported, as in pyproject.toml
PYTHON = ("3.11", "3.12")
_LIMIT_S = 10.0  # of a probe
_DISK_BYTES, _DISK_S = 64 << 20, 1.0  # written at most, seconds at most
_DECODE_S = 0.5
_FACES, _PHOTOGRAPHS = 112, 224  # pixels
# Of NVML's reasons for a lower clock those that are no choice: slowed by hardware, its heat, or its power supply.
_SLOWED = {0x08: "hardware slowdown", 0x20: "heat", 0x40: "heat (hardware)", 0x80: "power brake"}


def findings(folder: Path) -> Iterator[Finding]:
    """Look at this machine. ``folder``: where a run would write; a file in it is made, and removed."""
    facts: dict[str, Any] = {}
    yield from look("machine", _LIMIT_S, functools.partial(_machine, facts))
    for what, probe in _PROBES.items():
        yield from look(what, _LIMIT_S, functools.partial(probe, facts))
    yield from look("disk", _LIMIT_S, functools.partial(_disk, folder))


def _machine(facts: dict[str, Any]) -> Iterator[Finding]:
    facts |= snapshot()
    yield Finding(OK, "machine", f"{facts['cpu'] or facts['system']}; {facts['os']}")


def _software(facts: dict[str, Any]) -> Iterator[Finding]:
    import torch

    python = platform.python_version()
    told = f"megaclass {__version__}, Python {python}"
    untested = python.rpartition(".")[0] not in PYTHON
    yield judged("software", told, (untested, WARN, f"tested with Python {' and '.join(PYTHON)}"))
    found = tuple(int(part) for part in torch.__version__.split(".")[:2])
    wanted = " to ".join(".".join(map(str, version)) for version in TORCH)
    capability = torch.backends.cpu.get_cpu_capability()
    features = [name for name in facts.get("cpu_features") or () if "bf16" in name]
    bf16 = f"bf16 native ({', '.join(features)})" if cpu_has_bf16() else "no native bf16: fp32 on the CPU"
    yield judged(
        "PyTorch",
        f"{torch.__version__} computes with {capability}, {bf16}",
        (found < TORCH[0], FAIL, f"install {wanted}"),
        (found > TORCH[1], WARN, f"tested with {wanted}"),
        (capability == "DEFAULT", WARN, "a CPU without AVX2 trains slowly"),
    )


def _threads(facts: dict[str, Any]) -> Iterator[Finding]:
    usable, every, asked = usable_cores(), psutil.cpu_count(), os.environ.get("OMP_NUM_THREADS", "")
    load = psutil.getloadavg()[0]
    yield judged(
        "CPU threads",
        f"{usable} of {every} by affinity and cgroup, OMP_NUM_THREADS {asked or 'not set'}, load {load:.1f}",
        (
            asked.isdigit() and int(asked) > usable,
            WARN,
            f"threads wait for one another: set it to {usable} or less",
        ),
        (load > 0.5 * usable + 1, WARN, "other programs compute here: speeds measured now are too low"),
    )


def _memory(facts: dict[str, Any]) -> Iterator[Finding]:
    free, total = available_memory(), (facts.get("memory_mb") or 0) << 20
    told = f"{in_bytes(free)} free of {in_bytes(total)}"
    yield judged(
        "memory", told, (free < 2e9, WARN, "end other programs: the smallest recipes take a GB or two")
    )
    shared = shutil.disk_usage("/dev/shm") if Path("/dev/shm").is_dir() else None
    small = shared is not None and shared.free < 1 << 30
    advice = "nccl and DALI exchange data there: docker run --shm-size 8g"
    yield judged("/dev/shm", f"{in_bytes(shared.free)} free" if shared else "none", (small, WARN, advice))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield judged(
        "open files", f"up to {soft:,}", (0 <= soft < 1024, WARN, f"raise it: ulimit -n {min(hard, 65536)}")
    )


def _gpus(facts: dict[str, Any]) -> Iterator[Finding]:
    import torch

    if not torch.cuda.is_available():
        there = (
            f"{facts.get('gpu')}, driver {facts.get('driver')}, but PyTorch {torch.__version__} cannot use it"
        )
        advice = "install PyTorch's CUDA build, or a newer driver"
        yield Finding(FAIL, "GPU", there, advice) if facts.get("gpu_count") else Finding(OK, "GPU", "none")
        return
    for index in range(torch.cuda.device_count()):
        yield _gpu(index, torch.cuda.get_device_properties(index))
        torch.ones(8, device=f"cuda:{index}").sum().item()  # a build without code for this GPU fails here
    try:
        import triton
    except ImportError as error:
        yield Finding(WARN, "Triton", str(error), "install triton: the head's kernels are slower without")
    else:
        yield Finding(OK, "Triton", triton.__version__)


def _gpu(index: int, properties: Any) -> Finding:
    """One GPU by PyTorch's number, with what NVML tells of it: parts that it does not tell are left out."""
    import pynvml

    told = [f"{properties.name}, compute capability {properties.major}.{properties.minor}"]
    slowed, errors, free, total = 0, 0, 0, int(properties.total_memory)
    with contextlib.suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        gpu = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{properties.uuid}")
        told.append(f"driver {pynvml.nvmlSystemGetDriverVersion()}")
        free = int(pynvml.nvmlDeviceGetMemoryInfo(gpu).free)
        told.append(f"{in_bytes(free)} free of {in_bytes(total)}")
        with contextlib.suppress(pynvml.NVMLError):
            now = pynvml.nvmlDeviceGetClockInfo(gpu, pynvml.NVML_CLOCK_SM)
            most = pynvml.nvmlDeviceGetMaxClockInfo(gpu, pynvml.NVML_CLOCK_SM)
            told.append(f"{now} of {most} MHz")
        with contextlib.suppress(pynvml.NVMLError):
            watts = pynvml.nvmlDeviceGetPowerUsage(gpu), pynvml.nvmlDeviceGetEnforcedPowerLimit(gpu)
            told.append("{:.0f} of {:.0f} W".format(*(milliwatts / 1000 for milliwatts in watts)))
        with contextlib.suppress(pynvml.NVMLError):
            slowed = pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu)
        with contextlib.suppress(pynvml.NVMLError):  # not every GPU has ECC
            kind, since = pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC
            errors = pynvml.nvmlDeviceGetTotalEccErrors(gpu, kind, since)
            told.append(f"{errors} ECC errors")
    why = ", ".join(name for bit, name in _SLOWED.items() if slowed & bit)
    return judged(
        f"GPU {index}",
        ", ".join(told),
        (errors > 0, FAIL, "memory errors that ECC could not correct: reset the GPU, or have it replaced"),
        (why != "", WARN, f"its clock is lowered by {why}: look at cooling and power"),
        (0 < free < 0.9 * total, WARN, "another process holds memory there: nvidia-smi names it"),
    )


def _ranks(facts: dict[str, Any]) -> Iterator[Finding]:
    gpus = facts.get("gpu_count") or 0
    backends = {"gloo": (2, "GLOO_SOCKET_IFNAME")} | (
        {"nccl": (min(2, gpus), "NCCL_SOCKET_IFNAME")} if gpus else {}
    )
    for backend, (ranks, variable) in backends.items():
        try:
            found = exchange(backend, ranks, _LIMIT_S - 1)
        except Ended as ended:
            advice = (
                f"several processes cannot train together: set {variable} to a network interface that works"
            )
            yield Finding(FAIL, backend, f"{ranks} ranks: {ended.reason}", advice)
            continue
        size, rate = in_bytes(found["bytes"]), in_bytes(found["bytes"] / found["large_s"])
        told = f"{ranks} ranks sum {size} at {rate}/s, one number in {1e6 * found['small_s']:.0f} µs"
        yield Finding(OK, backend, told)


def _decoding(facts: dict[str, Any]) -> Iterator[Finding]:
    cores, random = usable_cores(), np.random.default_rng(0)
    told = []
    for side in (_FACES, _PHOTOGRAPHS):
        small = random.integers(
            0, 256, (side // 8, side // 8, 3), np.uint8
        )  # noise alone would be no photograph
        encoded = simplejpeg.encode_jpeg(small.repeat(8, 0).repeat(8, 1), quality=90)
        with ThreadPoolExecutor(cores) as pool:
            counts = pool.map(_decoded, [encoded] * cores)
        told.append(f"{sum(counts) / _DECODE_S:,.0f} of {side} px")
    yield Finding(OK, "decoding", f"{' and '.join(told)} a second on {cores} cores")


def _decoded(encoded: bytes) -> int:
    count, end = 0, time.perf_counter() + _DECODE_S
    while time.perf_counter() < end:
        decode(encoded, "")
        count += 1
    return count


def _disk(folder: Path) -> Iterator[Finding]:
    block, written = os.urandom(1 << 20), 0
    with tempfile.TemporaryFile(dir=folder, prefix=".megaclass-doctor-") as file:
        began = time.perf_counter()
        while written < _DISK_BYTES and time.perf_counter() - began < _DISK_S:
            written += file.write(block)
        file.flush()
        os.fsync(file.fileno())
        write_s = time.perf_counter() - began
        if hasattr(os, "posix_fadvise"):  # or memory would be read
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        began = time.perf_counter()
        while file.read(1 << 20):
            pass
        read_s = time.perf_counter() - began
    room = shutil.disk_usage(folder)
    write, read = (in_bytes(written / seconds) for seconds in (write_s, read_s))
    yield judged(
        "disk",
        f"{in_bytes(room.free)} free of {in_bytes(room.total)}, {write}/s written, {read}/s read, in {folder}",
        (room.free < 1e9, WARN, "make room: checkpoints will not fit"),
    )


_PROBES: dict[str, Callable[[dict[str, Any]], Iterator[Finding]]] = {
    "software": _software,
    "CPU threads": _threads,
    "memory": _memory,
    "GPU": _gpus,
    "ranks": _ranks,
    "decoding": _decoding,
}
