"""The operations of :mod:`torch.distributed` on tensors that lie ready: nothing is allocated in the timed region.

They are called directly, as cluster reports measure them, and not through ``megaclass.parallel.groups``, whose
``all_gather_rows`` and ``reduce_scatter_rows`` make the tensor that they return: that is memory's speed, not the
network's.

Shapes: K = calls of a turn, E = elements of the message, e = of a rank's part of it.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megaclass.bench.collectives.cases import CollectiveCase
from megaclass.bench.collectives.messages import Messages
from megaclass.bench.timing import Stopwatch
from megaclass.parallel import groups
from megaclass.parallel.groups import World

# PyTorch 2.13 renamed the two; 2.11 knows only the second name.
_all_gather: Callable[..., Any] = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
_reduce_scatter: Callable[..., Any] = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)

_TURN_MS = (
    20.0  # against it neither the clock nor the moments between which ranks leave a barrier count for much
)
_MOST_CALLS = 4096
_MOST_BYTES = {"cpu": 64 << 20, "cuda": 1 << 30}  # of the messages of one turn, if it has more than one
_NOTHING = -1  # stands where a result has to be written; no message has it


class Collective:
    """One operation. A turn is ``calls`` of it, one after the other and each on tensors of its own, so that every
    result is there to be checked when the clock has stopped."""

    def __init__(self, case: CollectiveCase, world: World) -> None:
        self.case, self.rank = case, world.rank
        self._watch = Stopwatch(world.device)
        self._messages = Messages(case.elements, world.size, getattr(torch, case.dtype), world.device)
        self._part = slice(
            world.rank * case.elements // world.size, (world.rank + 1) * case.elements // world.size
        )
        self._device = world.device
        self.calls = 1
        self._make_room()
        self.calls = self._enough_calls()
        self._make_room()

    def _make_room(self) -> None:
        """``_inputs_KE`` (or Ke) hold what is sent, ``_outputs_KE`` (or Ke) what comes; both are one where an
        operation works in place."""
        whole, part = self.case.elements, self._part.stop - self._part.start
        shapes = {"all_gather": (part, whole), "reduce_scatter": (whole, part)}
        sent, received = shapes.get(self.case.op, (whole, whole))
        dtype = getattr(torch, self.case.dtype)
        self._inputs: Tensor = torch.empty((self.calls, sent), dtype=dtype, device=self._device)
        self._outputs: Tensor = self._inputs
        if self.case.op in shapes:
            self._outputs = torch.empty((self.calls, received), dtype=dtype, device=self._device)

    def _enough_calls(self) -> int:
        """So many that a turn takes long enough, the same on every rank."""
        fastest_ms = math.inf
        for turn in range(4):  # the first connects the ranks
            self.prepare(turn)
            groups.barrier()
            fastest_ms = min(fastest_ms, self._watch.time_ms(self.call)[0])
            self.check(turn)
        call_ms = float(
            groups.all_ranks().all_reduce_(
                torch.tensor([fastest_ms], dtype=torch.float64, device=self._device), "max"
            )
        )
        most = max(1, min(_MOST_CALLS, _MOST_BYTES[self.case.device] // self.case.bytes))
        return max(1, min(most, math.ceil(_TURN_MS / max(call_ms, 1e-3))))

    def prepare(self, turn: int) -> None:
        """Write what is to be sent, and nothing where a result is to come."""
        self._outputs.fill_(_NOTHING)
        for call, input_E in enumerate(self._inputs):
            message_E = self._messages.sent(self.rank, self._shift(turn, call))
            if self.case.op == "all_gather":
                message_E = message_E[: len(input_E)]
            if self.case.op != "broadcast" or self.rank == 0:
                input_E.copy_(message_E)

    def call(self) -> None:
        """The timed region."""
        operation = _OPERATIONS[self.case.op]
        for output, sent in zip(self._outputs, self._inputs, strict=True):
            operation(output, sent)

    def check(self, turn: int) -> None:
        """Raises ArithmeticError: a result is not what it must be."""
        for call, output in enumerate(self._outputs):
            if not torch.equal(output, self._expected(self._shift(turn, call))):
                raise ArithmeticError(f"call {call} of turn {turn} gave a wrong result on rank {self.rank}")

    def _expected(self, shift: int) -> Tensor:
        if self.case.op == "all_gather":
            part = self._part.stop - self._part.start
            return torch.cat(
                [self._messages.sent(rank, shift)[:part] for rank in range(self.case.world_size)]
            )
        if self.case.op == "broadcast":
            return self._messages.sent(0, shift)
        return self._messages.summed(shift)[self._part if self.case.op == "reduce_scatter" else slice(None)]

    def _shift(self, turn: int, call: int) -> int:
        return self.case.seed + turn + call

    def facts(self) -> dict[str, Any]:
        """For the row: what the case has no field for."""
        return {"calls": self.calls}


_OPERATIONS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "all_reduce": lambda output_E, input_E: dist.all_reduce(output_E),
    "all_gather": lambda output_E, input_e: _all_gather(output_E, input_e),
    "reduce_scatter": lambda output_e, input_E: _reduce_scatter(output_e, input_E),
    "broadcast": lambda output_E, input_E: dist.broadcast(output_E, 0),
}
