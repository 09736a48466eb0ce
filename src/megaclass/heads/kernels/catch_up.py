"""Rows that steps left out are brought up to date: read, multiplied by their 2 x 2 product, written back.

Shapes: T = rows of a tile, D = embedding columns. w: centres, v: momentum.
"""

import triton
import triton.language as tl

from megaclass.heads.kernels.rows import load_rows, rows_at, store_rows


@triton.jit(do_not_specialize=["count", "listed", "first_class", "w_key", "v_key"])
def catch_up_kernel(
    w_ptr, w_scale_ptr, w_noise_ptr, w_key,
    v_ptr, v_scale_ptr, v_noise_ptr, v_key,
    rows_ptr, listed, product_ptr, count, first_class,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr,
    FORMAT: tl.constexpr, HAS_MOMENTUM: tl.constexpr,
):  # fmt: skip
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
    row_T = rows_at(position_T, inside_T, rows_ptr, listed)
    inside_T = inside_T & ((vv_T != 1.0) | (vw_T != 0.0) | (wv_T != 0.0) | (ww_T != 1.0))

    w_TD = load_rows(w_ptr, w_scale_ptr, row_T, inside_T, D, BLOCK_D, FORMAT)
    new_TD = w_TD * ww_T[:, None]
    if HAS_MOMENTUM:
        v_TD = load_rows(v_ptr, v_scale_ptr, row_T, inside_T, D, BLOCK_D, FORMAT)
        new_TD = v_TD * wv_T[:, None] + new_TD
        v_TD = v_TD * vv_T[:, None] + w_TD * vw_T[:, None]
        store_rows(
            v_ptr, v_scale_ptr, row_T, inside_T, v_TD, first_class, v_key, v_noise_ptr, D, BLOCK_D, FORMAT
        )
    store_rows(
        w_ptr, w_scale_ptr, row_T, inside_T, new_TD, first_class, w_key, w_noise_ptr, D, BLOCK_D, FORMAT
    )
