"""A backbone compiled by torch.compile, or captured as a CUDA graph: the same numbers with fewer kernels.

Nothing here has run on a GPU yet.
"""

import contextlib
import logging
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from megaclass.models.layers import Stage
from megaclass.train.arithmetic import Arithmetic

logger = logging.getLogger(__name__)

BACKEND = "inductor"
# Blocks of one class share their code where shapes agree; a ResNet-50 has eight kinds, and images may grow.
_RECOMPILE_LIMIT = 128


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


def _compiles_on(device: torch.device) -> bool:
    """Whether a small function compiles and computes there."""
    try:
        values = torch.arange(64.0, device=device)
        doubled = torch.compile(lambda x: torch.relu(x) * 2, backend=BACKEND)(values)
        return bool(torch.equal(doubled, 2 * values))
    except Exception as error:  # no Triton, no compiler, an unknown GPU, ...
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        logger.warning("speed.compile is off: torch.compile fails here (%s)", first_line)
        return False


@contextlib.contextmanager
def uncompiled() -> Iterator[None]:
    """Run compiled modules as they were written: an evaluation has other shapes, and is not worth their compilation."""
    with torch.compiler.set_stance("force_eager"):
        yield


def capture_graphs(backbone: nn.Module, images: Tensor, arithmetic: Arithmetic) -> None:
    """Make the training passes of ``backbone`` on CUDA one graph each, replayed for images shaped as these.

    Evaluation goes on without. Warm-up passes leave no trace in the running statistics.
    """
    kept = [buffer.clone() for buffer in backbone.buffers()]
    backbone.train()
    with arithmetic.active(), arithmetic.autocast():
        torch.cuda.make_graphed_callables(backbone, (images,))
    for buffer, value in zip(backbone.buffers(), kept, strict=True):
        buffer.copy_(value)
