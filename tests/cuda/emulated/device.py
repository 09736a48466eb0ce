"""The Python half of the emulated CUDA device: builds and loads device.cpp, and stands in for torch.cuda."""

import contextlib
import ctypes
import dataclasses
import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

HERE = Path(__file__).parent
BUILD = HERE.parents[2] / "build"
NAME = "Emulated CUDA device"
# What programs ask about a device: an H100's, but for the multiprocessors, one for each core.
PROPERTIES = {"name": NAME, "major": 9, "minor": 0, "multi_processor_count": 2, "warp_size": 32, "uuid": "0"}

_library = None
_records: list["Record"] = []


def load(torch_folder: Path) -> bool:
    """Build the library unless it is there, and load it, before torch is imported; False: there is no C++ compiler."""
    global _library
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    version = (torch_folder / "version.py").read_bytes()
    key = hashlib.sha256(version + (HERE / "device.cpp").read_bytes()).hexdigest()[:16]
    library = BUILD / f"emulated-cuda-{key}.so"
    if not library.exists():
        if compiler is None:
            return False
        BUILD.mkdir(exist_ok=True)
        with library.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the others wait for the one that builds
            if not library.exists() and not _built(compiler, torch_folder, library):
                return False
    for name in ("libc10.so", "libtorch_cpu.so"):
        ctypes.CDLL(str(torch_folder / "lib" / name), mode=ctypes.RTLD_GLOBAL)
    _library = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    return True


def _built(compiler: str, torch_folder: Path, library: Path) -> bool:
    include, lib = torch_folder / "include", torch_folder / "lib"
    unfinished = library.with_suffix(".part")
    command = [compiler, "-std=c++20", "-O0", "-shared", "-fPIC", "-w", f"-I{include}",
               f"-I{include}/torch/csrc/api/include", HERE / "device.cpp", "-o", unfinished,
               f"-L{lib}", "-lc10", "-ltorch_cpu"]  # fmt: skip
    done = subprocess.run([str(word) for word in command])
    if done.returncode == 0:
        unfinished.rename(library)
    return done.returncode == 0


# ---- what a GPU would have been asked --------------------------------------------------------------------------------


@dataclasses.dataclass
class Record:
    """Waits of the host and launches of kernels, each as (what, where in the program)."""

    waits: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    launches: list[tuple[str, str]] = dataclasses.field(default_factory=list)


def _where() -> str:
    """File and function of the package nearest to the call."""
    frame = sys._getframe()
    while frame is not None:
        name = frame.f_code.co_filename
        if "/src/megaclass/" in name:
            return f"{name.split('/megaclass/')[-1]} {frame.f_code.co_name}"
        frame = frame.f_back
    return "elsewhere"


@ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p)
def _told(kind: bytes, what: bytes) -> None:
    event = (what.decode(), _where())
    for record in _records:
        (record.waits if kind == b"wait" else record.launches).append(event)


@contextlib.contextmanager
def recorded():
    """Yield a Record of what happens inside."""
    record = Record()
    _records.append(record)
    _library.observe(_told)
    try:
        yield record
    finally:
        _records.remove(record)
        if not _records:
            _library.observe(None)


# ---- torch.cuda ------------------------------------------------------------------------------------------------------


def install(torch) -> None:
    """Let ``torch.cuda`` (of the module just imported) speak of the emulated device."""
    ops, cuda = torch.ops.emulated, torch.cuda

    class Stream(torch.Stream):
        def __new__(cls, *_, **__):
            return super().__new__(cls, device="cuda:0")

    class Device(contextlib.nullcontext):
        def __init__(self, device):
            super().__init__()

    def answers(function):
        """A function of its own for each name: torch.compile keeps a table of them."""
        return lambda *words, **_: function(*words)

    for names, function in {
        "is_available is_initialized is_bf16_supported": lambda *_: True,
        "init _lazy_init set_device empty_cache": lambda *_: None,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_name": lambda *_: NAME,
        "get_device_capability": lambda *_: (9, 0),
        "get_device_properties": lambda *_: SimpleNamespace(**PROPERTIES, total_memory=ops.memory()[2]),
        "current_stream": lambda *_: torch.accelerator.current_stream(),
        "stream": lambda stream: stream,
        "synchronize": lambda *_: ops.wait("synchronize"),
        "mem_get_info": lambda *_: (ops.memory()[2] - ops.memory()[1], ops.memory()[2]),
        "memory_allocated": lambda *_: ops.memory()[0],
        "memory_reserved max_memory_allocated max_memory_reserved": lambda *_: ops.memory()[1],
        "reset_peak_memory_stats": lambda *_: ops.reset_peak(),
        "manual_seed manual_seed_all": lambda seed: ops.seed(seed),
        "get_rng_state": lambda *_: ops.rng_state(),
        "set_rng_state": lambda state, *_: ops.set_rng_state(state),
    }.items():
        for name in names.split():
            setattr(cuda, name, answers(function))
    cuda.Stream, cuda.Event, cuda.device = Stream, functools.partial(torch.Event, "cuda:0"), Device
    cuda.amp.common.amp_definitely_not_available = lambda: False


def interpret(module) -> None:
    """Have Triton's interpreter work on the device's memory, where it would copy all of it to and fro."""
    executor = module.GridExecutor
    call = executor.__call__

    def launch(self, *args, **kwargs):
        sys.modules["torch"].ops.emulated.launch(self.fn.__name__)
        return call(self, *args, **kwargs)

    executor.__call__ = launch
    executor._init_args_hst = lambda self, args, kwargs: (args, kwargs)
    executor._restore_args_dev = lambda *_: None
