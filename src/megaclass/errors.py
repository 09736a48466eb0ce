"""The exception types that the command line tells in one line."""

import errno
import importlib
import signal
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")


class UserError(ValueError):
    """Bad input. The message is one line: what is wrong, where, and what to do.

    The command line prints it without a traceback and exits with status 2.
    """

    agreed = False


class AgreedError(UserError):
    """One that every rank of the run raises, so that one of each machine telling it is enough."""

    agreed = True


LOST_RANK_STATUS = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong here, it can be started again


class LostRankError(RuntimeError):
    """Another rank has left the run in the middle of a step: the reason stands in what that one said.

    The command line tells it in one line and exits with ``LOST_RANK_STATUS``.
    """


class Interrupted(BaseException):
    """A signal has ended the run, after what the message tells. The command line exits with ``status``."""

    def __init__(self, number: signal.Signals, after: str = "before its first step") -> None:
        super().__init__(f"ended by {number.name}, {after}")
        self.signal = number
        self.status = 128 + number if number == signal.SIGINT else LOST_RANK_STATUS


def printable(text: str) -> str:
    """A text that comes from elsewhere, on one line and without what a terminal would obey."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def in_bytes(count: float) -> str:
    """A number of bytes as a person reads it: 512 B, 3.4 MB, 12.0 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"


def extra(module: str, name: str) -> Any:
    """A module of an extra. UserError where it is not installed, or not to be used."""
    try:
        return importlib.import_module(module)
    except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision next to a PyTorch that it was not made for
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            raise UserError(f"{module} is not installed; pip install 'megaclass[{name}]'") from None
        told = f"{module} is installed, but cannot be imported: {first_line(error)}"
        raise UserError(f"{told}; install versions of it, of what it needs, and of PyTorch that go together") from None


def first_line(error: Exception) -> str:
    """What a library says went wrong, for a message of one line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


# How libraries say that memory ran out where they have no exception of their own for it.
_NO_MEMORY = (
    "t allocate memory",
    "not enough memory",
    "out of memory",
    "alloc_failed",
    "unable to find a valid cudnn algorithm",  # what cuDNN says where its work space does not fit
    "size calculation overflowed",
    "failed to allocate memory",  # ONNX Runtime, as the next two
    "bad_alloc",
    "bad allocation",
)


def out_of_memory(error: Exception) -> bool:
    """Whether an allocator has refused: Python's, NumPy's, PyTorch's on any device, ONNX Runtime's."""
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in _NO_MEMORY)


def near_match(name: str, known: "list[str] | tuple[str, ...]") -> str:
    """Return ``" (did you mean 'x'?)"`` for the closest known name, or ``""``."""
    import difflib  # only needed on the way to an error message

    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" (did you mean {matches[0]!r}?)" if matches else ""


def make_room(error: OSError) -> str:
    """``"make room there or "`` for a write that failed for want of it, or ``""``."""
    return "make room there or " if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else ""


def lookup(registry: Mapping[str, T], name: str, what: str) -> T:
    """Return ``registry[name]``; an unknown name is a :class:`UserError` with the near match."""
    if name in registry:
        return registry[name]
    known = ", ".join(sorted(registry))
    raise UserError(f"unknown {what} {name!r}{near_match(name, list(registry))}; known: {known}")
