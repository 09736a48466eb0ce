"""Read a pickle of bytes, lists, numbers and rows of numbers, whoever wrote it, without trusting it.

Python's own unpickler does the work; its ``find_class`` gives stand-ins for the few functions by which Python 3 and
NumPy write bytes and arrays. Nothing that a pickle names is ever imported or called.
"""

import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np

_DTYPES = ("b1", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8")


class RefusedError(Exception):
    """Why a pickle is not read, in words that follow the name of the file."""


def load(content: bytes) -> Any:
    """The object in a pickle: bytes, text, numbers, lists, tuples, all else that Python builds without a name; Array.

    Text of Python 2 is bytes, as with ``encoding="bytes"``. Raises RefusedError for a pickle that names anything else,
    is damaged, or ends early.
    """
    try:
        return _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # of some ten types; none of them is more than a damaged file
        if b"mxnet" in content[:1000]:
            raise RefusedError("it holds mxnet arrays, which only mxnet can read") from None
        reason = ascii(str(error).strip()[:150])[1:-1] or type(error).__name__
        raise RefusedError(f"damaged, or no verification set ({reason})") from None


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        """The stand-in for ``module.name``. RefusedError for any other name than the few below."""
        # Made anew for each name: BUILD may give attributes to what it finds.
        known: dict[str, Callable[..., Any]] = {
            "_codecs.encode": lambda text, codec: _encode(text, codec),
            "numpy.dtype": lambda name, align=None, copy=None: DType(name),
            "numpy.ndarray": lambda: None,  # named in a sound one, and never called
            "numpy.core.multiarray._reconstruct": lambda kind, shape, code: Array(),
            "numpy.core.multiarray.scalar": lambda dtype, data: _scalar(dtype, data),
            "numpy.core.numeric._frombuffer": lambda *state: _frombuffer(*state),
        }
        module = module.replace("numpy._core", "numpy.core")  # as NumPy 2 calls it
        if found := known.get(f"{module}.{name}"):
            return found
        raise RefusedError(f"it asks for {module[:40]}.{name[:40]}; nothing of it was run")


def _encode(text: Any, codec: Any) -> bytes:
    """Bytes as protocol 2 of Python 3 writes them."""
    if type(text) is not str or _word(codec) not in ("latin1", "latin-1"):
        raise RefusedError("it encodes something else than text as Latin-1")
    return text.encode("latin-1")


class DType:
    """The type of an array's elements: booleans or whole numbers."""

    __slots__ = ("numpy",)

    def __init__(self, name: Any) -> None:
        kind = _word(name).lstrip("<|")
        if kind not in _DTYPES:
            raise RefusedError(f"an array of {kind}; images are uint8, answers bool or whole numbers")
        self.numpy = np.dtype(f"<{kind}")

    def __setstate__(self, state: Any) -> None:
        if type(state) is not tuple or len(state) < 2:
            raise RefusedError("a dtype with a state that is none")
        if _word(state[1]) == ">":
            self.numpy = self.numpy.newbyteorder(">")  # the rest is of no meaning for a plain number


class Array:
    """A row or a column of whole numbers or booleans as NumPy stored it: ``values_N`` over the bytes ``data``."""

    __slots__ = ("data", "values_N")

    def __init__(self) -> None:
        self.data: bytes | bytearray | None = None  # until its state is given
        self.values_N = np.empty(0, np.int64)

    def __setstate__(self, state: Any) -> None:
        if type(state) is not tuple or len(state) != 5:
            raise RefusedError("an array with a state that is none")
        _version, shape, dtype, _fortran, data = state
        if self.data is not None or not isinstance(dtype, DType) or type(data) not in (bytes, bytearray):
            raise RefusedError("an array that is not one of whole numbers or booleans")
        if type(shape) is not tuple or not all(type(size) is int for size in shape):
            raise RefusedError("an array without a shape")
        if sum(size != 1 for size in shape) > 1 or math.prod(shape) * dtype.numpy.itemsize != len(data):
            raise RefusedError(
                f"an array of {len(data):,} bytes and the shape {shape[:4]}; images are encoded, and answers in a row"
            )
        self.data, self.values_N = data, np.frombuffer(data, dtype.numpy)


def _scalar(dtype: Any, data: Any) -> bool | int:
    if not isinstance(dtype, DType) or type(data) is not bytes or len(data) != dtype.numpy.itemsize:
        raise RefusedError("a NumPy number that is not as long as it says")
    return np.frombuffer(data, dtype.numpy)[0].item()


def _frombuffer(data: Any, dtype: Any, shape: Any, order: Any) -> Array:
    made = Array()
    made.__setstate__((1, shape, dtype, order, data))
    return made


def _word(value: Any) -> str:
    """A short text; Python 2's are bytes."""
    if type(value) is bytes:
        return value[:20].decode("latin-1")
    return value[:20] if type(value) is str else ""
