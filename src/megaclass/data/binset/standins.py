"""What a verification set may ask a pickle to build, each made here: nothing that a pickle names is ever called.

Python 3 writes bytes as a call of ``_codecs.encode`` where the protocol has none, and NumPy writes an array as
a call of a function of its own and a state to put into it. The functions below take the place of those.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

Buffer = bytes | memoryview


class RefusedError(Exception):
    """Why a pickle is not read, in words that follow the name of the file."""


class StandIn(NamedTuple):
    """Takes the place of the function ``name`` of the pickle."""

    name: str
    call: Callable[..., Any]


class DType(NamedTuple):
    """The type of an array's elements: ``b1`` or ``u1``, one byte each."""

    name: str


@dataclass(slots=True)
class ByteArray:
    """An array of bytes as NumPy stored it; without ``data`` until its state was given."""

    data: Buffer | None = None
    dtype: DType | None = None
    shape: tuple[int, ...] = ()
    fortran: bool = False

    def fill(self, data: Any, dtype: Any, shape: Any, fortran: Any) -> None:
        if self.data is not None:
            raise RefusedError("an array in it is filled twice")
        if not isinstance(dtype, DType) or not isinstance(data, Buffer) or type(fortran) is not bool:
            raise RefusedError("an array in it is not one of bytes or booleans")
        if type(shape) is not tuple or not 1 <= len(shape) <= 4:
            raise RefusedError("an array in it has no shape of one to four dimensions")
        if not all(type(size) is int and 0 < size < 1 << 31 for size in shape) or math.prod(shape) != len(
            data
        ):
            raise RefusedError(f"an array in it has {len(data):,} bytes, which is not what its shape says")
        self.data, self.dtype, self.shape, self.fortran = data, dtype, shape, fortran

    def array(self) -> np.ndarray:
        """As NumPy's own, over the same memory: uint8."""
        assert self.data is not None
        return np.frombuffer(self.data, np.uint8).reshape(self.shape, order="F" if self.fortran else "C")


def build(target: Any, state: Any) -> None:
    """Give ``target`` its state, as the BUILD of a pickle does."""
    if isinstance(target, DType) and type(state) is tuple:
        return  # byte order and alignment: of no meaning for one byte
    if isinstance(target, ByteArray) and type(state) is tuple and len(state) == 5:
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
    if isinstance(value, ByteArray):
        return f"an array {value.shape}"
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
    if module.split(".")[0] == "mxnet":
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
            f"it holds an array of {_word(name)!a}; images are uint8 and answers bool: convert and write it anew"
        )
    return DType(found)


def _reconstruct(*_type_shape_and_code: Any) -> ByteArray:
    return ByteArray()  # the type named is a stand-in itself, and the rest is a placeholder


def _scalar(dtype: Any, data: Any) -> bool | int:
    if not isinstance(dtype, DType) or not isinstance(data, Buffer) or len(data) != 1:
        raise RefusedError("a NumPy number in it is not one byte")
    return bool(data[0]) if dtype.name == "b1" else data[0]


def _frombuffer(data: Any, dtype: Any, shape: Any, order: Any) -> ByteArray:
    made = ByteArray()
    made.fill(data, dtype, shape, _word(order) == "F")
    return made


def _ndarray(*_: Any) -> Any:
    raise RefusedError("it calls numpy.ndarray, which is only named in a sound one")


def _word(value: Any) -> str:
    """A short text; Python 2's are bytes."""
    if isinstance(value, bytes):
        return value[:20].decode("latin-1")
    return value[:20] if type(value) is str else ""


_DTYPES = {"u1": "u1", "|u1": "u1", "uint8": "u1", "b1": "b1", "|b1": "b1", "bool": "b1"}
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
