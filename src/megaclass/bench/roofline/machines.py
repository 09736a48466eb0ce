"""What machines can do at most: as their data sheets say, or as measured."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from megaclass.bench import limits
from megaclass.errors import UserError, lookup

TRIES = 5  # a peak is what the machine can do undisturbed


@dataclass(frozen=True)
class Peaks:
    """Operations a second of products by precision, and bytes a second read and written, of one device."""

    name: str
    flops_per_second: dict[str, float]
    bytes_per_second: float
    source: str
    measured: bool = False  # here and now

    def flops(self, precision: str) -> float:
        if precision not in self.flops_per_second:
            known = ", ".join(self.flops_per_second)
            raise UserError(f"--dtype: no peak in {precision} is known of {self.name}, only in {known}")
        return self.flops_per_second[precision]


def _nvidia(half: str, half_flops: float, tf32: float, fp32: float) -> dict[str, float]:
    return dict.fromkeys(half.split(), half_flops) | ({"tf32": tf32} if tf32 else {}) | {"fp32": fp32}


# Dense products: the H100's data sheet prints twice as much, with sparsity.
MACHINES = {
    peaks.name: peaks
    for peaks in (
        Peaks("h100", _nvidia("bf16 fp16", 989e12, 495e12, 67e12), 3.35e12, "data sheet, H100 SXM 80 GB"),
        Peaks("h100-measured", {"bf16": 790e12, "fp16": 790e12}, 3.0e12, "H100 SXM, large products, large copies"),
        Peaks("h200", _nvidia("bf16 fp16", 989e12, 495e12, 67e12), 4.8e12, "data sheet, H200 SXM"),
        Peaks("a100", _nvidia("bf16 fp16", 312e12, 156e12, 19.5e12), 2.039e12, "data sheet, A100 SXM 80 GB"),
        Peaks("v100", _nvidia("fp16", 125e12, 0, 15.7e12), 0.9e12, "data sheet, V100 SXM2"),
    )
}  # fmt: skip


def machine(name: str) -> Peaks:
    return lookup(MACHINES, name, "machine")


def measured(precisions: Iterable[str], device: torch.device) -> Peaks:
    """The peaks of this machine: the fastest of several large products, and of several large copies."""
    flops = {
        name: max(limits.product_flops(name, device) for _ in range(TRIES))
        for name in dict.fromkeys(precisions)
    }
    bandwidth = max(limits.copy_bytes_per_second(device) for _ in range(TRIES))
    return Peaks("here", flops, bandwidth, "large products and copies, measured", measured=True)
