"""What several backbones share: full precision at their end, and activations computed twice for memory."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

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
    return checkpoint(
        block, x, use_reentrant=False, context_fn=lambda: (nullcontext(), _spare_buffers(block))
    )


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
