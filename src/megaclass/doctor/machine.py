"""What a machine has for a training: probes of two seconds or less each."""

import functools
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch

from megaclass import __version__
from megaclass.bench.processes import Ended
from megaclass.data.decode import decode
from megaclass.doctor.findings import FAIL, OK, WARN, Finding, judged, look
from megaclass.doctor.ranks import BYTES, exchange
from megaclass.errors import in_bytes
from megaclass.heads.precision import cpu_has_bf16
from megaclass.results.machine import ask_driver, available_memory, snapshot, usable_cores

TORCH = ((2, 11), (2, 13))  # the oldest and the newest that are supported, as in pyproject.toml
_LIMIT_S = 10.0  # of a probe
_DISK_BYTES, _DISK_S = 64 << 20, 1.0  # written at most, in this time at most
_DECODE_S = 0.5
# Of NVML's reasons for a lower clock those that are no choice: slowed by hardware, its heat, or its power supply.
_SLOWED = {0x08: "hardware slowdown", 0x20: "heat", 0x40: "heat (hardware)", 0x80: "power brake"}


def findings(folder: Path) -> Iterator[Finding]:
    """Look at this machine. ``folder``: where a run would write; a file in it is made, and removed."""
    for what, probe in _PROBES.items():
        yield from look(what, _LIMIT_S, probe)
    yield from look("disk", _LIMIT_S, functools.partial(_disk, folder))


def _software() -> Iterator[Finding]:
    facts = snapshot()
    cpu = f"{facts['cpu'] or facts['system']}, {'bf16' if cpu_has_bf16() else 'no bf16'}"
    usable, asked = usable_cores(), os.environ.get("OMP_NUM_THREADS", "")
    threads = f"{usable} of {facts['cpu_threads']} threads usable, OMP_NUM_THREADS {asked or 'not set'}"
    too_many = asked.isdigit() and int(asked) > usable
    yield judged("CPU", f"{cpu}; {threads}", (too_many, WARN, f"set OMP_NUM_THREADS to {usable} or less"))
    found = tuple(map(int, torch.__version__.split(".")[:2]))
    wanted = "install PyTorch {}.{} to {}.{}".format(*TORCH[0], *TORCH[1])
    yield judged(
        "PyTorch",
        f"{torch.__version__}; megaclass {__version__}, Python {facts['python']}, {facts['os']}",
        (found < TORCH[0], FAIL, wanted),
        (found > TORCH[1], WARN, f"newer than what is tested; {wanted}"),
    )
    if facts["gpu_count"] and not torch.cuda.is_available():
        text = f"{facts['gpu']}, driver {facts['driver']}, which this PyTorch cannot use"
        yield Finding(FAIL, "GPU", text, "install PyTorch's CUDA build, or a newer driver")


def _memory() -> Iterator[Finding]:
    yield Finding(OK, "memory", f"{in_bytes(available_memory())} free")
    shared = shutil.disk_usage("/dev/shm").free
    advice = "nccl and DALI exchange data there: docker run --shm-size 8g"
    yield judged("/dev/shm", f"{in_bytes(shared)} free", (shared < 1 << 30, WARN, advice))


def _gpus() -> Iterator[Finding]:
    for index in range(torch.cuda.device_count()):
        yield _gpu(index, torch.cuda.get_device_properties(index))
        torch.ones(8, device=f"cuda:{index}").sum().item()  # a build without code for this GPU fails here


def _gpu(index: int, properties: Any) -> Finding:
    import pynvml as nvml

    def ask(what: str, *arguments: int) -> Any:
        return ask_driver(f"DeviceGet{what}", *arguments, gpu=f"GPU-{properties.uuid}")

    free, total = torch.cuda.mem_get_info(index)
    text = f"{properties.name}, {in_bytes(free)} free of {in_bytes(total)}"
    clock = ask("ClockInfo", nvml.NVML_CLOCK_SM)
    highest = ask("MaxClockInfo", nvml.NVML_CLOCK_SM)
    if clock and highest:
        text += f", {clock} of {highest} MHz"
    errors = ask("TotalEccErrors", nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC)
    if errors is not None:
        text += f", {errors} ECC errors"
    reasons = ask("CurrentClocksThrottleReasons") or 0
    why = ", ".join(name for bit, name in _SLOWED.items() if reasons & bit)
    busy = "another process holds memory there: nvidia-smi names it"
    return judged(
        f"GPU {index}",
        text,
        (bool(errors), FAIL, "its memory is damaged: reset the GPU, or replace it"),
        (why != "", WARN, f"its clock is lowered by {why}: look at cooling and power"),
        (free < 0.9 * total, WARN, busy),
    )


def _ranks() -> Iterator[Finding]:
    for backend in ("gloo", "nccl")[: 1 + (torch.cuda.device_count() > 1)]:
        try:
            seconds = exchange(backend, _LIMIT_S - 1)
        except Ended as ended:
            advice = f"set {backend.upper()}_SOCKET_IFNAME to a network interface that works"
            yield Finding(FAIL, backend, f"2 processes cannot train together: {ended.reason}", advice)
        else:
            text = f"2 ranks sum {in_bytes(BYTES)} at {in_bytes(BYTES / seconds)}/s"
            yield Finding(OK, backend, text)


def _decoding() -> Iterator[Finding]:
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


_PROBES: dict[str, Callable[[], Iterator[Finding]]] = {
    "software": _software,
    "memory": _memory,
    "GPU": _gpus,
    "ranks": _ranks,
    "decoding": _decoding,
}
