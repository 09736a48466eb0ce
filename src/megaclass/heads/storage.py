"""How the rows of a shard are stored: centres and momentum in fp32 or bf16, or centres alone in 8 bits.

| storage | a centre | its momentum | bytes a class at D = 512, without and with sampling |
|---|---|---|---|
| fp32 | fp32 | fp32 | 4,096 / 4,100 |
| bf16 | bf16 | bf16 | 2,048 / 2,052 |
| int8_rowwise | 8 bits, a scale | none | 516 / 520 |

Row-wise storage keeps no momentum matrix: a gradient is applied at once with the whole tail that momentum
would give it, ``lr / (1 - momentum)``, damped where it would turn the centre far. What sampling needs of a
row, the step that it was last touched, is then its whole state.

bf16 and 8-bit rows are written with stochastic rounding: up with the probability of the fraction, so that
updates far below a unit in the last place still count in the mean (Gupta et al., ICML 2015,
arXiv:1502.02551). The random numbers are a function of (seed, step, class, column): independent of the number
of ranks, and repeated by a resumed run.

Shapes: C = rows of the shard, N = rows that take part, T = rows of a tile, D = embedding columns.
"""

import ctypes
import functools
import mmap
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from megaclass.errors import UserError, lookup
from megaclass.parallel.seeding import derive_key, mix32

# 8-bit rows: the scale, a power of two, changes where the largest number would leave this range of steps.
# Shrinking it is exact and growing rounds once; the gap between the two keeps a row from alternating.
INT8_MOST = 127
INT8_LEAST = 48
_NO_SCALE = 2.0**-126

_CHUNK = 1 << 16  # rows copied at a time


@dataclass(frozen=True)
class Storage:
    """The type of the rows, and whether momentum is kept."""

    dtype: torch.dtype
    momentum: bool

    @classmethod
    def named(cls, name: str) -> "Storage":
        return lookup(STORAGES, name, "storage")


STORAGES = {
    "fp32": Storage(torch.float32, momentum=True),
    "bf16": Storage(torch.bfloat16, momentum=True),
    "int8_rowwise": Storage(torch.int8, momentum=False),
}


@dataclass(frozen=True)
class Rows:
    """A table of rows. ``data`` is (C, D) fp32, bf16 or int8; ``scale`` (C,) fp32 is there for int8 alone."""

    data: Tensor
    scale: Tensor | None = None

    def __post_init__(self) -> None:
        data, scale = self.data, self.scale
        if data.dtype == torch.int8:
            good = scale is not None and scale.shape == data.shape[:1] and scale.is_floating_point()
        else:
            good = data.is_floating_point()
        if not good:
            scales = "no scales" if scale is None else f"scales {scale.dtype} {tuple(scale.shape)}"
            raise UserError(
                f"rows {data.dtype} {tuple(data.shape)}, {scales}: they are fp32, bf16, or 8 bits with a scale each"
            )

    @classmethod
    def zeros(cls, count: int, dim: int, dtype: torch.dtype, device: torch.device) -> "Rows":
        scale = torch.full((count,), _NO_SCALE, device=device) if dtype == torch.int8 else None
        return cls(empty_table(count, dim, dtype, device).zero_(), scale)

    def __len__(self) -> int:
        return len(self.data)

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {"data": self.data} if self.scale is None else {"data": self.data, "scale": self.scale}

    def __getitem__(self, rows: slice | Tensor) -> "Rows":
        """Consecutive rows, as a view, or a copy of any."""
        return Rows(self.data[rows], None if self.scale is None else self.scale[rows])

    def fp32(self, rows: slice | Tensor = slice(None)) -> Tensor:
        """A copy of rows, (N, D) fp32."""
        values_ND = self.data[rows].to(torch.float32, copy=True)
        return values_ND if self.scale is None else values_ND.mul_(self.scale[rows][:, None])

    def norms(self) -> Tensor:
        """The length of each row, fp32 (C,)."""
        found_C = torch.empty(len(self.data), device=self.data.device)
        for start in range(0, len(self.data), _CHUNK):
            rows = slice(start, start + _CHUNK)
            torch.linalg.vector_norm(self.data[rows].float(), dim=1, out=found_C[rows])
        return found_C if self.scale is None else found_C.mul_(self.scale)

    def put(self, rows: slice | Tensor, values_ND: Tensor) -> None:
        """Store fp32 rows, rounded to nearest."""
        if self.scale is None:
            self.data[rows] = values_ND.to(self.data.dtype)
        else:
            scale_N = _smallest_scale(values_ND.abs().amax(1))
            self.data[rows] = (values_ND / scale_N[:, None]).round_().to(torch.int8)
            self.scale[rows] = scale_N

    def take(self, other: "Rows") -> None:
        """Copy another table of the same shape: exactly where both are stored alike, else to nearest."""
        self.fill(0, lambda start, stop: other[start:stop])

    def fill(self, first: int, read: Callable[[int, int], "Rows"]) -> None:
        """Take every row from ``read(start, stop)``, block by block; ``first`` is the number of row 0 there."""
        for start in range(0, len(self), _CHUNK):
            rows = slice(start, min(start + _CHUNK, len(self)))
            self.store(rows, read(first + rows.start, first + rows.stop))

    def store(self, rows: slice | Tensor, part: "Rows") -> None:
        """Put rows of any storage here: exactly where both are stored alike, else to nearest."""
        if part.data.shape[1:] != self.data.shape[1:]:
            raise UserError(f"rows {tuple(part.data.shape)} for a table {tuple(self.data.shape)}")
        if part.data.dtype != self.data.dtype:
            self.put(rows, part.fp32().to(self.data.device))
        else:
            for name, table in self.tensors.items():
                table[rows] = part.tensors[name].to(table.device)


def empty_table(count: int, dim: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Uninitialised memory, on a CPU in huge pages where the system has them and lends them on request: with pages of
    4 kB each gathered row costs the processor a search for its address, and each new page a fault."""
    table = torch.empty(count, dim, dtype=dtype, device=device)
    if table.device.type == "cpu" and hasattr(mmap, "MADV_HUGEPAGE"):
        start = -(-table.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        size = table.data_ptr() + table.nbytes - start
        if size > 0:
            ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), mmap.MADV_HUGEPAGE)
    return table


def _smallest_scale(peak_N: Tensor) -> Tensor:
    """The smallest power of two under which ``peak`` (fp32) takes at most ``INT8_MOST`` steps, at least
    ``_NO_SCALE``; NaN where it is not finite, so that a row that diverged stays seen.

    By whole numbers alone, because a division by 127 and a power are rounded otherwise on a GPU. 127 is 2 ** 6 with
    the mantissa 0x7E0000: a larger one takes the next power.
    """
    scale_N = ((peak_N.view(torch.int32) + 0x1FFFF) & 0x7F800000).sub_(6 << 23).clamp_(min=1 << 23)
    return torch.where(torch.isfinite(peak_N), scale_N.view(torch.float32), torch.nan)


def settled_scale(peak_N: Tensor, scale_N: Tensor) -> Tensor:
    """The scale to store rows under whose largest numbers are ``peak``: the present one while it serves."""
    keep_N = (peak_N <= INT8_MOST * scale_N) & (peak_N >= INT8_LEAST * scale_N)
    return torch.where(keep_N, scale_N, _smallest_scale(peak_N))


class Rounding:
    """The random numbers of one write, 16 bits an element: ``(column_D + row_T) mod 2**16``.

    Each is uniform, and any two of a row, or of a column, are independent; one hash a row and one a column
    are all that they cost.

    Args:
        purpose: tells the writes of one step apart.
        first_class: the class of row 0 of the shard.
    """

    def __init__(self, seed: int, step: int, purpose: str, first_class: int, dim: int, device: torch.device):
        self.key = derive_key("rounding", seed, step, purpose) & 0xFFFFFFFF
        self.first_class = first_class
        self.dim, self.device = dim, device

    @functools.cached_property
    def column_D(self) -> Tensor:  # noqa: N802 - a tensor, named as one
        """Each column's summand, int32 below 2**16; fp32 tables never ask for it."""
        columns_D = torch.arange(self.dim, device=self.device)
        return (mix32(columns_D, self.key ^ 0x5BD1E995) & 0xFFFF).int()

    def of_rows(self, row_T: Tensor) -> Tensor:
        """Each row's summand, int32 below 2**16; ``row_T`` are int64 rows of the shard."""
        return (mix32((row_T + self.first_class) & 0xFFFFFFFF, self.key) & 0xFFFF).int()


def round_to_bf16(tile_TD: Tensor, column_D: Tensor, row_T: Tensor, scratch_TD: Tensor, out_TD: Tensor) -> None:
    """Stochastic rounding of fp32 ``tile``, which is destroyed, into bf16 ``out``. scratch: int32."""
    torch.add(row_T[:, None], column_D, out=scratch_TD).bitwise_and_(0xFFFF)
    if tile_TD.is_cuda:  # its NaN is 0x7FFFFFFF, which a carry would make a zero
        scratch_TD.masked_fill_(torch.isnan(tile_TD), 0)
    tile_TD.view(torch.int32).add_(scratch_TD)  # the carry decides; the upper half is the result
    out_TD.view(torch.int16).copy_(tile_TD.view(torch.int16)[:, 1::2])


def round_to_int8(
    tile_TD: Tensor, column_D: Tensor, row_T: Tensor, scratch_TD: Tensor, scale_T: Tensor, out_TD: Tensor
) -> Tensor:
    """Stochastic rounding of fp32 ``tile``, which is destroyed, into int8 ``out``. scratch: fp32.

    Returns the scales to store with it, given the present ones.
    """
    peak_T = torch.linalg.vector_norm(tile_TD, ord=torch.inf, dim=1)
    scale_T = settled_scale(peak_T, scale_T)
    torch.add(row_T[:, None], column_D, out=scratch_TD.view(torch.int32)).bitwise_and_(0xFFFF)
    tile_TD.mul_(scale_T.reciprocal()[:, None])
    scratch_TD.copy_(scratch_TD.view(torch.int32))
    tile_TD.add_(scratch_TD, alpha=2.0**-16).floor_().clamp_(-INT8_MOST, INT8_MOST)
    out_TD.copy_(tile_TD)
    return scale_T
