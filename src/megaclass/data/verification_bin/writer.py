"""Write a ``.bin`` verification set: the counterpart of :mod:`megaclass.data.verification_bin.dataset`."""

import contextlib
import os
import pickle
from collections.abc import Iterable, Sequence
from pathlib import Path

from megaclass.errors import UserError, make_room

# The first that holds bytes as they are: InsightFace's load_bin reads it in any Python 3.
PROTOCOL = 4


def write_bin(path: str | Path, images: Iterable[bytes], same: Sequence[bool]) -> None:
    """Write pairs of encoded images, 2i and 2i + 1 being pair i, with ``same[i]`` true for one identity.

    An object that occurs several times among the ``images`` is stored once; readers do not see a difference.
    All images are held in memory. The file appears whole or not at all, and none is overwritten: UserError.
    """
    path = Path(path)
    stored, answers = list(images), [bool(answer) for answer in same]
    if len(stored) != 2 * len(answers) or not answers:
        raise ValueError(f"{len(stored)} images for {len(answers)} pairs")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        if path.exists():
            raise FileExistsError  # before the work; what appears meanwhile is met at the end
        with part.open("xb") as file:
            pickle.dump((stored, answers), file, protocol=PROTOCOL)
        _name(part, path)
    except FileExistsError:
        raise UserError(f"{path} exists and is not overwritten; remove it or name another file") from None
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {error.strerror}; {make_room(error)}name another file"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def _name(part: Path, path: Path) -> None:
    """Give the finished file its name. FileExistsError if another has it: a rename would replace that one."""
    try:
        os.link(part, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if path.exists():
            raise FileExistsError from None
        part.replace(path)
