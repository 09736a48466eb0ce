"""PReLU with a backward pass that is fast on CPUs.

He et al. 2015, "Delving Deep into Rectifiers" (section 2.1), with the parameter names of ``torch.nn.PReLU``. The
backward pass of PyTorch 2.13 takes a quarter of the time of an IResNet-18's step in bf16: it computes one element at a
time, and writes a gradient of the slopes as large as the input before it sums it.

Shapes: B = samples, C = channels, H and W = rows and columns, P = pieces.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from megaclass.models.norm import in_fp64, pieces_of


class PReLU(nn.PReLU):
    """``max(x, 0) + slope * min(x, 0)`` of (B, C, H, W), a slope for each channel.

    Values and the gradient of the input are torch's to the bit. The gradient of the slopes is summed in pieces, as
    our norms sum: in fp32 also of 16-bit values, and the pieces in fp64.
    """

    def forward(self, input: Tensor) -> Tensor:
        if _is_in_rows(input) and len(self.weight) == input.shape[1] and not torch.compiler.is_compiling():
            return _PReLUOfRows.apply(input, self.weight)
        return super().forward(input)


def _is_in_rows(input: Tensor) -> bool:
    """On a CPU, with a backward pass to come, and laid out as rows of channels."""
    return (
        input.device.type == "cpu"
        and input.ndim == 4
        and input.numel() > 0
        and torch.is_grad_enabled()
        and input.is_floating_point()
        and input.is_contiguous(memory_format=torch.channels_last)
    )


class _PReLUOfRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, slope_C: Tensor) -> Tensor:
        ctx.save_for_backward(input, slope_C)
        return torch.prelu(input, slope_C.to(input.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        input, slope_C = ctx.saved_tensors
        input_grad = torch.empty_like(input)
        grad = grad.contiguous(memory_format=torch.channels_last)
        (outs, groups), (grads, _), (inputs, _) = (pieces_of(tensor) for tensor in (input_grad, grad, input))
        slope = slope_C.to(input.dtype).repeat(groups)
        near = torch.zeros_like(slope, dtype=torch.promote_types(slope.dtype, torch.float32))
        ones, sums = torch.ones_like(near), []
        for out, g, x in zip(outs, grads, inputs, strict=True):
            torch.ops.aten.threshold_backward(g, x, 0, grad_input=out)  # where the input is above 0
            rest = g - out
            # Of a norm of mean 0 and deviation 1, the gradient of the scale is the sum of rest * x.
            sums.append(
                torch.ops.aten.native_batch_norm_backward(
                    rest, x, ones, None, None, near, ones, True, 0.0, [False, True, False]
                )[1:2]
            )
            out.addcmul_(rest, slope)
        (slope_grad_PC,) = in_fp64(sums, len(slope_C))
        return input_grad, slope_grad_PC.sum(0).to(slope_C.dtype)
