"""What is sent and what has to arrive: whole numbers whose sum is exact, so that every bit can be checked.

Shape: E = elements of the message.
"""

import torch
from torch import Tensor

_VALUES = 5  # a message repeats 0..4: 64 ranks sum to 256 at most, which bfloat16 still holds exactly


class Messages:
    """``sent`` is what a rank sends: the numbers ``(i + rank + shift) % 5``, where i counts the elements. Another
    shift for every call and every turn, so that what a call before has left is not taken for its result."""

    def __init__(self, elements: int, ranks: int, dtype: torch.dtype, device: torch.device) -> None:
        self._elements = elements
        period = torch.arange(_VALUES, device=device)
        repeats = -(-elements // _VALUES) + 1
        self._pattern = period.to(dtype).repeat(repeats)
        sums = sum((period + rank) % _VALUES for rank in range(ranks))
        self._sums = torch.as_tensor(sums).to(dtype).repeat(repeats)

    def sent(self, rank: int, shift: int) -> Tensor:
        """The message E of a rank."""
        first = (rank + shift) % _VALUES
        return self._pattern[first : first + self._elements]

    def summed(self, shift: int) -> Tensor:
        """The sum E of the messages of all ranks."""
        first = shift % _VALUES
        return self._sums[first : first + self._elements]
