"""What each layer of a backbone computes and moves, counted on a model without memory: PyTorch's meta device.

The operators that PyTorch runs in a forward and a backward pass are recorded as they are called. Nothing is
computed, so the batch may be any number: a large prime, which no dimension of a network is a multiple of, tells what
grows with the batch from what does not.
"""

import contextlib
import functools
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from megaclass.bench.cost import meta_model
from megaclass.config import Config

BATCH = 1_000_003
ITEM_BYTES = {"fp32": 4, "tf32": 4, "bf16": 2, "fp16": 2}
FORWARD, DATA, WEIGHTS = "forward", "data", "weights"

_KINDS = {
    "convolution": "conv",
    "convolution_backward": "conv",
    "addmm": "linear",
    "mm": "linear",
    "bmm": "linear",
    "native_batch_norm": "norm",
    "native_batch_norm_backward": "norm",
    "native_layer_norm": "norm",
    "native_layer_norm_backward": "norm",
    "add": "add",
    "add_": "add",
    "mean": "pool",
    "max_pool2d_with_indices": "pool",
    "max_pool2d_with_indices_backward": "pool",
    "avg_pool2d": "pool",
    "avg_pool2d_backward": "pool",
}
_UNREAD = {"max_pool2d_with_indices_backward": 1}  # its input, of which it takes the shape alone
_NOTHING_MOVES = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}


@dataclass(frozen=True)
class Bytes:
    """``image``: for each image of the batch. ``step``: once for the batch, as weights and their gradients are."""

    image: float = 0.0
    step: float = 0.0

    def __add__(self, other: "Bytes") -> "Bytes":
        return Bytes(self.image + other.image, self.step + other.step)


@dataclass(frozen=True)
class Op:
    """One operator. ``reads`` and ``writes``: what is in memory, by number. ``flops``: of an image."""

    kind: str
    stage: str
    direction: str
    flops: float = 0.0
    reads: dict[int, Bytes] = field(default_factory=dict)
    writes: dict[int, Bytes] = field(default_factory=dict)
    # Whether its output can be made while its input is passed through, so that neither is in memory between the two.
    passes: bool = False

    @property
    def moved(self) -> Bytes:
        return sum([*self.reads.values(), *self.writes.values()], Bytes())

    @property
    def is_backward(self) -> bool:
        return self.direction != FORWARD


def trace(config: Config, precision: str) -> list[Op]:
    """Every operator of a training step's forward and backward pass, with activations in ``precision`` and weights and
    their gradients in fp32. Products are counted in floating point operations (two for a product and a sum), the
    rest by what it moves alone. Recomputed activations do not count: no step needs them."""
    options = {k: value for k, value in asdict(config.model).items() if not k.startswith("checkpoint")}
    return list(_traced(json.dumps(options), config.data.image_size, precision))


@functools.cache
def _traced(model_options: str, image_size: int, precision: str) -> tuple[Op, ...]:
    return tuple(trace_module(meta_model(model_options, image_size), image_size, precision))


def trace_module(model: nn.Module, image_size: int, precision: str) -> list[Op]:
    """See :func:`trace`. model: on the meta device, from images of three channels to one tensor."""
    recorder = _Recorder(ITEM_BYTES[precision])
    images = torch.empty(BATCH, 3, image_size, image_size, device="meta")
    with _told_stages(model.train(), recorder), recorder:
        output = model(images)
        _name_backward(output, "end", recorder)
        recorder.is_backward = True
        output.backward(torch.empty_like(output))
    return recorder.ops


class _Recorder(TorchDispatchMode):
    def __init__(self, item_bytes: int) -> None:
        super().__init__()
        self.ops: list[Op] = []
        self.stage, self.is_backward = "stem", False
        self.named: set[Any] = set()  # nodes of the backward pass that have their stage
        self._item_bytes = item_bytes
        # By storage: views share it, and what a backward pass is given back has it too. Held, or it would be reused.
        self._number: dict[int, int] = {}
        self._held: list[torch.UntypedStorage] = []
        self._count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        alias = func._schema.returns[0].alias_info if func._schema.returns else None
        is_view = alias is not None and not alias.is_write
        if not is_view and name not in _NOTHING_MOVES:
            self._note(func, name, list(args), out)
        return out

    def _note(self, func: Any, name: str, args: list[Any], out: Any) -> None:
        outputs = [t for t in (out if isinstance(out, tuple | list) else [out]) if isinstance(t, Tensor)]
        if name == "convolution_backward":
            self._note_convolution(args, out)
            return
        if not any(t.dim() for t in outputs):
            return  # a norm counts its steps
        if (unread := _UNREAD.get(name)) is not None:
            del args[unread]
        reads = self._reads(args)
        direction = FORWARD if not self.is_backward else DATA
        if self.is_backward and not any(_grows(t) for t in outputs):
            direction = WEIGHTS
        flops = (
            flop_registry[func.overloadpacket](*args, out_val=out) if name in ("addmm", "mm", "bmm") else 0
        )
        if name == "convolution":
            flops = _convolution_flops(outputs[0], args[1])
        kind = _KINDS.get(name, "")
        # A sum here is a gradient of weights, added up as what it is the sum of is made.
        passes = (
            torch.Tag.pointwise in func.tags
            or name.startswith("_prelu")
            or (name == "sum" and direction == WEIGHTS)
        )
        self.ops.append(
            Op(
                kind=kind or ("activation" if passes else "other"),
                stage=self.stage,
                direction=direction,
                flops=flops / BATCH,
                reads=reads,
                writes=self._writes(outputs),
                passes=passes or kind == "norm",
            )
        )

    def _note_convolution(self, args: list[Any], out: Any) -> None:
        """Its two gradients, which are two operators on every device."""
        gradient, image, weight = args[:3]
        flops = _convolution_flops(gradient, weight) / BATCH
        for direction, operand, target in ((DATA, weight, out[0]), (WEIGHTS, image, out[1])):
            if target is not None:
                reads, writes = self._reads([gradient, operand]), self._writes([target])
                self.ops.append(Op("conv", self.stage, direction, flops, reads, writes))

    def _reads(self, args: list[Any]) -> dict[int, Bytes]:
        flat = [t for arg in args for t in (arg if isinstance(arg, list | tuple) else [arg])]
        return {self._of(t): self._bytes(t) for t in flat if isinstance(t, Tensor)}

    def _writes(self, outputs: list[Tensor]) -> dict[int, Bytes]:
        """Under new numbers, also where an operator writes over its input."""
        for tensor in outputs:
            self._number.pop(tensor.untyped_storage()._cdata, None)
        return {self._of(t): self._bytes(t) for t in outputs}

    def _of(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._number:
            self._held.append(storage)
            self._number[storage._cdata] = self._count
            self._count += 1
        return self._number[storage._cdata]

    def _bytes(self, tensor: Tensor) -> Bytes:
        sizes = zip(tensor.shape, tensor.stride(), strict=True)
        elements = math.prod(size for size, stride in sizes if stride)  # what is expanded is there once
        if not _grows(tensor):
            return Bytes(step=elements * tensor.element_size())
        size = self._item_bytes if tensor.is_floating_point() else tensor.element_size()
        return Bytes(image=elements * size / BATCH)


def _grows(tensor: Tensor) -> bool:
    """Whether its size grows with the batch."""
    return any(size and size % BATCH == 0 for size in tensor.shape)


def _convolution_flops(output: Tensor, weight: Tensor) -> int:
    """Of the forward pass, and of either gradient. (PyTorch's counter takes the gradient of the weights of a grouped
    convolution for that of an ungrouped one.)"""
    return 2 * output.numel() * math.prod(weight.shape[1:])


@contextlib.contextmanager
def _told_stages(model: nn.Module, recorder: _Recorder) -> Iterator[None]:
    """While it lasts, operators get the stage of the model that they belong to: ``stem``, the stages by name,
    ``end``."""
    stages = dict(_stages_of(model))

    def enter(name: str, part: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        _name_backward(inputs[0], recorder.stage, recorder)
        recorder.stage = name

    def leave(name: str, part: nn.Module, inputs: Any, output: Tensor) -> None:
        _name_backward(output, name, recorder)
        if name == list(stages)[-1]:
            recorder.stage = "end"

    with contextlib.ExitStack() as stack:
        for name, part in stages.items():
            hooks = (
                part.register_forward_pre_hook(functools.partial(enter, name)),
                part.register_forward_hook(functools.partial(leave, name)),
            )
            for hook in hooks:
                stack.callback(hook.remove)
        yield


def _stages_of(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The direct parts of a model that hold layers in sequence."""
    for name, part in model.named_children():
        if isinstance(part, nn.Sequential):
            yield name, part
        elif isinstance(part, nn.ModuleList):
            yield from ((f"{name}.{index}", one) for index, one in enumerate(part))


def _name_backward(output: Tensor, stage: str, recorder: _Recorder) -> None:
    """What ``output`` came from and has no stage yet belongs to this one, when its gradient is computed too."""

    def enter(gradients: Any) -> None:
        recorder.stage = stage

    waiting = [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in recorder.named:
            recorder.named.add(node)
            node.register_prehook(enter)
            waiting.extend(before for before, _ in node.next_functions)
