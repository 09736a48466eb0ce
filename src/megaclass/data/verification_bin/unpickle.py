"""Read a pickle of bytes, lists, numbers and plain byte arrays, whoever wrote it, without trusting it.

Python's own unpickler, however restricted, gives a file more than it should have: a memo index of four bytes
makes a table of gigabytes, and a length that a file claims is allocated before it is looked for. This one
interprets the few operations that a verification set consists of (PEP 3154 and ``pickletools`` describe them)
and refuses any other. Bytes stay where they are: they become spans of the file.

What a file can cost is bounded by its size: so many operations, each with at most some hundred bytes of
objects, and so many bytes copied. The bounds are several times what any way to write a real set takes.
"""

import codecs
import os
import re
from collections.abc import Callable
from typing import Any, BinaryIO

from megaclass.data.verification_bin.allowed_types import (
    Buffer,
    RefusedError,
    Span,
    StandIn,
    build,
    find,
    kind_of,
)

# An image of 200 bytes in a NumPy array takes 27 operations; one of arcface_torch's sets two for 5,000 bytes.
_MIN_OPERATIONS, _BYTES_AN_OPERATION = 250_000, 16
# Protocol 2 of Python 3 writes bytes as text, which is decoded and encoded: two copies.
_MIN_COPIED, _COPIES = 32 << 20, 2
_MAX_LINE = 256  # of a name or number in protocol 0
_SHORT = 128  # a span is hardly smaller than so few bytes
# Escapes of Python 2's repr. Possessive: a regular expression that could turn back would remember every byte.
_QUOTED = re.compile(rb"""(?:[^\\]++|\\(?:[\\'"nrt]|x[0-9a-fA-F]{2}))*+""")
_DECIMAL = re.compile(rb"-?[0-9]{1,19}L?")
_INDEX = re.compile(rb"[0-9]{1,10}")


def unpickle(file: BinaryIO) -> Any:
    """The object in ``file``: bytes or spans of them, str, int, bool, None, list, tuple and Array.

    Text of Python 2 is bytes, as with ``encoding="bytes"``. Raises RefusedError for anything else, and for a
    pickle that is damaged, ends early, or would take more time or memory than a sound one of its size.
    """
    return _Machine(file).run()


class _Machine:
    def __init__(self, file: BinaryIO) -> None:
        self._file, self._at, self._end = file, 0, file.seek(0, os.SEEK_END)
        file.seek(0)
        self._stack: list[Any] = []
        self._outer: list[list[Any]] = []  # the stacks below each mark
        self._memo: dict[int, Any] = {}  # no table: an index costs the same whatever its value
        self._copies_left = _MIN_COPIED + _COPIES * self._end

    def run(self) -> Any:
        for _ in range(_MIN_OPERATIONS + self._end // _BYTES_AN_OPERATION):
            start = self._at
            code = self.take(1)[0]
            if code == _STOP:
                return self.pop()
            operation = _OPERATIONS.get(code)
            if operation is None:
                raise RefusedError(
                    f"it wants {_name(code)} at byte {start:,}, which no verification set needs"
                )
            try:
                operation(self)
            except UnicodeError:
                raise RefusedError(f"damaged: the text at byte {start:,} cannot be decoded") from None
        raise RefusedError(
            f"it has more operations than a verification set of {self._end:,} bytes needs; stopped at byte {self._at:,}"
        )

    # ---- reading ------------------------------------------------------------------------------------

    def take(self, count: int) -> bytes:
        self.announce(count)
        taken = self._file.read(count)
        self._at += len(taken)
        if len(taken) < count:
            raise RefusedError(f"ends early: it was cut at byte {self._at:,} while it was read")
        return taken

    def announce(self, count: int) -> None:
        left = self._end - self._at
        if not 0 <= count <= left:
            raise RefusedError(
                f"ends early: {count:,} bytes are announced at byte {self._at:,}, {left:,} are there"
            )

    def number(self, size: int, signed: bool = False) -> int:
        return int.from_bytes(self.take(size), "little", signed=signed)

    def line(self, limit: int = -1) -> bytes:
        line = self._file.readline(limit)
        if not line.endswith(b"\n"):
            raise RefusedError(f"damaged: a line at byte {self._at:,} does not end")
        self._at += len(line)
        self.copy(len(line))
        return line[:-1]

    def copy(self, count: int) -> None:
        self._copies_left -= count
        if self._copies_left < 0:
            raise RefusedError(f"it would take several times the {self._end:,} bytes of the file to hold")

    # ---- values -------------------------------------------------------------------------------------

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def push_bytes(self, count: int) -> None:
        if count < _SHORT:
            self.push(self.take(count))
            return
        self.announce(count)
        self.push(Span(self._at, count))
        self._at += count
        self._file.seek(self._at)

    def push_text(self, count: int) -> None:
        self.copy(count)
        self.push(str(self.take(count), "utf-8", "surrogatepass"))

    def push_line_of_text(self) -> None:
        self.push(str(self.line(), "raw-unicode-escape"))

    def push_quoted(self) -> None:
        """``'..'`` with escapes, as protocol 0 of Python 2 writes bytes."""
        line = self.line()
        sound = len(line) >= 2 and line[:1] in (b"'", b'"') and line[-1] == line[0]
        if not sound or not _QUOTED.fullmatch(line, 1, len(line) - 1):
            raise RefusedError(f"damaged: the quoted bytes before byte {self._at:,}")
        self.push(codecs.escape_decode(line[1:-1])[0])

    def push_decimal(self) -> None:
        line = self.line(_MAX_LINE)
        if line in (b"00", b"01"):
            self.push(line == b"01")
            return
        if not _DECIMAL.fullmatch(line):
            raise RefusedError(f"damaged: the number before byte {self._at:,}")
        self.push(int(line.rstrip(b"L")))

    def push_long(self, size: int) -> None:
        if size > 8:
            raise RefusedError(f"it holds a number of {size:,} bytes at byte {self._at:,}")
        self.push(self.number(size, signed=True))

    def pop(self) -> Any:
        if not self._stack:
            raise RefusedError(f"damaged: nothing is left to take at byte {self._at:,}")
        return self._stack.pop()

    def pop_mark(self) -> list[Any]:
        if not self._outer:
            raise RefusedError(f"damaged: no mark is set at byte {self._at:,}")
        items, self._stack = self._stack, self._outer.pop()
        return items

    # ---- operations ---------------------------------------------------------------------------------

    def frame(self) -> None:
        length = self.number(8)
        if length > self._end - self._at:
            raise RefusedError(f"ends early: a frame of {length:,} bytes begins at byte {self._at:,}")

    def mark(self) -> None:
        self._outer.append(self._stack)
        self._stack = []

    def drop(self) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self.pop_mark()

    def duplicate(self) -> None:
        value = self.pop()
        self._stack += [value, value]

    def push_tuple(self, size: int) -> None:
        items = [self.pop() for _ in range(size)]
        self.push(tuple(reversed(items)))

    def marked(self, make: Callable[[list[Any]], Any]) -> None:
        items = self.pop_mark()
        self.push(make(items))

    def extend(self, items: list[Any]) -> None:
        if not self._stack or type(self._stack[-1]) is not list:
            raise RefusedError(f"damaged: no list to append to at byte {self._at:,}")
        self._stack[-1].extend(items)

    def remember(self, key: int) -> None:
        if not self._stack:
            raise RefusedError(f"damaged: nothing to remember at byte {self._at:,}")
        self._memo[key] = self._stack[-1]

    def recall(self, key: int) -> None:
        if key not in self._memo:
            raise RefusedError(f"damaged: nothing is remembered as {key} at byte {self._at:,}")
        self.push(self._memo[key])

    def memo_line(self) -> int:
        line = self.line(_MAX_LINE)
        if not _INDEX.fullmatch(line):
            raise RefusedError(f"damaged: the memo's number before byte {self._at:,}")
        return int(line)

    def push_global(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise RefusedError(f"damaged: a name at byte {self._at:,} is no text")
        if module in ("copy_reg", "copyreg"):  # names the class only then: for what the message says
            following = self._file.read(_MAX_LINE)
            self._file.seek(self._at)
            module, name = ("mxnet", "NDArray") if b"cmxnet" in following else (module, name)
        self.push(find(module, name))

    def stack_global(self) -> None:
        name = self.pop()
        self.push_global(self.pop(), name)

    def reduce(self) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, StandIn) or type(arguments) is not tuple or len(arguments) > 4:
            raise RefusedError(f"it calls {kind_of(function)} at byte {self._at:,}, which is no function")
        # Counted before they are made: a short operation may ask for a long copy again and again.
        self.copy(sum(len(value) for value in arguments if isinstance(value, str | Buffer)))
        try:
            self.push(function.call(*arguments))
        except TypeError:
            raise RefusedError(f"it calls {function.name} with {len(arguments)} arguments") from None

    def build(self) -> None:
        state = self.pop()
        build(self._stack[-1] if self._stack else None, state)


def _name(code: int) -> str:
    import pickletools  # for a message alone

    names = {ord(known.code): known.name for known in pickletools.opcodes}
    return f"the operation {names[code]}" if code in names else f"the unknown operation {bytes([code])!r}"


_STOP = ord(".")
_OPERATIONS: dict[int, Callable[[_Machine], object]] = {
    code[0]: operation
    for code, operation in {
        # What a pickle is made of, and where it is cut.
        b"\x80": lambda m: m.take(1),  # the protocol: all of them are read alike
        b"\x95": lambda m: m.frame(),
        b"(": lambda m: m.mark(),
        b"0": lambda m: m.drop(),
        b"1": lambda m: m.pop_mark(),
        b"2": lambda m: m.duplicate(),
        # Numbers and None.
        b"N": lambda m: m.push(None),
        b"\x88": lambda m: m.push(True),
        b"\x89": lambda m: m.push(False),
        b"I": lambda m: m.push_decimal(),
        b"L": lambda m: m.push_decimal(),
        b"J": lambda m: m.push(m.number(4, signed=True)),
        b"K": lambda m: m.push(m.number(1)),
        b"M": lambda m: m.push(m.number(2)),
        b"\x8a": lambda m: m.push_long(m.number(1)),
        b"\x8b": lambda m: m.push_long(m.number(4)),
        # Bytes, of Python 2 (S, T, U) and 3, and text.
        b"S": lambda m: m.push_quoted(),
        b"T": lambda m: m.push_bytes(m.number(4, signed=True)),
        b"U": lambda m: m.push_bytes(m.number(1)),
        b"B": lambda m: m.push_bytes(m.number(4)),
        b"C": lambda m: m.push_bytes(m.number(1)),
        b"\x8e": lambda m: m.push_bytes(m.number(8)),
        b"\x96": lambda m: m.push_bytes(m.number(8)),
        b"V": lambda m: m.push_line_of_text(),
        b"X": lambda m: m.push_text(m.number(4)),
        b"\x8c": lambda m: m.push_text(m.number(1)),
        b"\x8d": lambda m: m.push_text(m.number(8)),
        # Lists and tuples.
        b"]": lambda m: m.push([]),
        b"l": lambda m: m.marked(list),
        b"a": lambda m: m.extend([m.pop()]),
        b"e": lambda m: m.extend(m.pop_mark()),
        b")": lambda m: m.push(()),
        b"t": lambda m: m.marked(tuple),
        b"\x85": lambda m: m.push_tuple(1),
        b"\x86": lambda m: m.push_tuple(2),
        b"\x87": lambda m: m.push_tuple(3),
        # The memo.
        b"p": lambda m: m.remember(m.memo_line()),
        b"q": lambda m: m.remember(m.number(1)),
        b"r": lambda m: m.remember(m.number(4)),
        b"\x94": lambda m: m.remember(len(m._memo)),
        b"g": lambda m: m.recall(m.memo_line()),
        b"h": lambda m: m.recall(m.number(1)),
        b"j": lambda m: m.recall(m.number(4)),
        # Names, and what is done with them.
        b"c": lambda m: m.push_global(str(m.line(_MAX_LINE), "utf-8"), str(m.line(_MAX_LINE), "utf-8")),
        b"\x93": lambda m: m.stack_global(),
        b"R": lambda m: m.reduce(),
        b"b": lambda m: m.build(),
    }.items()
}
