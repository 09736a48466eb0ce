"""Matrix products of the head: how their operands are rounded, with fp32 results."""

import contextlib
from typing import Any

import torch
from torch import Tensor

from megaclass.heads.precision import cpu_has, fp32_products
from megaclass.heads.tiles import Workspace


class Products:
    """Matrix products with fp32 results; ``precision`` says how their operands are rounded.

    Operands may be rounded, logits may not: at scale 64 a bf16 logit is off by up to 0.1.
    fp32: not at all. tf32: on CUDA; elsewhere the same as fp32. bf16: on CUDA all operands are cast. On a CPU with
    matrix units for it (AMX) oneDNN rounds fp32 operands itself. On one that has bf16 multiplications alone it does
    not, and PyTorch has no product of bf16 with an fp32 result there: the operands of the gradients are cast, whose
    results may be rounded, the logits stay in fp32.

    Attributes:
        operand: the type of the gradients' operands.
        of_logits: that of the logits' operands.
        of_unit_rows: whether rows are divided by their norms before they are multiplied, or the products after. On a
            GPU a batch is larger than a row is wide, and rows are cast anyway; on a CPU it is smaller.
    """

    def __init__(self, precision: str, device: torch.device) -> None:
        on_cuda = device.type == "cuda"
        backends: Any = torch.backends
        self._backend = backends.cuda.matmul if on_cuda else backends.mkldnn.matmul
        self._flag = precision if precision == ("tf32" if on_cuda else "bf16") else "ieee"
        self.workspace = Workspace(device)
        self.operand = operand_type(precision, on_cuda)
        self.of_logits = self.operand if on_cuda else torch.float32
        self.of_unit_rows = on_cuda

    def active(self) -> contextlib.AbstractContextManager[None]:
        """Set the backend's flag for the products inside, and put it back."""
        return fp32_products(self._flag, self._backend)

    def cast(self, name: str, values: Tensor) -> Tensor:
        """``values`` as an operand of gradients: themselves, or a copy in the memory of that name."""
        if values.dtype == self.operand:
            return values
        return self.workspace.get(name, *values.shape, dtype=self.operand).copy_(values)

    def mm(self, out: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """``out = a @ b`` in fp32."""
        if a.dtype == out.dtype:
            return torch.mm(a, b, out=out)
        if a.is_cuda:
            return torch.mm(a, b, out_dtype=torch.float32, out=out)
        return out.copy_(torch.mm(a, b, out=self._rounded(out)))

    def addmm_(self, target: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """``target += a @ b`` in fp32."""
        if a.dtype == target.dtype:
            return target.addmm_(a, b)
        if a.is_cuda:
            return torch.addmm(target, a, b, out_dtype=torch.float32, out=target)
        return target.add_(torch.mm(a, b, out=self._rounded(target)))

    def _rounded(self, like: Tensor) -> Tensor:
        return self.workspace.get("product", *like.shape, dtype=self.operand)


def operand_type(precision: str, on_cuda: bool) -> torch.dtype:
    """Of the gradients' products, see :class:`Products`."""
    has_bf16_without_amx = cpu_has("avx512_bf16") and not cpu_has("amx_tile")
    casts = precision == "bf16" and (on_cuda or has_bf16_without_amx)
    return torch.bfloat16 if casts else torch.float32
