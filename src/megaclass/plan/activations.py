"""What the passes of a backbone hold and compute, counted on tensors without memory."""

import functools
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import conv_flop_count, flop_registry

from megaclass.config import Config, Model
from megaclass.models.of_timm import TimmBackbone
from megaclass.models.registry import configured_backbone

# A prime that divides the size of no weight: what it divides has a row for each image.
_IMAGES = 10_007
_aten = torch.ops.aten
# PyTorch's table counts no attention on CPUs, and grouped convolutions backwards as if they were not.
_FLOPS = flop_registry | {
    getattr(_aten, f"{name}_for_cpu{pass_}"): flop_registry[getattr(_aten, name + pass_)]
    for name in ["_scaled_dot_product_flash_attention"]
    for pass_ in ("", "_backward")
}
_FLOPS[_aten.convolution_backward] = lambda grad, x, w, *_, out_val: 2 * conv_flop_count(x.shape, w.shape, grad.shape)


@dataclass(frozen=True)
class Passes:
    """A forward and a backward pass of a backbone."""

    trained: int  # parameters that have gradients
    floats: int  # they, those that are fixed, and norm statistics
    embedding_dim: int
    forward_flops: float  # operations of an image (a product and a sum are two)
    flops: float  # of both passes
    # (moments, 2, 3): at each moment, of what either pass has made, bytes of gradients, of the rest that does not grow
    # with the batch, which are 16-bit copies of weights, and of an image.
    live: np.ndarray

    def peak(self, images: int, gradients_stay: bool) -> tuple[int, ...]:
        """Bytes of gradients, casts and activations when they take most together. gradients_stay: those of all weights
        are there throughout, as buckets of DistributedDataParallel or from micro-batches before."""
        live = self.live.sum(axis=1) * [1, 1, images]
        if gradients_stay:
            live[:, 0] = live[-1, 0]
        return (*map(int, live[live.sum(axis=1).argmax()]),)

    def grown(self, images: int) -> int:
        """By how much they make a CPU process grow. For a tensor, whose address is a multiple of 64, glibc needs 96
        bytes more than an equal one leaves, and autograd's small objects keep holes apart until the pass ends:
        backward hardly uses those of forward. As measured, a tenth is lost besides."""
        return int(1.1 * (self.live @ [1, 1, images]).max(axis=0).sum())


def passes_of(config: Config, compute: str) -> Passes:
    """Of the configured backbone. compute: ``precision.compute`` with ``auto`` resolved.

    As plain PyTorch computes it: a compiled backbone holds less. Work space of libraries is not seen.
    """
    model, size, kind = config.model, config.data.image_size, config.head.kind
    return _counted(model, size, kind, compute, config.precision.channels_last)


@functools.cache
def _counted(model: Model, image_size: int, head: str, compute: str, channels_last: bool) -> Passes:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    with torch.device("meta"):
        backbone = configured_backbone(model, image_size, head)
        backbone.to(memory_format=layout)  # type: ignore[call-overload]
        if isinstance(backbone, TimmBackbone):
            backbone.require_size(image_size, "data.image_size")
    mode, there = FakeTensorMode(), [*backbone.parameters(), *backbone.buffers()]
    held = {id(tensor): FakeTensor(mode, tensor.detach(), torch.device("cpu")) for tensor in there}
    for module in backbone.modules():
        for name, parameter in module.named_parameters(recurse=False):
            module._parameters[name] = nn.Parameter(held[id(parameter)], parameter.requires_grad)
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = held[id(buffer)]
    backbone.train()
    counter, half = _Counter(held.values()), {"bf16": torch.bfloat16, "fp16": torch.float16}.get(compute)
    autocast = torch.autocast("cpu", half or torch.bfloat16, enabled=half is not None)

    # The layers' own passes on CPUs hold as much as PyTorch's, and make ten times the calls.
    with mode, counter, patch.object(torch.compiler, "is_compiling", lambda: True):
        images = torch.empty(_IMAGES, 3, image_size, image_size).to(memory_format=layout)
        with autocast:
            embeddings = backbone(images)
        forward_flops, forward_changes = counter.flops, len(counter.changes)
        embeddings.float().sum().backward()
    return Passes(
        sum(p.numel() for p in backbone.parameters() if p.requires_grad),
        sum(tensor.numel() for tensor in there if tensor.is_floating_point()),
        int(backbone.embedding_dim),  # type: ignore[arg-type]
        forward_flops / _IMAGES,
        counter.flops / _IMAGES,
        counter.live(forward_changes),
    )


class _Counter(TorchDispatchMode):
    """Notes when memory is taken and when it is let go; ``there`` was before."""

    def __init__(self, there: Iterable[Tensor]) -> None:
        super().__init__()
        self.flops = 0.0
        self._known = {tensor.untyped_storage()._cdata for tensor in there}
        self._bytes: list[int] = []  # of each storage, in their order
        self.changes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if of_packet := _FLOPS.get(func._overloadpacket):
            self.flops += of_packet(*args, **(kwargs or {}), out_val=out)
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._known:
                    self._known.add(storage._cdata)
                    self.changes.append(len(self._bytes))
                    weakref.finalize(storage, self._let_go, storage._cdata, len(self._bytes))
                    self._bytes.append(storage.nbytes())
        return out

    def _let_go(self, key: int, number: int) -> None:
        self._known.discard(key)
        self.changes.append(~number)

    def live(self, forward_changes: int) -> np.ndarray:
        """As :class:`Passes` has it."""
        sizes, changes = np.array(self._bytes), np.array(self.changes)
        made, number = np.where(changes < 0, -1, 1), np.where(changes < 0, ~changes, changes)
        grows = sizes % _IMAGES == 0
        stays = ~grows  # to the end: these are the gradients
        stays[number[made < 0]] = False
        kinds = np.stack([sizes * stays, sizes * ~(stays | grows), sizes * grows // _IMAGES], axis=1)
        later = np.arange(len(sizes)) >= (changes[:forward_changes] >= 0).sum()
        return (np.stack([kinds * ~later[:, None], kinds * later[:, None]], 1)[number] * made[:, None, None]).cumsum(0)
