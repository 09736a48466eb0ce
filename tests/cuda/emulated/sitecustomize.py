"""With this folder on PYTHONPATH, ``import torch`` brings an emulated CUDA device: in this process and its children.

Nothing changes where PyTorch is built with CUDA (its own device is used, or there is none), nor without a C++
compiler. Triton's kernels run in its interpreter, unless TRITON_INTERPRET says otherwise."""

import os
import sys
from importlib.machinery import PathFinder
from pathlib import Path


class _Finder:
    """Finds modules as Python does, and has the device come with them."""

    waiting = {"torch", "triton.runtime.interpreter"}  # noqa: RUF012

    def find_spec(self, name, path=None, target=None):
        if name not in self.waiting:
            return None
        self.waiting.remove(name)
        spec = PathFinder.find_spec(name, path)
        if spec is None or (name == "torch" and not self._loads(Path(spec.origin).parent)):
            self.waiting.clear()
            return spec
        execute = spec.loader.exec_module

        def exec_module(module):
            import device

            execute(module)
            (device.install if name == "torch" else device.interpret)(module)

        spec.loader.exec_module = exec_module
        return spec

    def _loads(self, folder):
        if (folder / "lib" / "libtorch_cuda.so").exists():
            return False
        import device

        loads = device.load(folder)
        if loads:
            os.environ.setdefault("TRITON_INTERPRET", "1")
        return loads


sys.meta_path.insert(0, _Finder())
