"""Batch norm over several ranks: statistics of the global batch, or local ones brought to agreement.

Ioffe and Szegedy 2015, "Batch Normalization" (algorithm 1), with the batch of all ranks as the mini-batch.

Shapes: B = samples of this rank, C = channels.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from megaclass.parallel.groups import all_ranks, world_size


class SynchronisedBatchNorm(_BatchNorm):
    """torch's SyncBatchNorm, which knows CUDA only, and the same on CPU tensors over gloo.

    Takes (B, C) or (B, C, ...); B may differ between ranks. Parameter names are those of ``BatchNorm1d/2d``.
    No subclass of SyncBatchNorm: DistributedDataParallel refuses any of those on a CPU.
    """

    process_group = None
    _check_input_dim = nn.SyncBatchNorm._check_input_dim
    _check_non_zero_input_channels = nn.SyncBatchNorm._check_non_zero_input_channels

    def forward(self, input: Tensor) -> Tensor:
        if input.is_cuda:
            return nn.SyncBatchNorm.forward(self, input)  # type: ignore[arg-type]
        if not self.training or world_size() == 1:
            return _BatchNorm.forward(self, input)
        dims = [d for d in range(input.dim()) if d != 1]
        shape = [1, -1] + [1] * (input.dim() - 2)
        mean_C, var_C, count = _global_moments(input.float(), dims)
        if self.track_running_stats:
            assert self.num_batches_tracked is not None
            assert self.running_mean is not None and self.running_var is not None
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                rate = 1.0 / self.num_batches_tracked if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean_C, rate)
                self.running_var.lerp_(var_C * (count / (count - 1)), rate)
        scale_C = torch.rsqrt(var_C + self.eps)
        shift_C = -mean_C * scale_C
        if self.affine:
            scale_C, shift_C = scale_C * self.weight, shift_C * self.weight + self.bias
        return (input * scale_C.view(shape) + shift_C.view(shape)).to(input.dtype)


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return all_ranks().all_reduce_(tensor.clone())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        # Every rank's output is the same sum, so each input receives the sum of all output gradients.
        return all_ranks().all_reduce_(grads[0].contiguous().clone())


def _global_moments(input: Tensor, dims: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and biased variance a channel and the number of values a channel, over all ranks: one collective.

    The sums are fp64, so that the mean of squares less the square of the mean cancels without harm.
    """
    count = input.new_tensor([input.numel() / input.shape[1]], dtype=torch.float64)
    var_C, mean_C = (moment.double() for moment in torch.var_mean(input, dims, correction=0))
    sums: Tensor = _SumOverRanks.apply(torch.cat([count, count * mean_C, count * (var_C + mean_C.square())]))
    count, total_C, squares_C = sums[:1], *sums[1:].chunk(2)
    mean_C = total_C / count
    var_C = (squares_C / count - mean_C.square()).clamp_min(0.0)
    return mean_C.float(), var_C.float(), count.float()


def synchronise_norms(module: nn.Module) -> nn.Module:
    """Replace each BatchNorm1d/2d by one whose statistics are those of all ranks, in place.

    Parameters and buffers are kept (the same tensors under the same keys), so an optimizer made before stays
    valid. Returns ``module``, or its replacement where ``module`` is a norm itself.
    """
    if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d):
        assert isinstance(module, _BatchNorm)
        twin = SynchronisedBatchNorm(
            module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats
        )
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            setattr(twin, name, tensor)
        return twin.train(module.training)
    for name, child in module.named_children():
        setattr(module, name, synchronise_norms(child))
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
