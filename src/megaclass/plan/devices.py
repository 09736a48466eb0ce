"""The devices that plan knows, from ``devices.toml``."""

import functools
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megaclass.errors import UserError, lookup
from megaclass.heads.precision import cpu_has
from megaclass.results.machine import available_memory, usable_cores


@dataclass(frozen=True)
class Device:
    """A kind of device, as its maker describes it; see the head of ``devices.toml`` for units."""

    key: str
    name: str
    memory_gb: float
    tflops: dict[str, float]
    memory_gb_s: float
    link_gb_s: float
    network_gb_s: float
    latency_us: tuple[float, float]

    @property
    def kind(self) -> str:
        return "cpu" if self.key == "cpu" else "cuda"

    def resolved(self, compute: str) -> str:
        """``precision.compute`` with ``auto`` as this device has it. UserError for what it lacks."""
        if compute == "auto":
            native = (
                cpu_has("avx512_bf16") or cpu_has("amx_tile") if self.kind == "cpu" else "bf16" in self.tflops
            )
            return "bf16" if native else "fp32"
        if compute not in self.tflops and not (self.kind == "cpu" and compute == "fp16"):
            raise UserError(
                f"precision.compute: {self.name} has no {compute}; it has {', '.join(self.tflops)}"
            )
        return compute


@functools.cache
def _known() -> dict[str, Any]:
    return tomllib.loads((Path(__file__).parent / "devices.toml").read_text(encoding="utf-8"))


def device(key: str, processes: int = 1) -> Device:
    """UserError with the near match for one that is not known. processes: that share this machine, of ``cpu``."""
    told = dict(lookup(_known()["devices"], key, "--device"))
    if key == "cpu":
        cores = max(1, usable_cores() // processes)
        told["memory_gb"] = available_memory() / processes / 1e9
        told["tflops"] = {name: cores * value for name, value in told["tflops"].items()}
    return Device(key, **told)


def device_keys() -> list[str]:
    return list(_known()["devices"])


def reached(what: str) -> tuple[float, float]:
    """Which shares of the data sheets training reaches, low and high."""
    low, high = _known()["reached"][what]
    return low, high
