"""Matrix products of the head at a chosen precision, always with fp32 results.

Products may be rounded, logits may not: at scale 64 a bf16 logit is off by up to 0.1.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")

_FP16_PEAK = 2.0**15


class Products:
    """fp32 in, fp32 out; ``precision`` says how the operands are rounded inside.

    fp32: not at all. tf32: on CUDA; elsewhere the same as fp32. bf16: on CUDA by casting the operands; on
    a CPU by oneDNN, which uses bf16 where the processor has matrix units for it and fp32 elsewhere. fp16: by
    casting the operands, the first with each row's largest number at 2 ** 15, because exponentials leave its
    range at both ends; on a CPU they are rounded to it and multiplied in fp32.
    """

    def __init__(self, precision: str, device: torch.device) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {PRECISIONS}, got {precision!r}")
        self.precision = precision
        on_cuda = device.type == "cuda"
        self._cast = precision == "fp16" or (precision == "bf16" and on_cuda)
        backends: Any = torch.backends
        self._backend = backends.cuda.matmul if on_cuda else backends.mkldnn.matmul
        self._flag = "ieee"
        if precision == ("tf32" if on_cuda else "bf16"):
            self._flag = precision

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
        return out.copy_(self._rounded(a, b)) if self._cast else torch.mm(a, b, out=out)

    def addmm_(self, target: Tensor, a: Tensor, b: Tensor, beta: float) -> Tensor:
        """``target = beta * target + a @ b``."""
        if self._cast:
            product = self._rounded(a, b)
            return target.copy_(product) if beta == 0 else target.mul_(beta).add_(product)
        return target.addmm_(a, b, beta=beta)

    def _rounded(self, a: Tensor, b: Tensor) -> Tensor:
        if self.precision == "bf16":
            return torch.mm(a.bfloat16(), b.bfloat16(), out_dtype=torch.float32)
        unit_N1 = a.abs().amax(1, keepdim=True).clamp_(min=1e-30).div_(_FP16_PEAK)
        a, b = (a / unit_N1).half(), b.half()
        product = torch.mm(a, b, out_dtype=torch.float32) if a.is_cuda else a.float() @ b.float()
        return product.mul_(unit_N1)
