"""Centres of any storage as unit rows, in the type of the products' operands: the keys and values of pass 1.

Pass 1 reads each centre once for every block of the batch. Looking its row up, widening it, and dividing it by its
norm is done once instead, for a chunk of rows that the L2 cache holds; from there on every storage costs the same.

Shapes: T = rows of a tile, D = embedding columns.
"""

import triton
import triton.language as tl

from megaclass.heads.kernels.rows import as_operand, inverse_norms, load_rows, rows_at


@triton.jit(do_not_specialize=["start", "count", "listed"])
def unit_kernel(
    data_ptr, scale_ptr, rows_ptr, listed, unit_ptr, start, count, floor,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr,
    FORMAT: tl.constexpr, PRECISION: tl.constexpr, EMULATE: tl.constexpr,
):  # fmt: skip
    """``unit[i] = w / |w|`` of the active rows ``start + i`` for i < count, and 0 to the end of the last block.

    unit_ptr: (rows, BLOCK_D) with a multiple of BLOCK_T rows. One program a block of BLOCK_T rows.
    """
    offset_T = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    column_D = tl.arange(0, BLOCK_D)
    inside_T = offset_T < count
    row_T = rows_at(start + offset_T, inside_T, rows_ptr, listed)
    rows_TD = load_rows(data_ptr, scale_ptr, row_T, inside_T, D, BLOCK_D, FORMAT)
    unit_TD = as_operand(rows_TD * inverse_norms(rows_TD, floor)[:, None], PRECISION, EMULATE)
    tl.store(unit_ptr + offset_T.to(tl.int64)[:, None] * BLOCK_D + column_D[None, :], unit_TD)
