"""What a verification set may ask a pickle to build, each made here: nothing that a pickle names is ever called.

Python 3 writes bytes as a call of ``_codecs.encode`` where the protocol has none, and NumPy writes an array as
a call of a function of its own and a state to put into it. The functions below take the place of those.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes that stay in the file: from ``offset`` on, ``count`` of them."""

    offset: int
    count: int

    def __len__(self) -> int:
        return self.count


Buffer = bytes | Span


class RefusedError(Exception):
    """Why a pickle is not read, in words that follow the name of the file."""


class StandIn(NamedTuple):
    """Takes the place of the function ``name`` of the pickle."""

    name: str
    call: Callable[..., Any]


@dataclass(slots=True)
class DType:
    """The type of an array's elements: ``b1``, ``u1`` or another whole number, and the order of its bytes."""

    name: str
    order: str = "<"

    def numpy(self) -> np.dtype:
        """Booleans as the bytes that they are stored as, which may be other than 0 and 1."""
        return np.dtype("u1" if self.name == "b1" else self.order + self.name)


@dataclass(slots=True)
class Array:
    """An array of whole numbers or booleans as NumPy stored it; without ``data`` until its state was given."""

    data: Buffer = b""
    dtype: DType | None = None
    shape: tuple[int, ...] = ()
    fortran: bool = False

    def fill(self, data: Any, dtype: Any, shape: Any, fortran: Any) -> None:
        if self.dtype is not None:
            raise RefusedError("an array in it is filled twice")
        if not isinstance(dtype, DType) or not isinstance(data, Buffer) or type(fortran) is not bool:
            raise RefusedError("an array in it is not one of whole numbers or booleans")
        if type(shape) is not tuple or not 1 <= len(shape) <= 4:
            raise RefusedError("an array in it has no shape of one to four dimensions")
        sound = all(type(size) is int and 0 < size < 1 << 31 for size in shape)
        if not sound or math.prod(shape) * dtype.numpy().itemsize != len(data):
            raise RefusedError(f"an array in it has {len(data):,} bytes, which is not what its shape says")
        self.data, self.dtype, self.shape, self.fortran = data, dtype, shape, fortran

    def numpy(self, stored: bytes) -> np.ndarray:
        """As NumPy's own, over the same memory; ``stored`` are the bytes of ``data``."""
        assert self.dtype is not None
        return np.frombuffer(stored, self.dtype.numpy()).reshape(
            self.shape, order="F" if self.fortran else "C"
        )

    def rows(self) -> "list[Array]":
        """The arrays that it is one of, over the same bytes. It must not be in Fortran's order."""
        assert not self.fortran
        shape, size = self.shape[1:], len(self.data) // self.shape[0]
        return [
            Array(_part(self.data, start, size), self.dtype, shape)
            for start in range(0, len(self.data), size)
        ]


def _part(data: Buffer, start: int, count: int) -> Buffer:
    return Span(data.offset + start, count) if isinstance(data, Span) else data[start : start + count]


def build(target: Any, state: Any) -> None:
    """Give ``target`` its state, as the BUILD of a pickle does."""
    if isinstance(target, DType) and type(state) is tuple:
        if _word(state[1] if len(state) > 1 else None) == ">":
            target.order = ">"
        return  # the rest is of no meaning for a plain number
    if isinstance(target, Array) and type(state) is tuple and len(state) == 5:
        _version, shape, dtype, fortran, data = state
        target.fill(data, dtype, shape, fortran)
        return
    raise RefusedError(f"it gives a state to {kind_of(target)}, which has none")


def kind_of(value: Any) -> str:
    """A value of a pickle in a word or two, whatever it is and however large."""
    if isinstance(value, StandIn):
        return value.name
    if isinstance(value, Buffer):
        return "bytes"
    if isinstance(value, Array):
        return f"an array {value.shape}" + (f" of {value.dtype.name}" if value.dtype else "")
    names = {
        list: "a list",
        tuple: "a tuple",
        str: "text",
        bool: "a boolean",
        int: "a number",
        DType: "a dtype",
    }
    return names.get(type(value), "nothing")


def find(module: str, name: str) -> StandIn:
    """The stand-in for ``module.name``. RefusedError for any other name than the few below."""
    found = _FUNCTIONS.get((module, name))
    if found is not None:
        return StandIn(f"{module}.{name}", found)
    wanted = f"{module[:60]}.{name[:60]}"
    if wanted.startswith("mxnet."):
        raise RefusedError(
            f"it holds mxnet arrays ({ascii(wanted)[1:-1]}), which only mxnet can read; where that is installed, "
            "load it with pickle and dump ([image.asnumpy() for image in images], same) in its place"
        )
    raise RefusedError(
        f"it asks for {ascii(wanted)[1:-1]}, which no verification set needs; nothing of it was run, "
        "get the file from a source you trust"
    )


def _encode(text: Any, codec: Any) -> bytes:
    if type(text) is not str or _word(codec) not in ("latin1", "latin-1"):
        raise RefusedError("it encodes something else than text as Latin-1")
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        raise RefusedError("it encodes text as Latin-1 that is none") from None


def _bytes(*arguments: Any) -> Buffer:
    """``bytes()``, ``bytearray(bytes)`` or Python 2's ``bytearray(text, "latin-1")``."""
    if not arguments:
        return b""
    if len(arguments) == 1 and isinstance(arguments[0], Buffer):
        return arguments[0]
    if len(arguments) == 2:
        return _encode(*arguments)
    raise RefusedError("it makes bytes of something else than bytes")


def _dtype(name: Any, *_align_and_copy: Any) -> DType:
    found = _DTYPES.get(_word(name))
    if found is None:
        raise RefusedError(
            f"it holds an array of {_word(name)!a}; images are uint8, answers bool or whole "
            "numbers: convert and write it anew"
        )
    return DType(found)


def _reconstruct(*_type_shape_and_code: Any) -> Array:
    return Array()  # the type named is a stand-in itself, and the rest is a placeholder


def _scalar(dtype: Any, data: Any) -> bool | int:
    if not isinstance(dtype, DType) or not isinstance(data, bytes) or len(data) != dtype.numpy().itemsize:
        raise RefusedError("a NumPy number in it is not whole, or not as long as it says")
    number = np.frombuffer(data, dtype.numpy())[0].item()
    return bool(number) if dtype.name == "b1" else number


def _frombuffer(data: Any, dtype: Any, shape: Any, order: Any) -> Array:
    made = Array()
    made.fill(data, dtype, shape, _word(order) == "F")
    return made


def _ndarray(*_: Any) -> Any:
    raise RefusedError("it calls numpy.ndarray, which is only named in a sound one")


def _word(value: Any) -> str:
    """A short text; Python 2's are bytes."""
    if isinstance(value, bytes):
        return value[:20].decode("latin-1")
    return value[:20] if type(value) is str else ""


_DTYPES = {
    name: code
    for code in ("b1", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8")
    for name in (code, np.dtype(code).newbyteorder("<").str, np.dtype(code).name)
}
# NumPy 2 has renamed its inner modules; Python 3 has renamed the built-in one.
_FUNCTIONS: dict[tuple[str, str], Callable[..., Any]] = {
    ("_codecs", "encode"): _encode,
    ("numpy", "dtype"): _dtype,
    ("numpy", "ndarray"): _ndarray,
    **{(module, name): _bytes for module in ("__builtin__", "builtins") for name in ("bytes", "bytearray")},
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _frombuffer for core in ("core", "_core")},
}
