"""Rows that steps left out are brought up to date: read, multiplied by their 2 x 2 product, written back.

Shapes: T = rows of a tile, D = embedding columns.
"""

import triton
import triton.language as tl

from megaclass.heads.kernels.rows import load_rows, rows_at, store_rows


@triton.jit(do_not_specialize=["count", "listed", "gathered", "first_class", "centre_key", "momentum_key"])
def catch_up_kernel(
    centre_ptr,
    centre_scale_ptr,
    momentum_ptr,
    momentum_scale_ptr,
    rows_ptr,
    product_ptr,
    centre_noise_ptr,
    momentum_noise_ptr,
    count,
    listed,
    gathered,
    first_class,
    centre_key,
    momentum_key,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_T: tl.constexpr,
    FORMAT: tl.constexpr,
    HAS_MOMENTUM: tl.constexpr,
):
    """``(v, w) <- M (v, w)`` for ``count`` active rows; product_ptr: (count, 4) fp32, M row-major.

    A row whose M is the identity is neither read nor written. Without momentum ``w`` is multiplied by M[1, 1].
    """
    position_T = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    inside_T = position_T < count
    product_at = product_ptr + position_T.to(tl.int64) * 4
    vv_T = tl.load(product_at, mask=inside_T, other=1.0)
    vw_T = tl.load(product_at + 1, mask=inside_T, other=0.0)
    wv_T = tl.load(product_at + 2, mask=inside_T, other=0.0)
    ww_T = tl.load(product_at + 3, mask=inside_T, other=1.0)
    shard_row_T, row_T = rows_at(position_T, inside_T, rows_ptr, listed, gathered)
    inside_T = inside_T & ((vv_T != 1.0) | (vw_T != 0.0) | (wv_T != 0.0) | (ww_T != 1.0))
    column_D = tl.arange(0, BLOCK_D)
    mask_TD = inside_T[:, None] & (column_D < D)[None, :]

    centre_TD = load_rows(centre_ptr, centre_scale_ptr, row_T, mask_TD, inside_T, D, column_D, FORMAT)
    new_TD = centre_TD * ww_T[:, None]
    if HAS_MOMENTUM:
        momentum_TD = load_rows(
            momentum_ptr, momentum_scale_ptr, row_T, mask_TD, inside_T, D, column_D, FORMAT
        )
        new_TD = momentum_TD * wv_T[:, None] + new_TD
        momentum_TD = momentum_TD * vv_T[:, None] + centre_TD * vw_T[:, None]
        store_rows(
            momentum_ptr,
            momentum_scale_ptr,
            row_T,
            mask_TD,
            inside_T,
            momentum_TD,
            shard_row_T,
            first_class,
            momentum_key,
            momentum_noise_ptr,
            D,
            column_D,
            FORMAT,
        )
    store_rows(
        centre_ptr,
        centre_scale_ptr,
        row_T,
        mask_TD,
        inside_T,
        new_TD,
        shard_row_T,
        first_class,
        centre_key,
        centre_noise_ptr,
        D,
        column_D,
        FORMAT,
    )
