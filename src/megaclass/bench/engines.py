"""The model of ``bench infer``, and what runs it: PyTorch kernel by kernel, torch.compile, its CUDA graphs, or ONNX
Runtime (https://onnxruntime.ai) on what PyTorch's own exporter writes.

Shapes: B = images of a batch, C = classes, D = embedding columns, HW = image.
"""

import importlib
import importlib.util
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from megaclass.config import Config
from megaclass.heads.linear import LinearHead
from megaclass.parallel.seeding import derive_key
from megaclass.train.arithmetic import Arithmetic
from megaclass.train.model import build_model

Forward = Callable[[Tensor], Tensor]
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_INPUT, _OUTPUT = "images", "result"
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_BRANCH_GAIN = 0.2


def build_engine(scorer: "Scorer", images_BCHW: Tensor, case: Any) -> Forward:
    """From normalised images on the device to the result on the device. ``images_BCHW`` are such as will come."""
    if case.engine == "onnx":
        return _onnx(scorer, images_BCHW, case)
    if case.precision in ("bf16", "fp16"):
        cast_weights(scorer, images_BCHW)
    if case.engine == "eager":
        return scorer
    # As a CUDA graph: PyTorch copies the batch into the graph's own input, replays, and hands out its own output.
    mode = "reduce-overhead" if case.engine == "cudagraph" else None
    forward: Forward = torch.compile(scorer, dynamic=False, mode=mode)
    return forward


def load_libraries(engine: str) -> None:
    """Import what an engine is made of: it is no memory of a model."""
    compiler = ("torch._inductor.compile_fx",)
    needed = {"compiled": compiler, "cudagraph": compiler, "onnx": (*PACKAGES, "torch.onnx")}
    for name in needed.get(engine, ()):
        importlib.import_module(name)


class Scorer(nn.Module):
    """images_BCHW, normalised -> logits_BC of a linear head, in fp32 as in training, or embeddings_BD in fp32."""

    def __init__(
        self, backbone: nn.Module, head: LinearHead | None, autocast: Callable[[], AbstractContextManager]
    ) -> None:
        super().__init__()
        self.backbone, self.head, self.autocast = backbone, head, autocast
        self.dtype = torch.float32  # in which the backbone takes its images

    def forward(self, images_BCHW: Tensor) -> Tensor:
        with self.autocast():
            features_BD = self.backbone(images_BCHW.to(self.dtype)).float()
        return features_BD if self.head is None else self.head.logits(features_BD)


def build_scorer(config: Config, device: torch.device) -> tuple[Scorer, Arithmetic]:
    """The model of a configuration, ready for inference; see :func:`cast_weights` for its 16-bit weights."""
    backbone, arithmetic = build_model(config, device)
    head = None
    if config.head.kind == "linear":
        torch.manual_seed(derive_key("head", config.run.seed))
        head = LinearHead(config.data.num_classes, int(backbone.embedding_dim)).to(device)  # type: ignore[arg-type]
    if not config.model.weights:
        wake_branches(backbone)
    return Scorer(backbone, head, arithmetic.autocast).eval().requires_grad_(False), arithmetic


def wake_branches(backbone: nn.Module) -> None:
    """Give norms that begin as zero, as the last of a ResNet's branches does, a weight that trained ones may have.

    Else most of the network would compute zeros, for which a GPU takes less power and clocks higher.
    """
    for module in backbone.modules():
        if isinstance(module, _NORMS) and not module.weight.any():
            nn.init.constant_(module.weight, _BRANCH_GAIN)


def cast_weights(scorer: Scorer, images_BCHW: Tensor) -> None:
    """Store the weights of convolutions as autocast casts them in every step: the same numbers, sooner.

    Which ones it casts, a step on ``images_BCHW`` shows. The first convolution is left as it is: by the type of its
    weights ResNet knows in which one to deliver its features.
    """
    convolutions = [module for module in scorer.backbone.modules() if isinstance(module, nn.Conv2d)]
    cast: dict[nn.Module, torch.dtype] = {}

    def look(module: nn.Module, _: Any, output: Tensor) -> None:
        cast[module] = output.dtype

    hooks = [convolution.register_forward_hook(look) for convolution in convolutions[1:]]
    scorer(images_BCHW)
    for hook in hooks:
        hook.remove()
    for module, dtype in cast.items():
        module.to(dtype)


def missing(device: str) -> str:
    """Why ONNX Runtime cannot take part here, or an empty string."""
    lacking = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if lacking:
        return f"not installed: {', '.join(lacking)}; pip install 'megaclass[onnx]'"
    if device == "cuda":
        import onnxruntime

        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            return "this ONNX Runtime has no CUDA: pip install onnxruntime-gpu in the place of onnxruntime"
    return ""


def _onnx(scorer: Scorer, images_BCHW: Tensor, case: Any) -> Forward:
    """A session that runs ``scorer`` on batches like ``images_BCHW``, which are contiguous fp32 on the case's device.
    Input and output stay there, in memory of PyTorch's.

    The exporter does not carry autocast over whole: in fp16 the whole backbone is cast, norms included (they become
    part of the convolutions); the head stays in fp32.
    """
    import onnxruntime

    scorer.autocast = nullcontext
    scorer.dtype = torch.float16 if case.precision == "fp16" else torch.float32
    scorer.backbone.to(scorer.dtype)
    with torch.no_grad():
        program = torch.onnx.export(
            scorer, (images_BCHW,), dynamo=True, input_names=[_INPUT], output_names=[_OUTPUT], verbose=False
        )
    assert program is not None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = case.threads
    model = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=[provider(case)])
    device = images_BCHW.device
    result = torch.empty([int(size) for size in session.get_outputs()[0].shape], device=device)

    def bind(take: Callable[..., None], name: str, tensor: Tensor) -> None:
        take(name, device.type, device.index or 0, np.float32, tuple(tensor.shape), tensor.data_ptr())

    def forward(images_BCHW: Tensor) -> Tensor:
        binding = session.io_binding()
        bind(binding.bind_input, _INPUT, images_BCHW)
        bind(binding.bind_output, _OUTPUT, result)
        if device.type == "cuda":  # the session works on a stream of its own: the images have to be there
            torch.cuda.current_stream(device).synchronize()
        session.run_with_iobinding(binding)  # returns when the result is there
        return result

    return forward


def provider(case: Any) -> tuple[str, dict[str, str]]:
    """ONNX Runtime's execution provider and its options: it takes tf32 for fp32 unless it is told not to."""
    if case.device == "cpu":
        return "CPUExecutionProvider", {}
    return "CUDAExecutionProvider", {"use_tf32": str(int(case.precision == "tf32" or case.tf32))}
