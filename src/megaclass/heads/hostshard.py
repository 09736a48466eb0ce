"""Centres in the machine's memory, for sampled heads that are larger than the device.

The rows of a step are fetched to the device when the step's sample is drawn, which is before the backbone runs,
and written back after the optimizer's step while the next one begins. One worker thread does both in the order in
which they were asked for, so a fetch sees every earlier write.

Shapes: N = rows that take part, D = embedding columns.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from megaclass.heads.engine import Engine, TorchEngine
from megaclass.heads.shard import Shard
from megaclass.heads.softmax import SGDStep
from megaclass.heads.storage import Rows
from megaclass.heads.tiles import ActiveRows, Workspace


@dataclass
class _Fetch:
    """Rows on their way to the device, with what they owe for the steps that left them out."""

    active: ActiveRows  # held, so that its id stays its own
    done: Future
    product_N4: Tensor


class HostShard(Shard):
    """The tables lie in host memory, pinned where the device is a GPU; ``engine`` computes on ``device``."""

    def __init__(
        self, centres: Rows, engine: Engine, first_class: int, seed: int, device: torch.device
    ) -> None:
        super().__init__(centres, engine, first_class, seed, tracks_age=True)
        self.device = device
        self._table_engine = TorchEngine("fp32", torch.device("cpu"))
        self._staging = Workspace(torch.device("cpu"), pinned=device.type == "cuda")
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="megaclass-host-rows")
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._fetches: dict[int, _Fetch] = {}
        self._written: Future | None = None

    # -- a step ---------------------------------------------------------------------------------------

    def activate(self, rows_N: Tensor | None) -> ActiveRows:
        assert rows_N is not None, "PartialFC refuses this placement at sample_rate 1"
        self._raise_failure()
        tables = [
            None
            if table is None
            else Rows(
                torch.empty(len(rows_N), table.data.shape[1], dtype=table.data.dtype, device=self.device),
                None if table.scale is None else torch.empty(len(rows_N), device=self.device),
            )
            for table in (self.centres, self.momentum)
        ]
        assert tables[0] is not None
        product_N4 = torch.empty(len(rows_N), 4, device=self.device)
        owed_N4 = product_N4 if self.engine.reads_owed else None
        active = ActiveRows(
            tables[0], tables[1], rows_N, gathered=True, owed_N4=owed_N4, version=self.version
        )
        steps = self.steps
        done = self._submit(lambda: self._fetch(active, product_N4, steps))
        self._fetches[id(active)] = _Fetch(active, done, product_N4)
        return active

    def ready(self, active: ActiveRows) -> ActiveRows:
        fetch = self._fetches.pop(id(active), None)
        if active.version != self.version:
            return self.ready(self.activate(active.rows_N))
        if fetch is None:
            return active
        fetch.done.result()
        self._raise_failure()  # the rows of the step before were written ahead of this fetch
        if not self.engine.reads_owed:
            self.engine.catch_up(active, fetch.product_N4, self.rounding("catch up"))
        return active

    def settle(self, active: ActiveRows, sgd: SGDStep, skipped: Tensor) -> None:
        self._raise_failure()
        self.steps += 1
        self.version += 1
        skipped, steps = skipped.cpu(), self.steps  # a host sync: the ages lie with the rows
        self._written = self._submit(lambda: self._write_back(active, sgd, skipped, steps))

    def forget(self) -> None:
        self._fetches.clear()

    # -- in the worker thread -------------------------------------------------------------------------

    def _submit(self, work: Callable[[], None]) -> Future:
        event = None
        if self._stream is not None:
            event = torch.cuda.current_stream(self.device).record_event()

        @torch.no_grad()
        def run() -> None:
            if self._stream is None or event is None:
                work()
                return
            with torch.cuda.stream(self._stream):
                self._stream.wait_event(event)
                work()
                self._stream.synchronize()  # the staging memory is free again, and the rows have arrived

        return self._worker.submit(run)

    def _pairs(self, active: ActiveRows) -> list[tuple[str, Tensor, Tensor]]:
        """(name, table in host memory, its active rows on the device)."""
        pairs = []
        for name, here, there in (
            ("centres", self.centres, active.centres),
            ("momentum", self.momentum, active.momentum),
        ):
            if here is not None and there is not None:
                pairs += [(f"{name} {key}", here.tensors[key], there.tensors[key]) for key in here.tensors]
        return pairs

    def _fetch(self, active: ActiveRows, product_N4: Tensor, steps: int) -> None:
        assert active.rows_N is not None and self._touched_C is not None and self._products is not None
        rows_N = active.rows_N.cpu()
        product_N4.copy_(self._products.of_ages(steps - self._touched_C[rows_N]))
        for name, table, on_device in self._pairs(active):
            staged = self._staging.get(name, *on_device.shape, dtype=table.dtype)
            torch.index_select(table, 0, rows_N, out=staged)
            on_device.copy_(staged, non_blocking=True)

    def _write_back(self, active: ActiveRows, sgd: SGDStep, skipped: Tensor, steps: int) -> None:
        assert active.rows_N is not None and self._touched_C is not None and self._products is not None
        rows_N = active.rows_N.cpu()
        for name, table, on_device in self._pairs(active):
            staged = self._staging.get(name, *on_device.shape, dtype=table.dtype)
            staged.copy_(on_device, non_blocking=True)
            if self._stream is not None:
                self._stream.synchronize()
            table.index_copy_(0, rows_N, staged)
        self._products.append(sgd, skipped)
        self._touch(rows_N, steps, skipped)
        self._sweep(steps)

    # -- all rows -------------------------------------------------------------------------------------

    def catch_up(self) -> None:
        self._wait()
        super().catch_up()

    def read(self, rows: slice | Tensor) -> Tensor:
        self._wait()
        return super().read(rows)

    def restored(self, steps: int) -> None:
        self._wait()
        super().restored(steps)

    def _wait(self) -> None:
        """Until the worker has nothing to do; raises what went wrong in it."""
        self._worker.submit(lambda: None).result()
        self._raise_failure()

    def _raise_failure(self) -> None:
        if self._written is not None and self._written.done():
            self._written.result()
