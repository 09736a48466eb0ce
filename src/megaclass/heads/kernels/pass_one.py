"""Pass 1: sums of exponentials and their weighted sums of centres. Attention whose keys are its values.

Shapes: B = rows of the batch, T = rows of a tile, D = embedding columns, all padded to their blocks.
"""

import triton
import triton.language as tl

from megaclass.heads.kernels.rows import LOG2_E, as_operand, product


@triton.jit(do_not_specialize=["batch", "start", "count", "yes"])
def pass_one_kernel(
    scaled_ptr, unit_ptr, position_ptr, sums_ptr, values_ptr,
    batch, start, count, shift, threshold, yes,
    BLOCK_D: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_T: tl.constexpr,
    SPLIT_COLUMNS: tl.constexpr, PRECISION: tl.constexpr, EMULATE: tl.constexpr,
):  # fmt: skip
    """Add a chunk of classes to the partial sums ``S`` (splits, batch) fp64 and ``U`` (splits, batch, BLOCK_D) fp32.

    scaled_ptr: s * e, (batch, BLOCK_D); unit_ptr: unit centres, at least count rows in whole tiles; both operands.
    position_ptr: (batch,) int32, the target's place among the active rows. The chunk holds the active rows from
    ``start`` on. batch: a multiple of BLOCK_B. threshold: a larger logit leaves the sum. yes: 1.

    A program has one block of the batch and one of the splits of the chunk. Blocks of the batch are the
    fastest index, so that programs which run at a time read the same tiles from L2.
    """
    row_B = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    split = tl.program_id(1)
    tiles = tl.cdiv(tl.cdiv(count, BLOCK_T), tl.num_programs(1))
    begin = split * tiles * BLOCK_T
    end = tl.minimum(begin + tiles * BLOCK_T, count)
    column_D = tl.arange(0, BLOCK_D)
    offset_T = tl.arange(0, BLOCK_T)

    scaled_BD = tl.load(scaled_ptr + row_B[:, None] * BLOCK_D + column_D[None, :])
    target_B = tl.load(position_ptr + row_B) - start
    values_BD = tl.zeros((BLOCK_B, BLOCK_D), tl.float32)
    sum_B = tl.zeros((BLOCK_B,), tl.float32)
    unit_B = (
        tl.zeros((BLOCK_B,), tl.float32) + shift * LOG2_E
    )  # exponentials are kept in units of 2 ** unit_B

    for tile in tl.range(begin, end, BLOCK_T):
        class_T = tile + offset_T
        unit_TD = tl.load(unit_ptr + class_T[:, None] * BLOCK_D + column_D[None, :])
        logits_BT = tl.zeros((BLOCK_B, BLOCK_T), tl.float32)
        if SPLIT_COLUMNS:
            # A branch that is always taken: it hides from Triton that one product feeds the other. Where it sees
            # that, it lines all warps up along the rows, and two warp groups compute the logits of the same 64.
            if yes != 0:
                logits_BT = product(scaled_BD, tl.trans(unit_TD), logits_BT, PRECISION)
        else:
            logits_BT = product(scaled_BD, tl.trans(unit_TD), logits_BT, PRECISION)
        counts_BT = (
            (class_T < end)[None, :] & (class_T[None, :] != target_B[:, None]) & (logits_BT <= threshold)
        )
        logits_BT *= LOG2_E
        exp_BT = tl.where(counts_BT, tl.exp2(logits_BT - unit_B[:, None]), 0.0)
        sum_B += tl.sum(exp_BT, axis=1)
        values_BD = product(as_operand(exp_BT, PRECISION, EMULATE), unit_TD, values_BD, PRECISION)

    sums_at = sums_ptr + split * batch + row_B
    tl.store(sums_at, tl.load(sums_at) + sum_B.to(tl.float64))
    values_at = values_ptr + (split.to(tl.int64) * batch + row_B)[:, None] * BLOCK_D + column_D[None, :]
    tl.store(values_at, tl.load(values_at) + values_BD)
