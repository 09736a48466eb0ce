"""The two passes over the classes.

Pass 1 sums exponentials, and centres weighted by them: attention whose keys are its values.

In pass 2 a tile of classes computes its gradient, and momentum and centres move, in one kernel. Programs stay on their
multiprocessor and take tile after tile. Only the gradient of a tile lives in registers; what comes before and after it,
widening, norms, momentum and rounding, walks over BLOCK_R rows at a time, because three matrices of a tile's size in
registers would be spilled. The gradient crosses through memory that stays in L2, and while one program updates rows,
the products of the others go on.

Both accumulate transposed, D x B and D x T: all warps lie along D, and exponentials are the second operand of their
product, which the matrix units of an H100 read from shared memory anyway. Logits and exponentials are computed inside a
branch that is always taken (``yes``): it hides from Triton that one product feeds the other. Where it sees that, it
lines all warps up along the rows of the first, or recomputes exponentials in the layout of the second, and each is
computed three to nine times.

Shapes: B = rows of the batch, T = rows of a tile, D = embedding columns, all padded to their blocks. w: centres, v:
momentum.
"""

import triton
import triton.language as tl

from megaclass.heads.kernels.rows import (
    LOG2_E,
    as_operand,
    inverse_norms,
    product,
    read_rows,
    rows_at,
    store_rows,
)


@triton.jit(do_not_specialize=["batch", "start", "count", "yes"])
def pass_one_kernel(
    scaled_ptr, unit_ptr, position_ptr, sums_ptr, values_ptr,
    batch, start, count, shift, threshold, yes,
    BLOCK_D: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_T: tl.constexpr, FILTER: tl.constexpr,
    PRECISION: tl.constexpr, EMULATE: tl.constexpr,
):  # fmt: skip
    """Add a chunk of classes to the partial sums ``S`` (splits, batch) fp64 and ``U`` (splits, batch, BLOCK_D) fp32.

    scaled_ptr: s * e, (batch, BLOCK_D); unit_ptr: unit centres, at least count rows in whole tiles; both operands.
    position_ptr: (batch,) int32, the target's place among the active rows. The chunk holds the active rows from
    ``start`` on. batch: a multiple of BLOCK_B. FILTER: logits above ``threshold`` leave the sum. yes: 1.

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
    values_DB = tl.zeros((BLOCK_D, BLOCK_B), tl.float32)
    sum_TB = tl.zeros((BLOCK_T, BLOCK_B), tl.float32)  # added up once, at the end: no exchange between warps till then

    for tile in tl.range(begin, end, BLOCK_T):
        class_T = tile + offset_T
        unit_TD = tl.load(unit_ptr + class_T[:, None] * BLOCK_D + column_D[None, :])
        exp_TB = tl.zeros((BLOCK_T, BLOCK_B), tl.float32)
        if yes != 0:
            logits_TB = product(unit_TD, tl.trans(scaled_BD), exp_TB, PRECISION)
            counts_TB = (class_T < end)[:, None] & (class_T[:, None] != target_B[None, :])
            if FILTER:
                counts_TB = counts_TB & ~(logits_TB > threshold)  # a NaN stays, and is seen
            exp_TB = tl.where(counts_TB, tl.exp2(logits_TB * LOG2_E - shift * LOG2_E), 0.0)
        sum_TB += exp_TB
        values_DB = product(tl.trans(unit_TD), as_operand(exp_TB, PRECISION, EMULATE), values_DB, PRECISION)

    sums_at = sums_ptr + split * batch + row_B
    tl.store(sums_at, tl.load(sums_at) + tl.sum(sum_TB, axis=0).to(tl.float64))
    values_at = values_ptr + (split.to(tl.int64) * batch + row_B)[None, :] * BLOCK_D + column_D[:, None]
    tl.store(values_at, tl.load(values_at) + values_DB)


@triton.jit(do_not_specialize=["count", "batch", "listed", "first_class", "w_key", "v_key", "yes"])
def pass_two_kernel(
    w_ptr, w_scale_ptr, w_noise_ptr, w_key,
    v_ptr, v_scale_ptr, v_noise_ptr, v_key,
    rows_ptr, listed, owed_ptr, scaled_ptr, position_ptr, log_share_ptr, target_ptr, weight_ptr, skipped_ptr,
    unit_ptr, gradient_ptr, inverse_ptr, radial_ptr,
    count, batch, first_class, lr, momentum, weight_decay, most_turn, threshold, floor, yes,
    D: tl.constexpr, STRIDE: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_B: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_R: tl.constexpr,
    FORMAT: tl.constexpr, HAS_MOMENTUM: tl.constexpr, OWED: tl.constexpr, FILTER: tl.constexpr,
    PRECISION: tl.constexpr, EMULATE: tl.constexpr,
):  # fmt: skip
    """One SGD step of ``count`` active rows, in place; nothing where ``skipped_ptr`` (int32) holds 1.

    Over the rows of all micro-batches, padded to a multiple of BLOCK_B: scaled_ptr: s * e, (batch, BLOCK_D),
    operand; position_ptr: the target's place among the active rows, int32; log_share_ptr: log q - log S, fp32, -inf
    in the padding; target_ptr: -q * slope; weight_ptr: d(final loss) / d(loss of the row), both fp32. FILTER: logits
    above ``threshold`` have left the sum. yes: 1. Scratch memory for each program: unit_ptr (BLOCK_T, BLOCK_D)
    operand, gradient_ptr (BLOCK_D, BLOCK_T), inverse_ptr (BLOCK_T,), radial_ptr (BLOCK_T,) fp32.
    """
    if tl.load(skipped_ptr) != 0:
        return
    program = tl.program_id(0)
    offset_T, offset_B, offset_R = tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_B), tl.arange(0, BLOCK_R)
    column_D = tl.arange(0, BLOCK_D)
    # This program's part of the scratch memory, which stays in L2.
    unit_ptr += program.to(tl.int64) * BLOCK_T * BLOCK_D
    gradient_ptr += program.to(tl.int64) * BLOCK_T * BLOCK_D
    inverse_ptr += program * BLOCK_T
    radial_ptr += program * BLOCK_T

    for tile in tl.range(program, tl.cdiv(count, BLOCK_T), tl.num_programs(0)):
        for first in tl.range(0, BLOCK_T, BLOCK_R):
            position_R = tile * BLOCK_T + first + offset_R
            inside_R = position_R < count
            row_R = rows_at(position_R, inside_R, rows_ptr, listed)
            w_RD, _ = read_rows(
                w_ptr, w_scale_ptr, v_ptr, v_scale_ptr, owed_ptr, position_R, row_R, inside_R,
                D, STRIDE, BLOCK_D, FORMAT, HAS_MOMENTUM, OWED,
            )  # fmt: skip
            inverse_R = inverse_norms(w_RD, floor)
            unit_RD = as_operand(w_RD * inverse_R[:, None], PRECISION, EMULATE)
            tl.store(unit_ptr + (first + offset_R)[:, None] * BLOCK_D + column_D[None, :], unit_RD)
            tl.store(inverse_ptr + first + offset_R, inverse_R)
        tl.debug_barrier()

        unit_TD = tl.load(unit_ptr + offset_T[:, None] * BLOCK_D + column_D[None, :])
        position_T = tile * BLOCK_T + offset_T
        gradient_DT = tl.zeros((BLOCK_D, BLOCK_T), tl.float32)
        radial_BT = tl.zeros((BLOCK_B, BLOCK_T), tl.float32)
        for begin in tl.range(0, batch, BLOCK_B):
            row_B = begin + offset_B
            scaled_BD = tl.load(scaled_ptr + row_B[:, None] * BLOCK_D + column_D[None, :])
            share_B = tl.load(log_share_ptr + row_B)
            target_B = tl.load(target_ptr + row_B)
            weight_B = tl.load(weight_ptr + row_B)
            target_at_B = tl.load(position_ptr + row_B)
            slope_BT = tl.zeros((BLOCK_B, BLOCK_T), tl.float32)
            if yes != 0:
                logits_BT = product(scaled_BD, tl.trans(unit_TD), slope_BT, PRECISION)
                slope_BT = tl.exp2((logits_BT + share_B[:, None]) * LOG2_E)
                if FILTER:
                    slope_BT = tl.where(logits_BT > threshold, 0.0, slope_BT)
                slope_BT = tl.where(position_T[None, :] == target_at_B[:, None], target_B[:, None], slope_BT)
                slope_BT *= weight_B[:, None]
                radial_BT += slope_BT * logits_BT
            gradient_DT = product(tl.trans(scaled_BD), as_operand(slope_BT, PRECISION, EMULATE), gradient_DT, PRECISION)
        tl.store(gradient_ptr + column_D[:, None] * BLOCK_T + offset_T[None, :], gradient_DT)
        tl.store(radial_ptr + offset_T, tl.sum(radial_BT, axis=0))
        tl.debug_barrier()

        for first in tl.range(0, BLOCK_T, BLOCK_R):
            position_R = tile * BLOCK_T + first + offset_R
            inside_R = position_R < count
            row_R = rows_at(position_R, inside_R, rows_ptr, listed)
            inverse_R = tl.load(inverse_ptr + first + offset_R)
            along_R = -tl.load(radial_ptr + first + offset_R) * inverse_R * inverse_R  # normalisation
            change_RD = tl.load(gradient_ptr + (first + offset_R)[:, None] + column_D[None, :] * BLOCK_T)
            step_rows(
                w_ptr, w_scale_ptr, w_noise_ptr, w_key, v_ptr, v_scale_ptr, v_noise_ptr, v_key, owed_ptr,
                position_R, row_R, inside_R, inverse_R, along_R, change_RD, first_class,
                lr, momentum, weight_decay, most_turn, D, STRIDE, BLOCK_D, FORMAT, HAS_MOMENTUM, OWED,
            )  # fmt: skip
        tl.debug_barrier()


@triton.jit
def step_rows(
    w_ptr, w_scale_ptr, w_noise_ptr, w_key, v_ptr, v_scale_ptr, v_noise_ptr, v_key, owed_ptr,
    position_R, row_R, inside_R, inverse_R, along_R, change_RD, first_class, lr, momentum, weight_decay, most_turn,
    D: tl.constexpr, STRIDE: tl.constexpr, BLOCK_D: tl.constexpr,
    FORMAT: tl.constexpr, HAS_MOMENTUM: tl.constexpr, OWED: tl.constexpr,
):  # fmt: skip
    """The step of whole rows: change_RD is their gradient times |w|, without what normalisation takes along w."""
    w_RD, v_RD = read_rows(
        w_ptr, w_scale_ptr, v_ptr, v_scale_ptr, owed_ptr, position_R, row_R, inside_R,
        D, STRIDE, BLOCK_D, FORMAT, HAS_MOMENTUM, OWED,
    )  # fmt: skip
    change_RD = change_RD * inverse_R[:, None] + along_R[:, None] * w_RD
    if HAS_MOMENTUM:
        v_RD = change_RD + (weight_decay * w_RD + momentum * v_RD)
        w_RD -= lr * v_RD
        store_rows(
            v_ptr, v_scale_ptr, row_R, inside_R, v_RD, first_class, v_key, v_noise_ptr, D, STRIDE, BLOCK_D, FORMAT
        )  # fmt: skip
    else:
        turn_R = lr * tl.sqrt_rn(tl.sum(change_RD * change_RD, axis=1)) * inverse_R
        lr_R = lr / (1.0 + turn_R / most_turn)
        w_RD = (1.0 - lr * weight_decay) * w_RD - lr_R[:, None] * change_RD
    store_rows(
        w_ptr, w_scale_ptr, row_R, inside_R, w_RD, first_class, w_key, w_noise_ptr, D, STRIDE, BLOCK_D, FORMAT
    )  # fmt: skip
