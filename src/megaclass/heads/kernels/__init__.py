"""The margin head's kernels. Triton is imported here and below, nowhere else in the house."""

from megaclass.heads.kernels.engine import TritonEngine

__all__ = ["TritonEngine"]
