"""The model of ``bench infer``, and what runs it: PyTorch kernel by kernel, torch.compile, its CUDA graphs, or a
runtime on what PyTorch's own exporter writes.

Shapes: B = images of a batch, C = classes, D = embedding columns, HW = image.
"""

import importlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megaclass.config import Config
from megaclass.export import onnx
from megaclass.export.quantise import quantise
from megaclass.heads.linear import LinearHead
from megaclass.inference import runtimes
from megaclass.inference.runtimes import PACKAGES, open_runtime
from megaclass.parallel.seeding import derive_key
from megaclass.train.arithmetic import Arithmetic
from megaclass.train.model import build_model
from megaclass.train.start import linear_head

Forward = Callable[[Tensor], Tensor]
EXPORTER = ("onnx", "onnxscript")
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_BRANCH_GAIN = 0.2


def build_engine(
    scorer: "Scorer", images_BCHW: Tensor, case: Any, calibration: Callable[[], Iterator[Tensor]]
) -> Forward:
    """From normalised images on the device to the result on the device. ``images_BCHW`` are such as will come, and
    ``calibration`` gives batches of them, from which int8 takes its ranges."""
    if case.engine in PACKAGES:
        return _exported(scorer, images_BCHW, case, calibration)
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
    needed: dict[str, tuple[str, ...]] = {"compiled": compiler, "cudagraph": compiler}
    needed |= {name: (*packages, *EXPORTER, "torch.onnx") for name, packages in PACKAGES.items()}
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


class AsBackbone(nn.Module):
    """An engine made for batches of one size as evaluations use a backbone: with fewer images too."""

    def __init__(self, engine: Forward, batch_size: int) -> None:
        super().__init__()
        self._engine, self._batch_size = engine, batch_size

    def forward(self, images_BCHW: Tensor) -> Tensor:
        count = len(images_BCHW)
        full = F.pad(images_BCHW, (0, 0, 0, 0, 0, 0, 0, self._batch_size - count))
        return self._engine(full)[:count].clone()


def build_scorer(config: Config, device: torch.device) -> tuple[Scorer, Arithmetic]:
    """The model of a configuration, ready for inference; see :func:`cast_weights` for its 16-bit weights. The weights
    that ``model.weights`` names may bring their last layer along."""
    backbone, arithmetic = build_model(config, device)
    head = None
    if config.head.kind == "linear":
        torch.manual_seed(derive_key("head", config.run.seed))
        head = linear_head(backbone, config.model.weights) if config.model.weights else None
        head = head or LinearHead(config.data.num_classes, int(backbone.embedding_dim))  # type: ignore[arg-type]
        head.to(device)
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

    Which ones it casts, a step on ``images_BCHW`` shows.
    """
    convolutions = [module for module in scorer.backbone.modules() if isinstance(module, nn.Conv2d)]
    cast: dict[nn.Module, torch.dtype] = {}

    def look(module: nn.Module, _: Any, output: Tensor) -> None:
        cast[module] = output.dtype

    hooks = [convolution.register_forward_hook(look) for convolution in convolutions]
    scorer(images_BCHW)
    for hook in hooks:
        hook.remove()
    for module, dtype in cast.items():
        module.to(dtype)


def missing(case: Any) -> str:
    """Why the engine of the case cannot take part here, or an empty string."""
    if case.engine not in PACKAGES:
        return ""
    return runtimes.missing(case.engine, case.device, EXPORTER + (("nncf",) if case.precision == "int8" else ()))


def _exported(scorer: Scorer, images_BCHW: Tensor, case: Any, calibration: Callable[[], Iterator[Tensor]]) -> Forward:
    """A session that runs ``scorer`` on batches like ``images_BCHW``, which are contiguous fp32.

    The exporter does not carry autocast over whole: in fp16 the whole backbone is cast, norms included (they become
    part of the convolutions); the head stays in fp32.
    """
    scorer.autocast = nullcontext
    scorer.dtype = torch.float16 if case.precision == "fp16" else torch.float32
    scorer.backbone.to(scorer.dtype)
    with tempfile.TemporaryDirectory() as directory, torch.no_grad():
        path = Path(directory) / "model.onnx"
        onnx.write(path, torch.export.export(scorer, (images_BCHW,)), "", "result")
        if case.precision == "int8":
            quantise(path, calibration(), transformer=case.backbone.startswith("vit"))
        numbers = "tf32" if case.tf32 else case.precision
        place = images_BCHW.device
        return open_runtime(path, place, threads=case.threads, precision=numbers, engine=case.engine)
