"""Batch norm whose sums are right on CPUs too: statistics of one rank's batch, or of the batch of all ranks.

Ioffe and Szegedy 2015, "Batch Normalization" (algorithm 1). PyTorch 2.13 adds up channels_last inputs on a CPU one
row after the other in fp32: of 1,024 images of 16 x 32 x 32, output and gradients are 2e-4 to 3e-3 off. Here its
kernels add up pieces of some hundred rows, and fp64 adds up the pieces.

Shapes: B = samples of this rank, C = channels, V = values a channel, G = samples side by side in a row, P = pieces.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from megaclass.parallel.groups import all_ranks, world_size

# Sums of a row's channels stay in the first cache and a piece in the second, where the variance's pass finds it. Within
# a piece equal values, as of a flat background, round one way: pieces four times as large are 9e-6 off, half as large
# no better than these and slower.
_ROW, _PIECE = 1024, 2**17


class BatchNorm2d(nn.BatchNorm2d):
    """``torch.nn.BatchNorm2d``, within 1e-6 of fp64 (flat images: 3e-6) where a CPU trains fp32 in channels_last."""

    over_ranks = False

    def forward(self, input: Tensor) -> Tensor:
        joint = self.over_ranks and world_size() > 1
        if not self.training or not (joint or _is_in_rows(input)):
            return super().forward(input)
        self._check_input_dim(input)
        output, mean_C, var_C, count = _Normalised.apply(input, self.weight, self.bias, self.eps, joint)
        if self.track_running_stats:
            assert self.num_batches_tracked is not None
            assert self.running_mean is not None and self.running_var is not None
            self.num_batches_tracked.add_(1)
            rate = 1.0 / self.num_batches_tracked if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean_C.to(self.running_mean.dtype), rate)
            self.running_var.lerp_((var_C * (count / (count - 1))).to(self.running_var.dtype), rate)
        return output


class SynchronisedBatchNorm(BatchNorm2d):
    """torch's SyncBatchNorm, which knows CUDA only, and the same on CPU tensors over gloo.

    Takes (B, C) or (B, C, ...); B may differ between ranks. No subclass of SyncBatchNorm: DistributedDataParallel
    refuses any of those on a CPU.
    """

    over_ranks = True
    process_group = None
    _check_input_dim = nn.SyncBatchNorm._check_input_dim
    _check_non_zero_input_channels = nn.SyncBatchNorm._check_non_zero_input_channels

    def forward(self, input: Tensor) -> Tensor:
        if input.is_cuda:
            return nn.SyncBatchNorm.forward(self, input)  # type: ignore[arg-type]
        return super().forward(input)


def _is_in_rows(input: Tensor) -> bool:
    """Whether PyTorch would add up one row after the other; not where it compiles or exports the module."""
    return (
        not torch.compiler.is_compiling()
        and input.device.type == "cpu"
        and input.ndim == 4
        and input.numel() > input.shape[1]  # torch refuses one value a channel
        and input.dtype == torch.float32  # rounding to bf16 costs a hundred times what its sums do
        and input.is_contiguous(memory_format=torch.channels_last)
    )


class _Normalised(torch.autograd.Function):
    """The output, mean and biased variance of a channel in fp64, and how many values it has (over ``joint`` ranks)."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight_C: Tensor | None, bias_C: Tensor | None, eps: float, joint: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if not input.movedim(1, -1).is_contiguous():
            input = input.contiguous()
        pieces, groups = pieces_of(input)
        channels, precision = input.shape[1], torch.promote_types(input.dtype, torch.float32)
        spare = torch.zeros(2, groups * channels, dtype=precision)  # running statistics, by which it knows fp32 sums
        moments = (torch.batch_norm_update_stats(piece, spare[0], spare[1], 0.0) for piece in pieces)
        mean_PC, var_PC = in_fp64(moments, channels)
        values = [piece.numel() // piece.shape[1] for piece in pieces for _ in range(groups)]
        values_P1 = mean_PC.new_tensor(values).unsqueeze(1)
        # In fp64 the mean of squares less the square of the mean cancels without harm.
        sums_P = torch.cat([values_P1, values_P1 * mean_PC, values_P1 * (var_PC + mean_PC.square())], dim=1)
        sums = _summed(sums_P.sum(0), joint)
        count, (mean_C, square_C) = sums[:1], (sums[1:] / sums[0]).chunk(2)
        var_C = (square_C - mean_C.square()).clamp_min(0.0)
        output = torch.batch_norm(
            input, weight_C, bias_C, mean_C.to(precision), var_C.to(precision), False, 0.0, eps, False
        )
        ctx.save_for_backward(input, weight_C, mean_C, torch.rsqrt(var_C + eps), count)
        ctx.joint, ctx.has_bias = joint, bias_C is not None
        ctx.mark_non_differentiable(mean_C, var_C, count)
        return output, mean_C, var_C, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *unused: Any) -> tuple[Tensor | None, ...]:
        input, weight_C, mean_C, inverse_C, count = ctx.saved_tensors
        input_grad = torch.empty_like(input)
        if grad.stride() != input.stride():
            grad = torch.empty_like(input).copy_(grad)
        (inputs, groups), (grads, _), (outs, _) = (pieces_of(tensor) for tensor in (input, grad, input_grad))
        precision = torch.promote_types(input.dtype, torch.float32)
        near_C = mean_C.to(precision)
        near, ones = near_C.repeat(groups), torch.ones(groups * len(near_C), dtype=precision)
        sums = (
            torch.ops.aten.native_batch_norm_backward(
                g, x, ones, None, None, near, ones, True, 0.0, [False, True, True]
            )[1:]
            for g, x in zip(grads, inputs, strict=True)
        )
        product_C, total_C = (sums_PC.sum(0) for sums_PC in in_fp64(sums, len(near_C)))
        product_C -= (mean_C - near_C) * total_C  # what rounding the mean cost
        weight_grad_C, bias_grad_C = product_C * inverse_C, total_C

        product_C, total_C = _summed(torch.stack([product_C, total_C]), ctx.joint) / count
        slope_C = inverse_C if weight_C is None else inverse_C * weight_C
        turn_C = -slope_C * inverse_C.square() * product_C
        level_C = -slope_C * total_C - turn_C * mean_C
        shape = (1, -1, *[1] * (outs[0].ndim - 2))
        slope, turn, level = (c.to(precision).repeat(groups).view(shape) for c in (slope_C, turn_C, level_C))
        for out, g, x in zip(outs, grads, inputs, strict=True):  # in cache, and rounded once
            torch.addcmul(torch.addcmul(level, x.to(precision), turn), g.to(precision), slope, out=out)
        weight_grad = None if weight_C is None else weight_grad_C
        return input_grad, weight_grad, bias_grad_C if ctx.has_bias else None, None, None


def pieces_of(tensor: Tensor) -> tuple[Sequence[Tensor], int]:
    """Views with channels in dimension 1, and G: rows of the channels of G samples, which divide V; or whole images
    and 1, where the values of a channel lie side by side."""
    channels, groups = tensor.shape[1], 1
    rows = tensor.movedim(1, -1)
    if rows.is_contiguous():
        values = tensor.numel() // channels
        groups = next(g for g in range(max(1, min(_ROW // channels, values)), 0, -1) if values % g == 0)
        tensor = rows.view(-1, groups * channels)
    return tensor.split(max(1, _PIECE // tensor[0].numel())), groups


def in_fp64(of_pieces: Iterable[Sequence[Tensor]], channels: int) -> Iterable[Tensor]:
    """Two results of each piece, as two tensors (P * G, C)."""
    return [torch.stack(column).double().view(-1, channels) for column in zip(*of_pieces, strict=True)]


def _summed(sums: Tensor, joint: bool) -> Tensor:
    return all_ranks().all_reduce_(sums) if joint else sums


def exact_norms(module: nn.Module, over_ranks: bool = False) -> nn.Module:
    """Make each BatchNorm2d of PyTorch's one of ours, in place; with ``over_ranks`` each BatchNorm1d and 2d one whose
    statistics are those of all ranks.

    Nothing but the class changes: parameters, buffers and their names stay. Returns ``module``.
    """
    plain = (nn.BatchNorm1d, nn.BatchNorm2d, BatchNorm2d) if over_ranks else (nn.BatchNorm2d,)
    for norm in module.modules():
        if type(norm) in plain:
            norm.__class__ = SynchronisedBatchNorm if over_ranks else BatchNorm2d
    return module


def average_norm_buffers(module: nn.Module) -> None:
    """Set every ``running_mean`` and ``running_var`` to its mean over the ranks, in one collective.

    For norms with local statistics: called before evaluation and checkpoints it makes the ranks agree.
    """
    buffers = [b for name, b in module.named_buffers() if name.endswith(("running_mean", "running_var"))]
    if world_size() == 1 or not buffers:
        return
    averaged = all_ranks().all_reduce_(torch.cat([b.flatten() for b in buffers]), "mean")
    for buffer, mean in zip(buffers, averaged.split([b.numel() for b in buffers]), strict=True):
        buffer.copy_(mean)
