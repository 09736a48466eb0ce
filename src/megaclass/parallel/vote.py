"""Small flags that all ranks must know of, without a wait in each step."""

import torch
import torch.distributed as dist

from megaclass.parallel import groups


class Vote:
    """Each step every rank casts its flags, and hears what all cast in the step before.

    The exchange travels while the step is computed, over CPU tensors and a group of its own: it costs no host sync and
    cannot meet the collectives of another thread. All ranks make one together.
    """

    def __init__(self) -> None:
        self._group = groups.new_side_group()
        self._flags = torch.zeros(1, dtype=torch.int32)
        self._travelling: dist.Work | None = None

    def cast(self, flags: int) -> int:
        """What all ranks cast in the call before, bit by bit or-ed: 0 at first. A rank that is alone hears itself at
        once. flags: below 2**31."""
        if self._group is None:
            return flags
        heard = self.wait()
        self._flags.fill_(flags)
        self._travelling = dist.all_reduce(self._flags, dist.ReduceOp.BOR, self._group, async_op=True)
        return heard

    def wait(self) -> int:
        """Wait for the last exchange, which every rank has cast; returns what was heard."""
        if self._travelling is None:
            return 0
        self._travelling.wait()
        self._travelling = None
        return int(self._flags)
