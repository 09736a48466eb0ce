"""What this machine has for a suite: devices, memory, and how fast its products are."""

import sys
from dataclasses import dataclass

from megaclass.bench.processes import Crew, Ended
from megaclass.errors import UserError
from megaclass.train.arithmetic import cpu_has_bf16

# Of the speed of a large product, what whole steps of convolutional networks reach: low, so that a plan is kept.
_REACHED = {"cpu": 0.25, "cuda": 0.25}
_START_S = {"cpu": 7.0, "cuda": 20.0}
# Of its memory a device can give to one case.
_USABLE = {"cpu": 0.8, "cuda": 0.9}
_PROBE = (sys.executable, "-P", "-m", "megaclass.bench.old_suite.probe")


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
        crew = Crew(1, {}, _PROBE)
        try:
            (found,) = crew.ask({"device": device}, timeout_s=300.0)
        except Ended as ended:
            raise UserError(f"--fit: this machine could not be measured ({ended})") from None
        finally:
            crew.close()
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
        return "bf16" if cpu_has_bf16() else "fp32"

    def flops_per_second(self, precision: str) -> float:
        """Of training steps and forward passes, roughly."""
        return self.product_flops[precision] * _REACHED[self.device]
