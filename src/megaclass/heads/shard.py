"""The rows that a rank owns: centres, momentum, and when each row was last touched. The one owner of that state.

A sampled step touches few rows. Those it leaves out owe it their momentum and weight decay, and pay when they are
next touched. Under SGD with momentum mu, weight decay wd and learning rate lr, a row without a loss gradient follows

    v <- mu * v + wd * w          (v, w) <- M (v, w),   M = [[mu,          wd        ],
    w <- w - lr * v                                          [-lr * mu, 1 - lr * wd ]]

which is linear. A row left out for k steps is brought up to date by the product of the last k matrices: one integer
a row and one table of products give the dense optimizer's result at the sampled cost.

Shapes: C = rows of the shard, N = rows that take part, K = ages in the table of products, D = embedding columns.
"""

import warnings
from dataclasses import replace

import torch
from torch import Tensor

from megaclass.errors import UserError
from megaclass.heads.margins import BaseMargin
from megaclass.heads.softmax import TorchEngine
from megaclass.heads.step import ActiveRows, HeadOptions, MicroBatch, Roundings, SGDStep
from megaclass.heads.storage import Rounding, Rows, Storage
from megaclass.parallel.groups import Group, shard_range
from megaclass.parallel.seeding import derive_key

_CHUNK = 1 << 18  # rows caught up at a time: what they owe takes some 60 bytes each meanwhile

INIT_STD = 0.01  # as arcface_torch draws its centres
_INIT_ROWS = 4096  # centres are drawn in chunks of this many, each from its own seed

AGE_LIMIT = 1024


class Shard:
    """Centres and momentum in the memory of the device that computes.

    Args:
        first_row: the number of row 0 among those of all shards.
        is_sampled: whether steps leave rows out.

    Attributes:
        steps: optimizer steps taken, skipped ones too.
    """

    def __init__(self, centres: Rows, engine: TorchEngine, first_row: int, seed: int, is_sampled: bool) -> None:
        self.centres = centres
        self.momentum: Rows | None = None
        self.engine = engine
        self.first_row, self.seed = first_row, seed
        self.steps = 0
        self._version = 0  # rises with every change of the tables, so that no debt is paid twice
        self._debts = Debts(len(centres), centres.data.device) if is_sampled else None

    def begin_optimizer(self, keeps_momentum: bool) -> None:
        """Another optimizer takes over, with a momentum of zeros."""
        self.catch_up()  # what an earlier one still owes is its own
        (count, dim), data = self.centres.data.shape, self.centres.data
        self.momentum = Rows.zeros(count, dim, data.dtype, data.device) if keeps_momentum else None

    # -- a step ---------------------------------------------------------------------------------------

    def activate(self, rows_N: Tensor | None) -> ActiveRows:
        """The rows of a step (int64, sorted; None: all), to be used through :meth:`ready`."""
        active = ActiveRows(self.centres, self.momentum, rows_N, version=self._version)
        if rows_N is None or self._debts is None:
            return active
        return replace(active, owed_N4=self._debts.of(rows_N, self.steps))

    def ready(self, active: ActiveRows) -> ActiveRows:
        """The same rows, fit for use; called before each use.

        Whoever saves, copies or steps between the draw and the use changes what rows owe: they are activated anew.
        """
        return active if active.version == self._version else self.activate(active.rows_N)

    def update(
        self, batches: list[MicroBatch], margin: BaseMargin, sgd: SGDStep, skipped: Tensor, replicas: Group
    ) -> None:
        """Pass 2: an optimizer step of the rows that any micro-batch has scored, which ``skipped`` (a bool scalar)
        makes one of no effect. ``replicas``: the ranks that hold the same rows."""
        active = batches[0].active
        samples = [m.active.rows_N for m in batches if m.active.rows_N is not None]
        if all(rows_N is active.rows_N for rows_N in samples):
            active = self.ready(active)
        else:
            active = self.activate(torch.unique(torch.cat(samples)))
        reduce_ = replicas.all_reduce_ if replicas.size > 1 else None
        self.engine.pass_two(batches, active, margin, sgd, self._rounding("step"), skipped, reduce_)
        self.steps += 1
        self._version += 1
        if self._debts is not None:
            self._debts.step(sgd, skipped, active.shard_rows(slice(0, len(active))), self.steps)
            # Bound the ages: the next 1 / AGE_LIMIT of the shard is brought up to date in passing.
            swept = shard_range(len(self.centres), self.steps % AGE_LIMIT, AGE_LIMIT)
            self._catch_up(self._debts, torch.arange(*swept, device=self.centres.data.device), "sweep")

    def _rounding(self, purpose: str) -> Roundings:
        """The random numbers of the writes of this step, by the table that is written."""
        dim, device = self.centres.data.shape[1], self.centres.data.device
        return lambda table: Rounding(self.seed, self.steps, f"{purpose} {table}", self.first_row, dim, device)

    # -- rows that steps left out ---------------------------------------------------------------------

    def catch_up(self) -> None:
        """Bring all rows to what dense SGD would have made of them by now."""
        if self._debts is not None and self.steps > 0:
            for start in range(0, len(self.centres), _CHUNK):
                stop = min(start + _CHUNK, len(self.centres))
                self._catch_up(self._debts, torch.arange(start, stop, device=self.centres.data.device), "catch up")

    def _catch_up(self, debts: "Debts", rows_N: Tensor, purpose: str) -> None:
        self._version += 1
        active = ActiveRows(self.centres, self.momentum, rows_N, debts.of(rows_N, self.steps))
        self.engine.catch_up(active, self._rounding(purpose))
        debts.touched_C[rows_N] = self.steps

    # -- state ----------------------------------------------------------------------------------------

    def load_momentum(self, stored: Rows | None) -> None:
        """Take rows of any storage, where momentum is kept; None: it starts at zero."""
        if self.momentum is not None:
            self.momentum.data.zero_()
            if stored is not None:
                self.momentum.take(stored)

    @property
    def owed(self) -> tuple[Tensor, Tensor] | None:
        """Where steps leave rows out: the step that last touched each row, int32 (C,), and what is owed for 0, 1, ...
        steps since, as products (K, 4) in fp64."""
        return (self._debts.touched_C, self._debts.table_K4) if self._debts else None

    def owes(self, steps: int, touched_C: Tensor, table_K4: Tensor) -> None:
        """The tables now hold rows after this many steps, and these still owe. ValueError for debts of other steps."""
        assert self._debts is not None
        age_C = steps - touched_C.long()
        if table_K4.shape != self._debts.table_K4.shape or (
            len(age_C) and not 0 <= age_C.amin() <= age_C.amax() <= AGE_LIMIT
        ):
            raise ValueError("what its class centres owe is of other steps")
        self.restored(steps)
        self._debts.touched_C.copy_(touched_C)
        self._debts.table_K4.copy_(table_K4)

    def restored(self, steps: int) -> None:
        """The tables now hold the state after this many steps, with every row up to date."""
        self.steps = steps
        self._version += 1
        if self._debts is not None:
            self._debts.forgive(steps)


class Debts:
    """What rows owe for the steps that left them out.

    ``touched_C`` is the step that last touched each row, ``table_K4[k]`` the product of the matrices of the last k
    steps, row-major, fp64. Ages go to ``AGE_LIMIT``: every row must be brought up to date once in so many steps.
    """

    def __init__(self, count: int, device: torch.device) -> None:
        self.touched_C = torch.zeros(count, dtype=torch.int32, device=device)
        self.table_K4 = torch.zeros(AGE_LIMIT + 1, 4, dtype=torch.float64, device=device)
        self.forgive(0)

    def forgive(self, steps: int) -> None:
        """Every row is up to date after this many steps."""
        self.touched_C.fill_(steps)
        self.table_K4.copy_(torch.eye(2, dtype=torch.float64).flatten())

    def step(self, sgd: SGDStep, skipped: Tensor, rows_N: Tensor, steps: int) -> None:
        """Step ``steps`` has moved these rows; age 0 is "up to date" again, and older products grow by one factor.

        skipped (no host sync): it has moved nothing, and all rows still owe what they owed.
        """
        lr, mu, decay = sgd.lr, sgd.momentum, sgd.weight_decay
        older_K4 = self.table_K4[:-1].clone()
        v_K2, w_K2 = older_K4[:, :2], older_K4[:, 2:]
        grown_K4 = torch.cat([mu * v_K2 + decay * w_K2, (1 - lr * decay) * w_K2 - lr * mu * v_K2], 1)
        self.table_K4[1:] = torch.where(skipped, older_K4, grown_K4)
        self.touched_C[rows_N] = torch.where(skipped, self.touched_C[rows_N], steps)

    def of(self, rows_N: Tensor, steps: int) -> Tensor:
        """The products that these rows owe after this many steps, fp32 (N, 4)."""
        return self.table_K4[(steps - self.touched_C[rows_N]).long()].float()


@torch.no_grad()
def draw_centres(centres: Rows, first_row: int, seed: int) -> None:
    """Fill the table with its part of the initial centres, N(0, 0.01), whatever the number of ranks."""
    start, stop, dim = first_row, first_row + len(centres), centres.data.shape[1]
    device = centres.data.device
    generator = torch.Generator(device)
    for chunk in range(start // _INIT_ROWS, -(-stop // _INIT_ROWS)):
        generator.manual_seed(derive_key("centres", seed, chunk))
        rows = torch.empty(_INIT_ROWS, dim, device=device).normal_(0, INIT_STD, generator=generator)
        first = chunk * _INIT_ROWS
        low, high = max(start, first), min(stop, first + _INIT_ROWS)
        centres.put(slice(low - start, high - start), rows[low - first : high - first])


def make_engine(
    options: HeadOptions, storage: Storage, dim: int, device: torch.device, is_sampled: bool = False
) -> TorchEngine:
    """For ``dim`` columns; is_sampled: steps leave rows out. ``kernels`` ``auto`` takes Triton on CUDA where it works,
    and warns once where not. The kernels know one centre a class: sub-centres take plain PyTorch."""
    if options.sub_centres > 1:
        if options.kernels == "triton":
            raise UserError("kernels 'triton': they know no sub_centres; use auto or torch")
    elif options.kernels == "triton" or (options.kernels == "auto" and device.type == "cuda"):
        try:
            from megaclass.heads.kernels.engine import TritonEngine

            return TritonEngine(options.precision, device, options.tile_mb, dim, storage, is_sampled)
        except Exception as error:  # no Triton, no compiler, a GPU too old, ...
            if options.kernels == "triton":
                raise UserError(f"kernels 'triton': {error}; use auto or torch") from error
            warnings.warn(
                f"the head's Triton kernels do not work here ({error}); using plain PyTorch, which is slower",
                RuntimeWarning,
                stacklevel=2,
            )
    return TorchEngine(options.precision, device, options.tile_mb, options.recompute, options.sub_centres)
