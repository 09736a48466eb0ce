"""Before any test imports Triton: without a GPU its kernels run in its interpreter."""

import importlib.metadata
import importlib.util
import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

if importlib.util.find_spec("triton") and importlib.metadata.version("triton") < "3.7":
    # Its loops make a number of an array with one element, which NumPy 2.4 refuses. Triton 3.7.1 has mended it.
    from triton.runtime import interpreter

    def _patched(tensor, scope, original=interpreter._patch_lang_tensor):  # type: ignore[no-untyped-def]
        original(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = _patched
