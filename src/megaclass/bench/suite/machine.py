"""What this machine has for a suite: devices, memory, and how fast its products are."""

from dataclasses import dataclass, field

import psutil
import torch

from megaclass.bench import limits
from megaclass.runtime import cpu_has_bf16

# Of the speed of a large product, what whole steps of convolutional networks reach: low, so that a plan is kept.
_REACHED = {"cpu": 0.25, "cuda": 0.25}
_START_S = {"cpu": 7.0, "cuda": 20.0}
# Of its memory a device can give to one case.
_USABLE = {"cpu": 0.8, "cuda": 0.9}


@dataclass
class Machine:
    """device: ``cpu``, which is one device with all its cores, or ``cuda``. memory_bytes: of each device, usable."""

    device: str
    devices: int
    memory_bytes: float
    _speeds: dict[str, float] = field(default_factory=dict)
    _bytes_per_second: float = 0.0

    @classmethod
    def here(cls, device: str) -> "Machine":
        if device == "cuda":
            free = min(torch.cuda.mem_get_info(i)[1] for i in range(torch.cuda.device_count()))
            return cls(device, torch.cuda.device_count(), _USABLE[device] * free)
        return cls(device, 1, _USABLE[device] * psutil.virtual_memory().available)

    @property
    def start_s(self) -> float:
        """That the processes of a case take before their first step."""
        return _START_S[self.device]

    @property
    def half(self) -> str:
        """The 16-bit precision that it computes in where fp16 was published."""
        if self.device == "cuda":
            return "fp16"
        return "bf16" if cpu_has_bf16() else "fp32"

    @property
    def bytes_per_second(self) -> float:
        """Read or written, as a large copy does; measured once."""
        if not self._bytes_per_second:
            self._bytes_per_second = limits.copy_bytes_per_second(torch.device(self.device))
        return self._bytes_per_second

    def flops_per_second(self, precision: str) -> float:
        """Of training steps and forward passes, roughly; a product is measured once for each precision."""
        if precision not in self._speeds:
            side, device = (8192, "cuda") if self.device == "cuda" else (1024, "cpu")
            ms = limits.product_ms(precision, side, torch.device(device))
            self._speeds[precision] = 2 * side**3 / ms * 1000 * _REACHED[self.device]
        return self._speeds[precision]
