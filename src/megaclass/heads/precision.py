"""What a CPU multiplies natively, and PyTorch's flags for the rounding of fp32 operands inside a product."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch


def cpu_has(feature: str) -> bool:
    """Whether PyTorch finds ``avx512_bf16`` (bf16 products) or ``amx_tile`` (matrix units) in this CPU."""
    return bool(getattr(torch.cpu, f"_is_{feature}_supported", lambda: False)())


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 natively; emulated bf16 is slower than fp32."""
    return cpu_has("avx512_bf16") or cpu_has("amx_tile")


@contextlib.contextmanager
def fp32_products(precision: str, *backends: Any) -> Iterator[None]:
    """Products inside round as these parts of ``torch.backends`` do at an ``fp32_precision``: ieee, tf32 or bf16."""
    before = [backend.fp32_precision for backend in backends]
    _set(backends, [precision] * len(backends))
    try:
        yield
    finally:
        _set(backends, before)


def _set(backends: Sequence[Any], precisions: Sequence[str]) -> None:
    known: Any = torch.backends
    for backend, precision in zip(backends, precisions, strict=True):
        # An older flag says the same, of cudnn.rnn too. Where the two differ, whoever reads the older one gets an
        # error: libraries, and PyTorch's own compiler.
        if backend in (known.cuda.matmul, known.cudnn.conv):
            (known.cudnn if backend is known.cudnn.conv else backend).allow_tf32 = precision == "tf32"
        backend.fp32_precision = precision
