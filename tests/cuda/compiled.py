"""The head's Triton kernels compiled for a GPU that is not there, and not started: what the compiler says of them.

A program of its own, because a process has either Triton's compiler or its interpreter:

    PYTHONPATH=src python tests/cuda/compiled.py CAPABILITY DIM PRECISION STORAGE [RATE]

prints a JSON line for each kernel, or one line ``refused: ...``. It fails where steps compile what the check of a new
head has not.
"""

import functools
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

os.environ["TRITON_INTERPRET"] = "0"

import torch
import triton
from triton.backends.compiler import GPUTarget

from megaclass.heads.kernels import passes, rows, self_check
from megaclass.heads.kernels.engine import TritonEngine
from megaclass.heads.margins import Margin
from megaclass.heads.step import ActiveRows, MicroBatch, SGDStep
from megaclass.heads.storage import STORAGES, Rounding, Rows

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
KERNELS = {"unit": rows.unit_kernel, "pass 1": passes.pass_one_kernel, "pass 2": passes.pass_two_kernel}
SHARED = {
    90: 232_448,
    80: 166_912,
    86: 101_376,
}  # bytes of a program: CUDA C++ Programming Guide, section 16.2


class Driver:
    """What Triton asks of a device's driver."""

    def __init__(self, capability: int) -> None:
        self.utils = self
        self.launcher_cls = lambda source, metadata: lambda *arguments: None
        self.get_current_target = lambda: GPUTarget("cuda", capability, 32)
        self.get_current_device = lambda: 0
        self.get_current_stream = lambda device: 0
        self.get_device_properties = lambda device: {"max_shared_mem": SHARED[capability]}

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[Any, ...]:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(binary)
            file.flush()
            usage = _run("cuobjdump", "-res-usage", file.name)
        registers, stack, local = (_number(rf"{word}:(\d+)", usage) for word in ("REG", "STACK", "LOCAL"))
        return object(), object(), registers, (stack + local) // 4, 1024


class CompiledEngine(TritonEngine):
    device_types = ("cpu",)

    def __init__(self, capability: int, dim: int, precision: str, storage: str, rate: float) -> None:
        self.capability = capability
        triton.runtime.driver.set_active(Driver(capability))
        with mock.patch.multiple(self_check, _check_walker=mock.DEFAULT, _compare=mock.DEFAULT):
            super().__init__(precision, torch.device("cpu"), 0.0, dim, STORAGES[storage], rate < 1)

    def limits(self) -> SimpleNamespace:
        return SimpleNamespace(major=self.capability // 10, minor=self.capability % 10, multi_processor_count=132)


def steps(engine: TritonEngine, storage: str, rate: float) -> None:
    """Steps of several batches, samples and rates of learning: all launches that a head makes."""
    kind, cpu, dim = STORAGES[storage], torch.device("cpu"), engine.dim
    for batch, count, lr in ((16, 160, 0.1), (5, 33, 1), (1, 1, 0.0), (130, 4096, 1e-3)):
        tables = [Rows.zeros(2 * count, dim, kind.dtype, cpu) for _ in range(1 + kind.momentum)]
        rows_N = torch.arange(count) if rate < 1 else None
        owed_N4 = torch.ones(count, 4) if rate < 1 else None
        active = ActiveRows(tables[0], tables[1] if kind.momentum else None, rows_N, owed_N4)
        unit_BD, row_B = torch.zeros(batch, dim), torch.arange(batch)
        engine.pass_one(unit_BD, row_B, active, Margin(), 0 if batch == 5 else 1.5)
        micro_batch = MicroBatch(unit_BD, row_B, unit_BD[:, 0], unit_BD[:, 0], active, torch.tensor(1.0))
        sgd = SGDStep(lr, 0 if batch == 1 else 0.9, 0 if batch == 5 else 5e-4)
        rounding = functools.partial(Rounding, count, 0, first_class=2**31 - count, dim=dim, device=cpu)
        engine.pass_two([micro_batch], active, Margin(), sgd, rounding, torch.tensor(False))
        if owed_N4 is not None:
            engine.catch_up(active, rounding)


def compiled() -> int:
    return sum(len(kernel.device_caches[0][0]) for kernel in KERNELS.values())


def report(name: str, capability: int) -> dict[str, Any]:
    """Registers, spills and the inner loop of the kernel that was compiled last."""
    kernel = list(KERNELS[name].device_caches[0][0].values())[-1]
    with tempfile.TemporaryDirectory() as folder:
        ptx, binary = Path(folder, "k.ptx"), Path(folder, "k.cubin")
        ptx.write_text(kernel.asm["ptx"])
        architecture = f"sm_{capability}" + ("a" if capability == 90 else "")
        notes = _run("ptxas", "-v", "--regAllocOptLevel=2", f"--gpu-name={architecture}", ptx, "-o", binary)
        code = _run("nvdisasm", "-c", binary)
    loop = inner_loop(code)
    return {
        "kernel": name,
        "warps": kernel.metadata.num_warps,
        "shared": kernel.metadata.shared,
        "registers": _number(r"Used (\d+) registers", notes),
        "spilled": kernel.n_spills,
        "serialised": "are serialized" in notes,
        "loop": len(loop),
        "reloads": sum(line.startswith("LDL") for line in loop),
        "exponentials": sum(line.startswith("MUFU.EX2") for line in loop),
        "product": next((line.split()[0] for line in loop if line.startswith(("HGMMA", "HMMA"))), ""),
    }


def inner_loop(code: str) -> list[str]:
    """The instructions of the longest innermost loop with products of matrix units; without such, of any."""
    lines: list[str] = []
    labels: dict[str, int] = {}
    found: list[tuple[int, int]] = []
    for text in code.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", text):
            labels[label[1]] = len(lines)
        elif instruction := re.match(r"\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?(.*?);", text):
            lines.append(instruction[1])
            jump = re.match(r"BRA.*`\((\.L_x_\d+)\)", instruction[1])
            if jump and jump[1] in labels:
                found.append((labels[jump[1]], len(lines)))
    inner = [lines[a:b] for a, b in found if not any(a <= c < d <= b and (a, b) != (c, d) for c, d in found)]
    return max(inner, key=lambda loop: (any("MMA" in line for line in loop), len(loop)), default=[])


def _run(tool: str, *arguments: object) -> str:
    done = subprocess.run([TOOLS / tool, *map(str, arguments)], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def _number(pattern: str, text: str) -> int:
    return int(re.findall(pattern, text)[0])


def main(capability: str, dim: str, precision: str, storage: str, rate: str = "1") -> None:
    case = f"{precision} {storage} {rate}"
    try:
        engine = CompiledEngine(int(capability), int(dim), precision, storage, float(rate))
    except RuntimeError as error:
        print(f"refused: {case}: {error}")
        return
    before = compiled()
    steps(engine, storage, float(rate))
    assert compiled() == before, "another batch, sample or rate of learning compiled a kernel again"
    for name in KERNELS:
        print(json.dumps({"case": case, **vars(engine.blocks), **report(name, int(capability))}))


if __name__ == "__main__":
    main(*sys.argv[1:])
