"""Files of ``torch.save``, opened without running anything in them."""

import os
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megaclass.errors import UserError
from megaclass.files import regular_size

_REFUSED = re.compile(r"GLOBAL ([\w.]+)")


def read_torch_file(path: Path) -> Any:
    """What ``torch.save`` wrote, on the CPU, its tensors mapped where the format allows it.

    UserError, in a line of ours: PyTorch's own advice is to open such a file without its protection.
    """
    try:
        regular_size(path)
        with warnings.catch_warnings(action="ignore"):  # about pickles that are none of PyTorch's
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch raises many types for a file that is none of its own
        if isinstance(error, OSError) and error.strerror:
            why = f"{error.strerror}; name another"
        elif refused := _REFUSED.search(str(error)):
            why = f"holds an object of {refused[1]}; save the state_dict() of the model, tensors alone"
        else:
            why = "damaged, or of another format; give what torch.save wrote of a state_dict()"
        raise UserError(f"{path}: not a PyTorch file that can be opened safely: {why}") from None
    for tensor in _tensors(loaded):
        # One of strides 0 claims numbers that the file does not hold: nothing is to be allocated for these.
        if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
            raise UserError(f"{path}: a tensor claims {tuple(tensor.shape)} numbers, more than the file holds")
    return loaded


def write_torch_file(path: Path, value: Any) -> None:
    """What ``torch.save`` makes of it, in a new file. Raises OSError, which it would not by the name of a file."""
    with path.open("xb") as file:
        torch.save(value, file)
        file.flush()
        os.fsync(file.fileno())


def _tensors(loaded: Any) -> Iterator[Tensor]:
    """The dense ones, each once, however often it is mentioned; others are refused by whoever would use them."""
    left, seen = [loaded], set[int]()
    while left:
        value = left.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            if value.layout == torch.strided and not (value.is_nested or value.is_meta):
                yield value
        elif isinstance(value, Mapping):
            left += value.values()
        elif isinstance(value, list | tuple | set):
            left += value
