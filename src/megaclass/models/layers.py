"""What several backbones share: residual stages, full precision at their end, activations computed twice for memory."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def full_precision(device: torch.device) -> AbstractContextManager:
    """Switch autocast off on ``device`` where it is on; where it is off, exports see no context at all."""
    if device.type in ("cpu", "cuda") and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


class Stage(nn.Sequential):
    """Blocks in sequence. With ``recompute``, training keeps only each block's input for the backward pass.

    The rest of a block is then computed a second time there (Chen et al. 2016, "Training Deep Nets with
    Sublinear Memory Cost"). The second run leaves running statistics alone, so results do not change.
    """

    def __init__(self, *blocks: nn.Module, recompute: bool = False) -> None:
        super().__init__(*blocks)
        self.recompute = recompute

    def forward(self, x: Tensor) -> Tensor:
        for block in self:
            x = _recomputed(block, x) if self.recompute and self.training else block(x)
        return x


def _recomputed(block: nn.Module, x: Tensor) -> Tensor:
    return checkpoint(block, x, use_reentrant=False, context_fn=lambda: (nullcontext(), _spare_buffers(block)))


@contextmanager
def _spare_buffers(block: nn.Module) -> Iterator[None]:
    """Let ``block`` update copies of its buffers, to be thrown away."""
    kept = [(m, name, buffer) for m in block.modules() for name, buffer in m.named_buffers(recurse=False)]
    for module, name, buffer in kept:
        setattr(module, name, buffer.clone())
    try:
        yield
    finally:
        for module, name, buffer in kept:
            setattr(module, name, buffer)


def leave_out(branch: Tensor, share: float, training: bool) -> Tensor:
    """Stochastic depth: in training the branch is 0 for this share of the samples, and larger for the others, so that
    its mean stays (Huang et al. 2016, arXiv:1603.09382, one draw a sample)."""
    if not training or share == 0:
        return branch
    shape = (len(branch),) + (1,) * (branch.ndim - 1)
    return branch * branch.new_empty(shape).bernoulli_(1 - share).div_(1 - share)


def leave_out_more_by_depth(blocks: Iterable[Any], share: float) -> None:
    """Give the blocks their ``drop_path``: 0 in the first, rising evenly to ``share`` in the last."""
    first, *later = blocks
    first.drop_path = 0.0
    for number, block in enumerate(later, start=1):
        block.drop_path = share * number / len(later)


def residual_stages(
    block: Any,
    channels: int,
    blocks: Sequence[int],
    first_stride: int,
    recomputed: Collection[float],
    **options: Any,
) -> Iterator[Stage]:
    """Stages after a stem of ``channels``; each further one has twice the width and half the resolution.

    ``block(in_channels, width, stride, **options)`` gives ``block.expansion`` times its width. ``recomputed``: numbers
    of stages, from 1.
    """
    for index, count in enumerate(blocks):
        width = channels * 2**index
        entering = width // 2 * block.expansion if index else channels
        first = block(entering, width, 2 if index else first_stride, **options)
        later = (block(width * block.expansion, width, 1, **options) for _ in range(count - 1))
        yield Stage(first, *later, recompute=index + 1 in recomputed)


def shortcut(in_channels: int, out_channels: int, stride: int, pool: bool = False) -> nn.Module | None:
    """What a block's input passes before it is added, where its shape must change.

    ``pool``: the mean of 2x2 pixels takes the place of the convolution's stride, which looks at a quarter of them only.
    """
    if stride == 1 and in_channels == out_channels:
        return None
    halves = nn.AvgPool2d(2, stride, ceil_mode=True, count_include_pad=False) if stride > 1 else nn.Identity()
    projection = nn.Conv2d(in_channels, out_channels, 1, 1 if pool else stride, bias=False)
    norm = nn.BatchNorm2d(out_channels)
    return nn.Sequential(halves, projection, norm) if pool else nn.Sequential(projection, norm)
