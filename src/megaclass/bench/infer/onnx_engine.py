"""The same model in ONNX Runtime (https://onnxruntime.ai), exported by PyTorch's own exporter.

Shapes: B = images of a batch, HW = image.
"""

import contextlib
import copy
import importlib
import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from megaclass.bench.infer.cases import InferCase
from megaclass.bench.infer.model import Scorer

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_INPUT, _OUTPUT = "images", "result"
_NO_MEMORY = ("Failed to allocate memory", "bad_alloc", "bad allocation")


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


def load_libraries() -> None:
    for name in (*PACKAGES, "torch.onnx"):
        importlib.import_module(name)


def build(scorer: Scorer, images_BCHW: Tensor, case: InferCase) -> Callable[[Tensor], Tensor]:
    """A session that runs ``scorer`` on batches like ``images_BCHW``, which are contiguous fp32 on the case's device.

    In fp16 the whole backbone is cast, norms included (they become part of the convolutions); the head stays in fp32.
    """
    half = torch.float16 if case.precision == "fp16" else torch.float32
    model = export(_Exported(scorer, half), images_BCHW)
    session = _session(model, case)
    return _on_cuda(session, images_BCHW) if case.device == "cuda" else _on_cpu(session)


def export(module: nn.Module, images_BCHW: Tensor) -> bytes:
    """``module`` as an ONNX model of one input, ``images`` of this shape, and one output, ``result``."""
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)  # it names every package that it could know and that is not installed
    try:
        with warnings.catch_warnings(action="ignore"), torch.no_grad():
            program = torch.onnx.export(
                module,
                (images_BCHW,),
                dynamo=True,
                input_names=[_INPUT],
                output_names=[_OUTPUT],
                verbose=False,
            )
    finally:
        exporter.setLevel(level)
    assert program is not None
    return program.model_proto.SerializeToString()


class _Exported(nn.Module):
    """A scorer without autocast, which the exporter does not carry over whole, in one ``dtype`` up to the head."""

    def __init__(self, scorer: Scorer, dtype: torch.dtype) -> None:
        super().__init__()
        self.backbone = copy.deepcopy(scorer.backbone).to(dtype)
        self.head, self._dtype = scorer.head, dtype

    def forward(self, images_BCHW: Tensor) -> Tensor:
        features_BD = self.backbone(images_BCHW.to(self._dtype)).float()
        return features_BD if self.head is None else self.head.logits(features_BD)


def _session(model: bytes, case: InferCase) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = case.threads
    options.log_severity_level = 3  # errors
    with _memory_errors():
        return onnxruntime.InferenceSession(model, options, providers=[provider(case)])


def provider(case: InferCase) -> tuple[str, dict[str, str]]:
    """ONNX Runtime's execution provider and its options: it takes tf32 for fp32 unless it is told not to."""
    if case.device == "cpu":
        return "CPUExecutionProvider", {}
    tf32 = case.precision == "tf32" or case.tf32
    return "CUDAExecutionProvider", {"use_tf32": str(int(tf32))}


def _on_cpu(session: Any) -> Callable[[Tensor], Tensor]:
    def forward(images_BCHW: Tensor) -> Tensor:
        with _memory_errors():
            (result,) = session.run([_OUTPUT], {_INPUT: images_BCHW.numpy()})
        return torch.from_numpy(result)

    return forward


def _on_cuda(session: Any, images_BCHW: Tensor) -> Callable[[Tensor], Tensor]:
    """Input and output stay on the device, in memory of PyTorch's."""
    import numpy as np

    shape = [int(size) for size in session.get_outputs()[0].shape]
    result = torch.empty(shape, device=images_BCHW.device)
    device = {"device_type": "cuda", "device_id": images_BCHW.device.index or 0, "element_type": np.float32}

    def forward(images_BCHW: Tensor) -> Tensor:
        binding = session.io_binding()
        binding.bind_input(
            _INPUT, shape=tuple(images_BCHW.shape), buffer_ptr=images_BCHW.data_ptr(), **device
        )
        binding.bind_output(_OUTPUT, shape=shape, buffer_ptr=result.data_ptr(), **device)
        # The session works on a stream of its own: the images have to be there before it begins.
        torch.cuda.current_stream(images_BCHW.device).synchronize()
        with _memory_errors():
            session.run_with_iobinding(binding)  # returns when the result is there
        return result

    return forward


@contextlib.contextmanager
def _memory_errors() -> Iterator[None]:
    """Tell a want of memory as Python does: ONNX Runtime has no exception of its own for it."""
    try:
        yield
    except Exception as error:
        if any(words in str(error) for words in _NO_MEMORY):
            raise MemoryError(str(error).strip().splitlines()[0]) from None
        raise
