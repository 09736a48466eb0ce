"""The devices that plan knows, from ``devices.toml``."""

import tomllib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megaclass.errors import UserError, lookup
from megaclass.heads.precision import cpu_has_bf16
from megaclass.results.machine import available_memory, usable_cores

_KNOWN = tomllib.loads((Path(__file__).parent / "devices.toml").read_text(encoding="utf-8"))
REACHED: dict[str, tuple[float, float]] = _KNOWN["reached"]
CPU = "cpu"


@dataclass(frozen=True)
class Device:
    name: str
    memory: float  # bytes
    rates: dict[str, float]  # operations a second by precision
    memory_rate: float  # bytes a second
    links: tuple[float, float]  # bytes a second in one direction, inside a node and between nodes
    hops: tuple[float, float]  # seconds of one there

    @classmethod
    def named(cls, name: str, processes: int = 1) -> "Device":
        """UserError with the near match for one that is not known. processes: that share this machine, of ``cpu``."""
        told = dict(lookup(_KNOWN["devices"], name := name.lower(), "--device"))
        cores = max(1, usable_cores() // processes) if name == CPU else 1
        memory = available_memory() / processes if name == CPU else 1e9 * told["memory"]
        rates = {key: cores * 1e12 * told[key] for key in ("fp32", "tf32", "bf16", "fp16") if key in told}
        links, hops = (1e9 * np.array(told["links"]), 1e-6 * np.array(told["hops"]))
        return cls(name, memory, rates, 1e9 * told["memory_rate"], tuple(links), tuple(hops))

    @property
    def kind(self) -> str:
        return CPU if self.name == CPU else "cuda"

    def resolved(self, compute: str) -> str:
        """``precision.compute`` with ``auto`` as this device has it. UserError for what it lacks."""
        if compute == "auto":
            emulated = self.kind == CPU and not cpu_has_bf16()
            return "bf16" if "bf16" in self.rates and not emulated else "fp32"
        if compute not in self.rates:
            raise UserError(f"precision.compute: {self.name} has no {compute}; it has {', '.join(self.rates)}")
        return compute
