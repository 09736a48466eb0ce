"""Rows of a table in and out, stochastic rounding, products at a precision; and the kernel that makes unit
rows.

Tables are read and written as fp32, as bf16 through its 16 bits (an int16 view: no conversion depends on the
compiler), or as 8 bits with a scale a row. Writing repeats :mod:`megaclass.heads.storage` bit by bit.

Triton's interpreter, which runs the kernels on a CPU for tests, multiplies bf16 wrongly: under ``EMULATE`` operands are
rounded to it and stay fp32.

Shapes: T = rows of a tile, D = embedding columns, BLOCK_D = D rounded up to a power of two, masked. w: centres, v:
momentum.
"""

import triton
import triton.language as tl

INT8_MOST = tl.constexpr(127.0)
INT8_LEAST = tl.constexpr(48.0)
LOG2_E = tl.constexpr(1.4426950408889634)


# -- products -----------------------------------------------------------------------------------------


@triton.jit
def as_operand(values, PRECISION: tl.constexpr, EMULATE: tl.constexpr):
    """fp32 values as an operand of :func:`product`, rounded to nearest."""
    if PRECISION == "bf16" and EMULATE:
        bits = values.to(tl.int32, bitcast=True)
        values = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -65536).to(tl.float32, bitcast=True)
    elif PRECISION == "bf16":
        values = values.to(tl.bfloat16)
    return values


@triton.jit
def product(a, b, accumulator, PRECISION: tl.constexpr):
    """``accumulator + a @ b``, fp32."""
    return tl.dot(a, b, accumulator, input_precision="tf32" if PRECISION == "tf32" else "ieee")


# -- which rows ---------------------------------------------------------------------------------------


@triton.jit
def rows_at(position_T, inside_T, rows_ptr, listed):
    """The row of the table for each position among the active rows, int64.

    Positions below ``listed`` are looked up in rows_ptr (int64), others are the row itself: ``listed`` is the number
    of active rows, or 0 where all of the shard take part. A number and not a choice of the compiler: each kernel is
    compiled once.
    """
    position_T = position_T.to(tl.int64)
    listed_T = position_T < listed
    row_T = tl.load(rows_ptr + position_T, mask=inside_T & listed_T, other=0)
    return tl.where(listed_T, row_T, position_T)


# -- reading ------------------------------------------------------------------------------------------


@triton.jit
def load_rows(
    data_ptr, scale_ptr, row_T, inside_T,
    D, STRIDE: tl.constexpr, BLOCK_D: tl.constexpr, FORMAT: tl.constexpr,
):  # fmt: skip
    """Rows of a table as fp32, (T, BLOCK_D), 0 outside."""
    column_D = tl.arange(0, BLOCK_D)
    mask_TD = inside_T[:, None] & (column_D < D)[None, :]
    raw_TD = tl.load(data_ptr + row_T[:, None] * STRIDE + column_D[None, :], mask=mask_TD, other=0)
    if FORMAT == "fp32":
        values_TD = raw_TD
    elif FORMAT == "bf16":
        values_TD = (raw_TD.to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        scale_T = tl.load(scale_ptr + row_T, mask=inside_T, other=1.0)
        values_TD = raw_TD.to(tl.float32) * scale_T[:, None]
    return values_TD


@triton.jit
def read_rows(
    w_ptr, w_scale_ptr, v_ptr, v_scale_ptr, owed_ptr, position_T, row_T, inside_T,
    D, STRIDE: tl.constexpr, BLOCK_D: tl.constexpr,
    FORMAT: tl.constexpr, HAS_MOMENTUM: tl.constexpr, OWED: tl.constexpr,
):  # fmt: skip
    """Centres and momentum, up to date; without momentum, centres stand in for it.

    owed_ptr: (active rows, 4) fp32, what they owe for steps that left them out: ``(v, w) <- M (v, w)``, M row-major.
    Without momentum ``w`` is multiplied by M[1, 1]. What a caller does not use is not read.
    """
    w_TD = load_rows(w_ptr, w_scale_ptr, row_T, inside_T, D, STRIDE, BLOCK_D, FORMAT)
    v_TD = w_TD
    if HAS_MOMENTUM:
        v_TD = load_rows(v_ptr, v_scale_ptr, row_T, inside_T, D, STRIDE, BLOCK_D, FORMAT)
    if OWED:
        owed_at = owed_ptr + position_T.to(tl.int64) * 4
        new_TD = w_TD * tl.load(owed_at + 3, mask=inside_T, other=1.0)[:, None]
        if HAS_MOMENTUM:
            new_TD = v_TD * tl.load(owed_at + 2, mask=inside_T, other=0.0)[:, None] + new_TD
            v_TD = (
                v_TD * tl.load(owed_at, mask=inside_T, other=1.0)[:, None]
                + w_TD * tl.load(owed_at + 1, mask=inside_T, other=0.0)[:, None]
            )
        w_TD = new_TD
    return w_TD, v_TD


@triton.jit
def inverse_norms(rows_TD, floor):
    """1 / |row|, as :func:`megaclass.heads.step.inverse_norms`."""
    norm_T = tl.sqrt_rn(tl.sum(rows_TD * rows_TD, axis=1))
    return tl.div_rn(1.0, tl.maximum(norm_T, floor))


# -- writing ------------------------------------------------------------------------------------------


@triton.jit
def mix32(x, key):
    """:func:`megaclass.parallel.seeding.mix32` of uint32 values."""
    x = x ^ key
    x = (x ^ (x >> 16)) * 0x85EBCA6B
    x = (x ^ (x >> 13)) * 0xC2B2AE35
    return x ^ (x >> 16)


@triton.jit
def settled_scale(peak_T, scale_T):
    """:func:`megaclass.heads.storage.settled_scale`: the sticky power of two."""
    keep_T = (peak_T <= scale_T * INT8_MOST) & (peak_T >= scale_T * INT8_LEAST)
    bits_T = (peak_T.to(tl.int32, bitcast=True) + 0x1FFFF) & 0x7F800000  # as storage._smallest_scale
    bits_T = tl.maximum(bits_T - (6 << 23), 1 << 23)
    settled_T = tl.where(keep_T, scale_T, bits_T.to(tl.float32, bitcast=True))
    return tl.where(peak_T < float("inf"), settled_T, float("nan"))  # a row that diverged stays seen


@triton.jit
def store_rows(
    data_ptr, scale_ptr, row_T, inside_T, values_TD, first_class, key, noise_ptr,
    D, STRIDE: tl.constexpr, BLOCK_D: tl.constexpr, FORMAT: tl.constexpr,
):  # fmt: skip
    """Store fp32 rows; bf16 and 8 bits by stochastic rounding with the numbers of a ``storage.Rounding``.

    noise_ptr: its ``column_D`` (int32). key: its key, as the int32 of the same bits.
    """
    column_D = tl.arange(0, BLOCK_D)
    mask_TD = inside_T[:, None] & (column_D < D)[None, :]
    place_TD = row_T[:, None] * STRIDE + column_D[None, :]
    if FORMAT == "fp32":
        tl.store(data_ptr + place_TD, values_TD, mask=mask_TD)
    else:
        class_T = (row_T + first_class).to(tl.uint32)
        summand_T = mix32(class_T, key.to(tl.uint32, bitcast=True)).to(tl.int32, bitcast=True)
        noise_D = tl.load(noise_ptr + column_D, mask=column_D < D, other=0)
        noise_TD = (noise_D[None, :] + summand_T[:, None]) & 0xFFFF
        if FORMAT == "bf16":
            # The carry decides; into a NaN of all ones it would make a zero.
            noise_TD = tl.where(values_TD == values_TD, noise_TD, 0)
            bits_TD = values_TD.to(tl.int32, bitcast=True) + noise_TD
            tl.store(data_ptr + place_TD, (bits_TD >> 16).to(tl.int16), mask=mask_TD)
        else:
            scale_T = tl.load(scale_ptr + row_T, mask=inside_T, other=1.0)
            # A maximum may drop a NaN: an infinity stands in for it.
            size_TD = tl.where(values_TD == values_TD, tl.abs(values_TD), float("inf"))
            scale_T = settled_scale(tl.max(size_TD, axis=1), scale_T)
            steps_TD = values_TD * tl.div_rn(1.0, scale_T)[:, None] + noise_TD.to(tl.float32) * (1.0 / 65536.0)
            steps_TD = tl.minimum(tl.maximum(tl.floor(steps_TD), -INT8_MOST), INT8_MOST)
            tl.store(data_ptr + place_TD, steps_TD.to(tl.int8), mask=mask_TD)
            tl.store(scale_ptr + row_T, scale_T, mask=inside_T)


# -- the kernel before pass 1 -------------------------------------------------------------------------


@triton.jit(do_not_specialize=["start", "count", "listed"])
def unit_kernel(
    w_ptr, w_scale_ptr, v_ptr, v_scale_ptr, rows_ptr, listed, owed_ptr, unit_ptr, start, count, floor,
    D: tl.constexpr, STRIDE: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr,
    FORMAT: tl.constexpr, HAS_MOMENTUM: tl.constexpr, OWED: tl.constexpr,
    PRECISION: tl.constexpr, EMULATE: tl.constexpr,
):  # fmt: skip
    """``unit[i] = w / |w|`` of the active rows ``start + i`` for i < count, and 0 to the end of the last block.

    The keys and values of pass 1, in the type of its operands, once for a chunk of rows that the L2 cache holds: pass 1
    reads each row once for every block of the batch, and from here on every storage costs the same.
    unit_ptr: (rows, BLOCK_D) with a multiple of BLOCK_T rows. One program a block of BLOCK_T rows.
    """
    offset_T = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    column_D = tl.arange(0, BLOCK_D)
    inside_T = offset_T < count
    row_T = rows_at(start + offset_T, inside_T, rows_ptr, listed)
    w_TD, _ = read_rows(
        w_ptr, w_scale_ptr, v_ptr, v_scale_ptr, owed_ptr, start + offset_T, row_T, inside_T,
        D, STRIDE, BLOCK_D, FORMAT, HAS_MOMENTUM, OWED,
    )  # fmt: skip
    unit_TD = as_operand(w_TD * inverse_norms(w_TD, floor)[:, None], PRECISION, EMULATE)
    tl.store(unit_ptr + offset_T.to(tl.int64)[:, None] * BLOCK_D + column_D[None, :], unit_TD)
