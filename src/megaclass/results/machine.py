"""What a number was measured on: machine, software and settings, collected in a fraction of a second.

Every entry is looked up on its own and is None where this machine does not tell: no GPU, no driver, no root
rights and no git are needed, and nothing here raises.
"""

import contextlib
import functools
import hashlib
import os
import platform
import subprocess
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from megaclass import __version__

PACKAGES = (
    "numpy", "safetensors", "simplejpeg", "opencv-python-headless", "scikit-learn", "triton", "nvidia-dali-cuda120",
    "onnxruntime", "onnxruntime-gpu",
)  # fmt: skip

# What is known to change speed or results. An explicit list: other variables may hold names and secrets.
VARIABLES = (
    "OMP_NUM_THREADS", "OMP_PROC_BIND", "OMP_PLACES", "MKL_NUM_THREADS", "KMP_AFFINITY", "KMP_BLOCKTIME",
    "GOMP_CPU_AFFINITY", "ONEDNN_MAX_CPU_ISA", "MALLOC_ARENA_MAX", "MALLOC_CONF", "MALLOC_MMAP_MAX_",
    "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD",
    "CUDA_VISIBLE_DEVICES", "CUDA_LAUNCH_BLOCKING", "CUDA_DEVICE_MAX_CONNECTIONS", "CUDA_MODULE_LOADING",
    "CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE", "NCCL_ALGO", "NCCL_PROTO", "NCCL_P2P_DISABLE",
    "NCCL_IB_DISABLE", "NCCL_NVLS_ENABLE", "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "TORCH_COMPILE_DISABLE", "TORCH_CUDNN_V8_API_DISABLED",
    "TORCH_NCCL_ASYNC_ERROR_HANDLING", "TRITON_INTERPRET",
)  # fmt: skip

# Instructions that decide how fast a processor multiplies, by their names in /proc/cpuinfo (x86, then ARM).
CPU_FEATURES = (
    "avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8", "amx_fp16",
    "asimdhp", "sve", "bf16", "i8mm",
)  # fmt: skip


def snapshot() -> dict[str, Any]:
    """Describe machine, software and settings as a flat dict of JSON values; never raises.

    Memory is in MiB (``memory_mb``, ``gpu_memory_mb``). ``cpu_threads`` are those of the machine,
    ``cpu_threads_usable`` those that affinity and container leave to this process. Likewise ``memory_mb`` is the
    smaller of the machine's and the container's. ``gpu_count`` counts the GPUs visible to this process;
    ``gpu_power_limit_w`` and ``gpu_clock_mhz``, the highest of its multiprocessors, are of the least able one.
    ``revision`` is the git commit of the source, with ``-dirty`` and a hash of the difference if the package differs
    from it, else ``MEGACLASS_REVISION``, which who copies the source sets, else the version.
    """
    return {
        "system": _quiet(_system),
        **_fixed(_cpu, "cpu", "cpu_sockets", "cpu_cores", "cpu_threads", "cpu_threads_usable", "cpu_features"),
        "memory_mb": _quiet(_memory_mb),
        **_fixed(_gpu, "gpu", "gpu_count", "gpu_memory_mb", "gpu_power_limit_w", "gpu_clock_mhz", "driver"),
        "os": _quiet(lambda: platform.freedesktop_os_release()["PRETTY_NAME"]) or platform.platform(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        **_fixed(_torch, "pytorch", "cuda", "cudnn", "nccl", "torch_threads", "torch_interop_threads"),
        "packages": {name: found for name in PACKAGES if (found := _quiet(metadata.version, name))},
        "revision": _quiet(_git_revision) or os.environ.get("MEGACLASS_REVISION") or __version__,
        "variables": {name: _value(name) for name in VARIABLES if name in os.environ},
    }


def usable_cores() -> int:
    """How many cores affinity and container leave to this process, at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # "max 100000": no quota
        quota, period = _read("/sys/fs/cgroup/cpu.max").split()
        cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def available_memory() -> int:
    """Bytes that this process may still take: of the machine, or of the container, whichever leaves less."""
    import psutil

    available = int(psutil.virtual_memory().available)
    with contextlib.suppress(OSError, ValueError):  # "max": no limit
        limit, used = (int(_read(f"/sys/fs/cgroup/memory.{name}")) for name in ("max", "current"))
        # What was read from files or written to them counts as used, and goes when memory is wanted.
        parts = dict(line.split() for line in _read("/sys/fs/cgroup/memory.stat").splitlines())
        available = min(available, max(0, limit - used + int(parts.get("inactive_file", 0))))
    return available


def _quiet(probe: Callable[..., Any], *arguments: Any) -> Any:
    # Exception rather than a list of types: a probe reads files, libraries and drivers of any state.
    with contextlib.suppress(Exception):
        return probe(*arguments)
    return None


def _fixed(probe: Callable[[], dict[str, Any]], *keys: str) -> dict[str, Any]:
    found = _quiet(probe) or {}
    return {key: found.get(key) for key in keys}


def _read(path: str) -> str:
    return Path(path).read_text(errors="replace").strip()


def _system() -> str:
    names = [_quiet(_read, f"/sys/class/dmi/id/{name}") for name in ("sys_vendor", "product_name")]
    return " ".join(filter(None, names)) or f"{platform.system()} {platform.machine()}"


@functools.cache
def _cpu_entries() -> dict[str, list[str]]:
    """/proc/cpuinfo: the values of each entry, one for every thread that has it; empty where there is none (macOS)."""
    entries: dict[str, list[str]] = {}
    with contextlib.suppress(OSError):
        for line in _read("/proc/cpuinfo").splitlines():
            key, _, value = line.partition(":")
            entries.setdefault(key.strip(), []).append(value.strip())
    return entries


@functools.cache
def _cpu_name() -> str:
    entries = _cpu_entries()
    if names := entries.get("model name"):
        if any(letter.isdecimal() for letter in names[0].partition("@")[0]):
            return names[0]
        # A host may hide all but the maker's name and the clock, and two generations differ by a factor of two.
        return ", ".join([names[0], *(f"{key} {entries[key][0]}" for key in ("cpu family", "model") if key in entries)])
    import cpuinfo  # takes a second or more, so only where /proc has no name (ARM, macOS)

    return cpuinfo.get_cpu_info()["brand_raw"]


def _cpu() -> dict[str, Any]:
    import psutil

    entries = _cpu_entries()
    flags = " ".join(entries.get("flags", [])[:1] + entries.get("Features", [])[:1]).split()
    return {
        "cpu": _quiet(_cpu_name),
        "cpu_sockets": len(set(entries.get("physical id", []))) or None,
        "cpu_cores": psutil.cpu_count(logical=False),
        "cpu_threads": psutil.cpu_count(),
        "cpu_threads_usable": usable_cores(),
        "cpu_features": [name for name in CPU_FEATURES if name in flags],
    }


def _memory_mb() -> int:
    import psutil

    total = psutil.virtual_memory().total
    with contextlib.suppress(OSError, ValueError):  # "max": no limit
        total = min(total, int(_read("/sys/fs/cgroup/memory.max")))
    return total >> 20


def ask_driver(what: str, *arguments: Any, gpu: str = "") -> Any:
    """What NVML's ``nvml<what>`` returns, of a GPU by its number or UUID where one is named; None: it does not tell."""
    import pynvml as nvml

    with contextlib.suppress(Exception):  # no driver, or one that does not know this of this GPU or container
        nvml.nvmlInit()
        if gpu:
            by_number = gpu.isdigit()
            find = nvml.nvmlDeviceGetHandleByIndex if by_number else nvml.nvmlDeviceGetHandleByUUID
            arguments = (find(int(gpu) if by_number else gpu), *arguments)
        return getattr(nvml, f"nvml{what}")(*arguments)
    return None


def _gpu() -> dict[str, Any]:
    count = ask_driver("DeviceGetCount")
    if count is None:  # no NVML; PyTorch opens a context on the GPU for it: seconds and memory
        import torch

        known = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        return {"gpu": ", ".join(dict.fromkeys(gpu.name for gpu in known)) or None, "gpu_count": len(known)}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count)))).replace(" ", "")
    gpus = [name for name in visible.split(",") if name not in ("", "-1")]

    def of_all(what: str, *arguments: int) -> list[Any]:
        return [ask_driver(f"DeviceGet{what}", *arguments, gpu=gpu) for gpu in gpus]

    return {
        "gpu": ", ".join(dict.fromkeys(filter(None, of_all("Name")))) or None,
        "gpu_count": len(gpus),
        "gpu_memory_mb": _quiet(lambda: min(memory.total >> 20 for memory in of_all("MemoryInfo"))),
        "gpu_power_limit_w": _quiet(lambda: min(of_all("EnforcedPowerLimit")) / 1000),
        "gpu_clock_mhz": _quiet(lambda: min(of_all("MaxClockInfo", 1))),  # 1: of the multiprocessors
        "driver": ask_driver("SystemGetDriverVersion"),
    }


def _torch() -> dict[str, Any]:
    import torch

    cudnn = _quiet(torch.backends.cudnn.version)  # 91002: 9.10.2
    nccl = _quiet(torch.cuda.nccl.version) if torch.version.cuda else None
    return {
        "pytorch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": f"{cudnn // 10_000}.{cudnn % 10_000 // 100}.{cudnn % 100}" if cudnn else None,
        "nccl": ".".join(map(str, nccl)) if nccl else None,
        "torch_threads": torch.get_num_threads(),
        "torch_interop_threads": torch.get_num_interop_threads(),
    }


@functools.cache
def _git_revision() -> str | None:
    package = Path(__file__).parent.parent

    def git(*arguments: str) -> str:
        command = ["git", "--no-optional-locks", *arguments]
        return subprocess.run(
            command, cwd=package, capture_output=True, text=True, timeout=5, check=True
        ).stdout.strip()

    # Installed below somebody else's checkout (a .venv), the package is not tracked there.
    if not git("ls-files", "__init__.py"):
        return None
    dirty = hashlib.sha256()
    if changed := git("status", "--porcelain", "--", "."):
        dirty.update(git("diff", "HEAD", "--", ".").encode())
        for name in git("ls-files", "--others", "--exclude-standard", "--", ".").splitlines():
            dirty.update(_quiet((package / name).read_bytes) or b"")
    return git("rev-parse", "HEAD") + (f"-dirty-{dirty.hexdigest()[:8]}" if changed else "")


def _value(name: str) -> str:
    value = os.environ[name]
    if name == "LD_PRELOAD":  # which allocator matters, where it is installed does not
        return " ".join(Path(part).name for part in value.replace(":", " ").split())
    return value
