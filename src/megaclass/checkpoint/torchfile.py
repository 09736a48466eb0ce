"""Files of ``torch.save``, opened without running anything in them."""

import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from megaclass.errors import UserError

_REFUSED = re.compile(r"GLOBAL ([\w.]+)")


def read_torch_file(path: Path) -> Any:
    """What ``torch.save`` wrote, on the CPU, its tensors mapped where the format allows it.

    UserError, in a line of ours: PyTorch's own advice is to open such a file without its protection.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # about pickles that are none of PyTorch's
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # torch raises many types for a file that is none of its own
        if isinstance(error, OSError) and error.strerror:
            why = error.strerror
        elif refused := _REFUSED.search(str(error)):
            why = f"holds an object of {refused[1]}; save the state_dict() of the model, tensors alone"
        else:
            why = "damaged, or of another format; give what torch.save wrote of a state_dict()"
        raise UserError(f"{path}: not a PyTorch file that can be opened safely: {why}") from None
