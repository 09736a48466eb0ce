"""Matrix products of the head at a chosen precision, always with fp32 results.

Products may be rounded, logits may not: at scale 64 a bf16 logit is off by up to 0.1.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

PRECISIONS = ("fp32", "tf32", "bf16")


class Products:
    """fp32 in, fp32 out; ``precision`` says how the operands are rounded inside.

    fp32: not at all. tf32: on CUDA; elsewhere the same as fp32. bf16: on CUDA by casting the operands; on
    a CPU by oneDNN, which uses bf16 where the processor has matrix units for it and fp32 elsewhere.
    """

    def __init__(self, precision: str, device: torch.device) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {PRECISIONS}, got {precision!r}")
        self.precision = precision
        self._cast = precision == "bf16" and device.type == "cuda"
        backends: Any = torch.backends
        self._backend = backends.cuda.matmul if device.type == "cuda" else backends.mkldnn.matmul
        self._flag = {"fp32": "ieee", "tf32": "tf32", "bf16": "bf16"}[precision]
        if device.type == "cuda" and precision == "bf16":
            self._flag = "ieee"
        if device.type == "cpu" and precision == "tf32":
            self._flag = "ieee"

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Set the backend's flag for the products inside, and put it back."""
        before = self._backend.fp32_precision
        self._backend.fp32_precision = self._flag
        try:
            yield
        finally:
            self._backend.fp32_precision = before

    def mm(self, a: Tensor, b: Tensor, out: Tensor) -> Tensor:
        """``out = a @ b``."""
        if self._cast:
            return out.copy_(torch.mm(a.bfloat16(), b.bfloat16(), out_dtype=torch.float32))
        return torch.mm(a, b, out=out)

    def addmm_(self, target: Tensor, a: Tensor, b: Tensor, beta: float) -> Tensor:
        """``target = beta * target + a @ b``."""
        if self._cast:
            product = torch.mm(a.bfloat16(), b.bfloat16(), out_dtype=torch.float32)
            return target.copy_(product) if beta == 0 else target.mul_(beta).add_(product)
        return target.addmm_(a, b, beta=beta)
