"""From a configuration to the backbone on its device: weights, arithmetic, compilation."""

import contextlib
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from megaclass.checkpoint.weights import read_weights
from megaclass.config import Config
from megaclass.data.preprocessing import NORMALISATIONS, Preprocessing
from megaclass.errors import UserError, first_line
from megaclass.models.layers import Stage
from megaclass.models.of_timm import TimmBackbone
from megaclass.models.registry import configured_backbone, load_backbone_weights
from megaclass.parallel import groups
from megaclass.parallel.seeding import derive_key
from megaclass.train.arithmetic import Arithmetic, pick_arithmetic

logger = logging.getLogger(__name__)

BACKEND = "inductor"
# Blocks of one class share their code where shapes agree; a ResNet-50 has eight kinds, and images may grow.
_RECOMPILE_LIMIT = 128


def build_model(config: Config, device: torch.device) -> tuple[nn.Module, Arithmetic]:
    """The backbone on its device, with the weights that ``run.seed`` or ``model.weights`` says, and how it computes."""
    model = config.model
    torch.manual_seed(derive_key("weights", config.run.seed))
    backbone = configured_backbone(model, config.data.image_size, config.head.kind)
    _check_sizes(config, backbone)
    if model.weights:
        load_backbone_weights(backbone, read_weights(Path(model.weights))[0], model.weights)
        normalised = NORMALISATIONS[config.data.normalise]
        about = getattr(backbone, "about", {"mean": normalised[0], "std": normalised[1]})  # of timm's
        if (wanted := (about["mean"], about["std"])) != normalised and groups.rank() == 0:
            logger.warning("data.normalise: the weights of %s expect %s, not %s", model.name, wanted, normalised)
    channels_last = config.precision.channels_last
    if channels_last and device.type == "cpu" and _breaks_channels_last(backbone):
        if groups.rank() == 0:
            logger.warning(
                "precision.channels_last is off: PyTorch's convolutions crash in it on a CPU below 16 channels"
            )
        channels_last = False
    arithmetic = pick_arithmetic(config.precision.compute, channels_last, device, config.precision.tf32)
    moved: nn.Module = backbone.to(device, memory_format=arithmetic.memory_format)  # type: ignore[call-overload]
    return moved, arithmetic


def _check_sizes(config: Config, backbone: nn.Module) -> None:
    """UserError where the backbone does not take a size of images that is asked for."""
    data, size = config.data, config.data.image_size
    keys = {
        config.evaluate.image_size: "evaluate.image_size",
        data.start_size: "data.start_size",
        size: "data.image_size",
    }
    for value, key in keys.items():
        if value not in (0, size) and not getattr(backbone, "takes_any_size", False):
            raise UserError(
                f"{key}: {value}, but {config.model.name} is made for images of {size} pixels alone; "
                "leave it 0, or take a resnet"
            )
        if value and isinstance(backbone, TimmBackbone):
            backbone.require_size(value, key)


def _breaks_channels_last(backbone: nn.Module) -> bool:
    """Whether there is a 1x1 convolution of stride 2 from fewer than 16 channels: its backward pass writes beyond its
    memory, as seen with PyTorch 2.13 and AVX-512."""
    found = (m for m in backbone.modules() if isinstance(m, nn.Conv2d))
    return any(m.kernel_size == (1, 1) and m.stride != (1, 1) and m.in_channels < 16 for m in found)


def preprocessing_of(config: Config) -> Preprocessing:
    """What evaluated images become."""
    size = config.evaluate.image_size or config.data.image_size
    mean, std = NORMALISATIONS[config.data.normalise]
    return Preprocessing(size, size, config.evaluate.resize, mean, std)


def input_function(config: Config, arithmetic: Arithmetic) -> Callable[[Tensor], Tensor]:
    """uint8 (B, S, S, 3) on any device -> normalised fp32 (B, 3, S, S) on the run's device."""
    return partial(preprocessing_of(config).to_input, device=arithmetic.device, channels_last=arithmetic.channels_last)


def compile_backbone(backbone: nn.Module, how: str, device: torch.device) -> str:
    """Compile ``backbone`` in place: ``none``, ``blocks`` (regional: a block of each kind once, so training starts
    sooner), ``whole``, or ``auto``, which is blocks on CUDA where it works. A backbone without stages has no blocks:
    it is compiled whole, but by ``auto`` not at all. Returns what was done. Parameter names stay as they are.
    """
    blocks = [block for stage in backbone.modules() if isinstance(stage, Stage) for block in stage]
    if how == "auto":
        how = "blocks" if blocks and device.type == "cuda" and _compiles_on(device) else "none"
    elif how == "blocks" and not blocks:
        how = "whole"
    if how != "none":
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _RECOMPILE_LIMIT)
        for part in blocks if how == "blocks" else [backbone]:
            part.compile(backend=BACKEND, dynamic=False)
    return how


def eager(compiled: str) -> AbstractContextManager:
    """Of passes in an evaluation: they have other shapes, and are not worth their compilation."""
    return contextlib.nullcontext() if compiled == "none" else torch.compiler.set_stance("force_eager")


def _compiles_on(device: torch.device) -> bool:
    """Whether a small function compiles and computes there."""
    try:
        values = torch.arange(64.0, device=device)
        doubled = torch.compile(lambda x: torch.relu(x) * 2, backend=BACKEND)(values)
        return bool(torch.equal(doubled, 2 * values))
    except Exception as error:  # no Triton, no compiler, an unknown GPU, ...
        logger.warning("speed.compile is off: torch.compile fails here (%s)", first_line(error))
        return False


def capture_graphs(config: Config, backbone: nn.Module, arithmetic: Arithmetic, compiled: str, ranks: int) -> None:
    """Make the training passes of ``backbone`` on CUDA one graph each, replayed for images of the configured shape.

    Evaluation goes on without. Warm-up passes leave no trace in the running statistics.
    """
    if arithmetic.device.type != "cuda":
        raise UserError("speed.cuda_graphs: there are none on a CPU; leave it out")
    if compiled == "whole":
        raise UserError(f"speed.cuda_graphs: {config.model.name} has no blocks to compile; set speed.compile to none")
    size = config.data.image_size
    shape = (config.data.global_batch_size // ranks, 3, size, size)
    images = torch.zeros(shape, device=arithmetic.device).to(memory_format=arithmetic.memory_format)
    kept = [buffer.clone() for buffer in backbone.buffers()]
    backbone.train()
    with arithmetic.active(), arithmetic.autocast():
        torch.cuda.make_graphed_callables(backbone, (images,))
    for buffer, value in zip(backbone.buffers(), kept, strict=True):
        buffer.copy_(value)
