"""With this folder on PYTHONPATH, ``import torch`` brings an emulated CUDA device: in this process and its children.

Nothing changes where PyTorch is built with CUDA (its own device is used, or there is none), nor without a C++
compiler. Triton's kernels run in its interpreter."""

import importlib.util
import os
import sys
from pathlib import Path


class _Finder:
    """Finds torch as Python does, and has the device come with it."""

    def find_spec(self, name, path=None, target=None):
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("torch")
        folder = Path(spec.origin).parent
        if not (folder / "lib" / "libtorch_cuda.so").exists():
            import device

            if device.load(folder):
                os.environ.setdefault("TRITON_INTERPRET", "1")
                execute = spec.loader.exec_module

                def exec_module(module):
                    execute(module)
                    device.install(module)

                spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, _Finder())
