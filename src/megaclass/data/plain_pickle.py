"""Read a pickle of bytes, lists, numbers and plain byte arrays, whoever wrote it, without trusting it.

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
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

# An image of 200 bytes in a NumPy array takes 27 operations; one of arcface_torch's sets two for 5,000 bytes.
_MIN_OPERATIONS, _BYTES_AN_OPERATION = 250_000, 16
# Protocol 2 of Python 3 writes bytes as text, which is decoded and encoded: two copies.
_MIN_COPIED, _COPIES = 32 << 20, 2
_MEMO_GAP = (
    1000  # how far a memo's number may lie beyond how many there can be: some writers count from elsewhere
)

# No dictionaries, so that BUILD can give attributes to nothing; no classes, persistent ids or extensions.
_ALLOWED = {
    "PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "INT", "LONG", "BININT", "BININT1", "BININT2",
    "LONG1", "LONG4", "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
    "BYTEARRAY8", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "EMPTY_LIST", "LIST", "APPEND",
    "APPENDS", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE",
    "GET", "BINGET", "LONG_BINGET", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD",
}  # fmt: skip
_OPERATIONS = {operation.code.encode("latin-1"): operation for operation in pickletools.opcodes}
_PUTS = ("PUT", "BINPUT", "LONG_BINPUT")


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
    except RefusedError:
        if b"mxnet" not in content[:1000]:
            raise
        raise RefusedError(
            "it holds mxnet arrays, which only mxnet can read; where that is installed, load it with pickle and dump "
            "([image.asnumpy() for image in images], same) in its place"
        ) from None
    except Exception as error:  # of some ten types; none of them is more than a damaged file
        reason = ascii(str(error).strip()[:100])[1:-1] or type(error).__name__
        raise RefusedError(f"damaged or cut short ({reason})") from None


def _scan(content: bytes) -> None:
    """RefusedError or ValueError unless every operation is allowed and whole, and their number is in proportion."""
    stream = io.BytesIO(content)
    name = ""
    for count in range(_MIN_OPERATIONS + len(content) // _BYTES_AN_OPERATION):
        if name == "STOP":
            return
        at = stream.tell()
        operation = _OPERATIONS.get(code := stream.read(1))
        name = operation.name if operation else f"{code!r}"
        if not operation or name not in _ALLOWED:
            raise RefusedError(
                f"it wants the operation {name} at byte {at:,}, which no verification set needs"
                if code
                else f"ends early, at byte {at:,}"
            )
        if name == "STRING":
            stream.readline()  # pickletools would take it for ASCII
        elif operation.arg is not None:
            _check_argument(name, operation.arg.reader(stream), at, count, len(content))
    raise RefusedError(
        f"it has more operations than a verification set of {len(content):,} bytes needs; stopped at byte "
        f"{stream.tell():,}"
    )


def _check_argument(name: str, argument: Any, at: int, count: int, size: int) -> None:
    if not isinstance(argument, int):
        return
    if name in _PUTS and not 0 <= argument <= count + _MEMO_GAP:
        raise RefusedError(f"damaged: the memo's number {argument} at byte {at:,}")
    if argument.bit_length() > 64 or (name == "FRAME" and argument > size):
        raise RefusedError(f"damaged: a number of {argument.bit_length()} bits at byte {at:,}")


class _Unpickler(pickle.Unpickler):
    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="bytes")
        self._copies_left = _MIN_COPIED + _COPIES * len(content)

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        """The stand-in for ``module.name``. RefusedError for any other name than the few below."""
        if (module, name) == ("_codecs", "encode"):
            return self._encode
        if module in ("__builtin__", "builtins") and name in ("bytes", "bytearray"):
            return self._bytes
        if found := _FUNCTIONS.get((module, name)):
            return found
        wanted = ascii(f"{module[:60]}.{name[:60]}")[1:-1]
        raise RefusedError(
            f"it asks for {wanted}, which no verification set needs; nothing of it was run, get the file from a "
            "source you trust"
        )

    # Stand-ins take a fixed number of arguments: a pickle may repeat a call with a long tuple cheaply.

    def _encode(self, text: Any, codec: Any) -> bytes:
        if type(text) is not str or _word(codec) not in ("latin1", "latin-1"):
            raise RefusedError("it encodes something else than text as Latin-1")
        # Counted before it is made: a short operation may ask for a long copy again and again.
        self._copies_left -= len(text)
        if self._copies_left < 0:
            raise RefusedError("it would take several times the bytes of the file to hold")
        return text.encode("latin-1")

    def _bytes(self, data: Any = b"", codec: Any = None) -> bytes:
        """``bytes()``, ``bytearray(bytes)`` or Python 2's ``bytearray(text, "latin-1")``."""
        if codec is not None:
            return self._encode(data, codec)
        if type(data) is not bytes:
            raise RefusedError("it makes bytes of something else than bytes")
        return data


@dataclass(slots=True)
class DType:
    """The type of an array's elements: ``b1``, ``u1`` or another whole number, and the order of its bytes."""

    name: str
    order: str = "<"

    def __setstate__(self, state: Any) -> None:
        if type(state) is not tuple or len(state) < 2:
            raise RefusedError("a dtype in it has a state that is none")
        if _word(state[1]) == ">":
            self.order = ">"  # the rest is of no meaning for a plain number

    def numpy(self) -> np.dtype:
        """Booleans as the bytes that they are stored as, which may be other than 0 and 1."""
        return np.dtype("u1" if self.name == "b1" else self.order + self.name)


@dataclass(slots=True)
class Array:
    """An array of whole numbers or booleans as NumPy stored it; without ``data`` until its state was given."""

    data: bytes | bytearray = b""
    dtype: DType | None = None
    shape: tuple[int, ...] = ()
    fortran: bool = False

    def __setstate__(self, state: Any) -> None:
        if type(state) is not tuple or len(state) != 5:
            raise RefusedError("an array in it has a state that is none")
        _version, shape, dtype, fortran, data = state
        self.fill(data, dtype, shape, fortran)

    def fill(self, data: Any, dtype: Any, shape: Any, fortran: Any) -> None:
        if self.dtype is not None:
            raise RefusedError("an array in it is filled twice")
        if not isinstance(dtype, DType) or type(data) not in (bytes, bytearray) or type(fortran) is not bool:
            raise RefusedError("an array in it is not one of whole numbers or booleans")
        if type(shape) is not tuple or not 1 <= len(shape) <= 4:
            raise RefusedError("an array in it has no shape of one to four dimensions")
        sound = all(type(size) is int and 0 < size < 1 << 31 for size in shape)
        if not sound or math.prod(shape) * dtype.numpy().itemsize != len(data):
            raise RefusedError(f"an array in it has {len(data):,} bytes, which is not what its shape says")
        self.data, self.dtype, self.shape, self.fortran = data, dtype, shape, fortran

    def numpy(self) -> np.ndarray:
        """As NumPy's own, over the same memory."""
        assert self.dtype is not None
        order: Literal["F", "C"] = "F" if self.fortran else "C"
        # A bytearray may have been appended to since it was counted.
        return np.frombuffer(self.data, self.dtype.numpy(), math.prod(self.shape)).reshape(
            self.shape, order=order
        )


def kind_of(value: Any) -> str:
    """A value of a pickle in a word or two, whatever it is and however large."""
    if isinstance(value, Array):
        return f"an array {value.shape}" + (f" of {value.dtype.name}" if value.dtype else "")
    if isinstance(value, bytes | bytearray):
        return "bytes"
    names = {list: "a list", tuple: "a tuple", str: "text", bool: "a boolean", int: "a number"}
    return names.get(type(value), "nothing" if value is None else "no plain value")


def _dtype(name: Any, _align: Any = None, _copy: Any = None) -> DType:
    found = _DTYPES.get(_word(name))
    if found is None:
        raise RefusedError(
            f"it holds an array of {_word(name)!a}; images are uint8, answers bool or whole numbers: convert and write "
            "it anew"
        )
    return DType(found)


def _reconstruct(_type: Any, _shape: Any, _code: Any) -> Array:
    return Array()  # the type named is a stand-in itself, and the rest is a placeholder


def _scalar(dtype: Any, data: Any) -> bool | int:
    if not isinstance(dtype, DType) or type(data) is not bytes or len(data) != dtype.numpy().itemsize:
        raise RefusedError("a NumPy number in it is not whole, or not as long as it says")
    number = np.frombuffer(data, dtype.numpy())[0].item()
    return bool(number) if dtype.name == "b1" else number


def _frombuffer(data: Any, dtype: Any, shape: Any, order: Any) -> Array:
    made = Array()
    made.fill(data, dtype, shape, _word(order) == "F")
    return made


def _ndarray() -> Any:
    raise RefusedError("it calls numpy.ndarray, which is only named in a sound one")


def _word(value: Any) -> str:
    """A short text; Python 2's are bytes."""
    if type(value) is bytes:
        return value[:20].decode("latin-1")
    return value[:20] if type(value) is str else ""


_DTYPES = {
    name: code
    for code in ("b1", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8")
    for name in (code, np.dtype(code).newbyteorder("<").str, np.dtype(code).name)
}
# NumPy 2 has renamed its inner modules.
_FUNCTIONS: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "dtype"): _dtype,
    ("numpy", "ndarray"): _ndarray,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _frombuffer for core in ("core", "_core")},
}
