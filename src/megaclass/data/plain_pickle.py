"""Read a pickle of bytes, lists, numbers and rows of numbers, whoever wrote it, without trusting it.

Python's own unpickler does the work, fenced in on two sides. Before it runs, a scan over the operations (read by
``pickletools``, which executes nothing) refuses all that no verification set needs, and what would cost more than
the file's size warrants: a memo index of four bytes would make a table of gigabytes, and a byte makes a list of 56.
While it runs, ``find_class`` gives stand-ins for the few functions by which Python 3 and NumPy write bytes and
arrays; nothing that a pickle names is ever called.
"""

import io
import math
import pickle
import pickletools
from collections.abc import Callable
from typing import Any

import numpy as np

# An image of 200 bytes in a NumPy array takes 27 operations; one of arcface_torch's sets two for 5,000 bytes.
_MIN_OPERATIONS, _BYTES_AN_OPERATION = 250_000, 16
# Protocol 2 of Python 3 writes bytes as text, which is decoded and encoded: two copies.
_MIN_COPIED, _COPIES = 32 << 20, 2
# How far a memo's number may lie beyond how many there can be: some writers count from elsewhere.
_MEMO_GAP = 1000

# No dictionaries, so that BUILD can give attributes to nothing; no classes, persistent ids or extensions.
_ALLOWED = {
    "PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "INT", "LONG", "BININT", "BININT1", "BININT2",
    "LONG1", "LONG4", "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
    "BYTEARRAY8", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "EMPTY_LIST", "LIST", "APPEND",
    "APPENDS", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE",
    "GET", "BINGET", "LONG_BINGET", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD",
}  # fmt: skip
_OPERATIONS = {op.code.encode("latin-1"): op for op in pickletools.opcodes if op.name in _ALLOWED}
_DTYPES = ("b1", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8")


class RefusedError(Exception):
    """Why a pickle is not read, in words that follow the name of the file."""


def load(content: bytes) -> Any:
    """The object in a pickle: bytes, bytearray, str, int, bool, None, list, tuple and Array.

    Text of Python 2 is bytes, as with ``encoding="bytes"``. Raises RefusedError for anything else, and for a
    pickle that is damaged, ends early, or would take more time or memory than a sound one of its size.
    """
    try:
        _scan(content)
        return _Unpickler(content).load()
    except Exception as error:  # of some ten types; none of them is more than a damaged file
        if b"mxnet" in content[:1000]:
            raise RefusedError("it holds mxnet arrays, which only mxnet can read") from None
        reason = ascii(str(error).strip()[:150])[1:-1] or type(error).__name__
        raise RefusedError(f"damaged, or no verification set ({reason})") from None


def _scan(content: bytes) -> None:
    """RefusedError or ValueError unless every operation is allowed and whole, and their number is in proportion."""
    stream = io.BytesIO(content)
    for count in range(_MIN_OPERATIONS + len(content) // _BYTES_AN_OPERATION):
        operation = _OPERATIONS.get(code := stream.read(1))
        if operation is None:
            raise RefusedError(f"byte {stream.tell():,} is {code!r}" if code else "it ends early")
        if operation.name == "STOP":
            return
        if operation.name == "STRING":
            stream.readline()  # pickletools would take it for ASCII
        elif operation.arg is not None:
            argument, most = operation.arg.reader(stream), 1 << 64
            if operation.name in ("PUT", "BINPUT", "LONG_BINPUT", "FRAME"):
                most = len(content) if operation.name == "FRAME" else count + _MEMO_GAP
            if isinstance(argument, int) and argument > most:
                raise RefusedError(f"a number of {argument.bit_length()} bits at byte {stream.tell():,}")
    raise RefusedError("more operations than its size needs")


class _Unpickler(pickle.Unpickler):
    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="bytes")
        self._copies_left = _MIN_COPIED + _COPIES * len(content)

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        """The stand-in for ``module.name``. RefusedError for any other name than the few below."""
        known: dict[str, Callable[..., Any]] = {
            "_codecs.encode": self._encode,
            "numpy.dtype": DType,
            "numpy.ndarray": _ndarray,
            "numpy.core.multiarray._reconstruct": lambda _type, _shape, _code: Array(),
            "numpy.core.multiarray.scalar": _scalar,
            "numpy.core.numeric._frombuffer": _frombuffer,
        }
        module = module.replace("numpy._core", "numpy.core")  # as NumPy 2 calls it
        found = known.get(f"{module}.{name}")
        if found is None or "." in name:
            raise RefusedError(f"it asks for {module[:40]}.{name[:40]}; nothing of it was run")
        return found

    # Stand-ins take a fixed number of arguments: a pickle may repeat a call with a long tuple cheaply.

    def _encode(self, text: Any, codec: Any) -> bytes:
        if type(text) is not str or _word(codec) not in ("latin1", "latin-1"):
            raise RefusedError("it encodes something else than text as Latin-1")
        # Counted before it is made: a short operation may ask for a long copy again and again.
        self._copies_left -= len(text)
        if self._copies_left < 0:
            raise RefusedError("it would take several times the bytes of the file to hold")
        return text.encode("latin-1")


class DType:
    """The type of an array's elements: booleans or whole numbers."""

    __slots__ = ("numpy",)

    def __init__(self, name: Any, _align: Any = None, _copy: Any = None) -> None:
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


def _ndarray() -> Any:
    raise RefusedError("it calls numpy.ndarray, which is only named in a sound one")


def _word(value: Any) -> str:
    """A short text; Python 2's are bytes."""
    if type(value) is bytes:
        return value[:20].decode("latin-1")
    return value[:20] if type(value) is str else ""
