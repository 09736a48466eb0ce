"""The keyed permutation of :class:`megaclass.parallel.seeding.KeyedPermutation`, each element in a register.

Cycle walking is a loop of the kernel: no host sync, and no pass over memory per turn.

Shapes: N = queried elements, all padded to a block.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from megaclass.heads.kernels.launch import on_device, signed
from megaclass.heads.kernels.rows import mix32
from megaclass.heads.sampling import TorchWalker
from megaclass.parallel.seeding import ROUNDS, KeyedPermutation

BLOCK_N = 1024

assert ROUNDS == 6, "the kernels spell out six rounds"


@triton.jit
def _shift(source_N, key, modulus):
    """A keyed hash of ``source`` (int64 below 2 ** 32), reduced to ``range(modulus)``."""
    hash_N = mix32(source_N.to(tl.uint32), key.to(tl.uint32, bitcast=True))
    return (hash_N.to(tl.int64) * modulus) >> 32


@triton.jit
def _forward_pair(left_N, right_N, left_size, right_size, key_0, key_1):
    left_N = left_N + _shift(right_N, key_0, left_size)
    left_N = tl.where(left_N >= left_size, left_N - left_size, left_N)
    right_N = right_N + _shift(left_N, key_1, right_size)
    return left_N, tl.where(right_N >= right_size, right_N - right_size, right_N)


@triton.jit
def _inverse_pair(left_N, right_N, left_size, right_size, key_0, key_1):
    right_N = right_N - _shift(left_N, key_1, right_size)
    right_N = tl.where(right_N < 0, right_N + right_size, right_N)
    left_N = left_N - _shift(right_N, key_0, left_size)
    return tl.where(left_N < 0, left_N + left_size, left_N), right_N


@triton.jit
def _once(x_N, left_size, right_size, k0, k1, k2, k3, k4, k5, INVERSE: tl.constexpr):
    left_N = x_N // right_size
    right_N = x_N - left_N * right_size
    if INVERSE:
        left_N, right_N = _inverse_pair(left_N, right_N, left_size, right_size, k4, k5)
        left_N, right_N = _inverse_pair(left_N, right_N, left_size, right_size, k2, k3)
        left_N, right_N = _inverse_pair(left_N, right_N, left_size, right_size, k0, k1)
    else:
        left_N, right_N = _forward_pair(left_N, right_N, left_size, right_size, k0, k1)
        left_N, right_N = _forward_pair(left_N, right_N, left_size, right_size, k2, k3)
        left_N, right_N = _forward_pair(left_N, right_N, left_size, right_size, k4, k5)
    return left_N * right_size + right_N


@triton.jit
def _walk(x_N, inside_N, n, left_size, right_size, k0, k1, k2, k3, k4, k5, INVERSE: tl.constexpr):
    y_N = _once(x_N, left_size, right_size, k0, k1, k2, k3, k4, k5, INVERSE)
    while tl.max((inside_N & (y_N >= n)).to(tl.int32), axis=0) != 0:
        again_N = _once(y_N, left_size, right_size, k0, k1, k2, k3, k4, k5, INVERSE)
        y_N = tl.where(y_N >= n, again_N, y_N)
    return y_N


_NUMBERS = ["n", "left_size", "right_size", "k0", "k1", "k2", "k3", "k4", "k5"]


@triton.jit(do_not_specialize=["start", "stop", "limit", *_NUMBERS])
def _mark_kernel(
    mark_ptr, window_ptr, limit, start, stop,
    n, left_size, right_size, k0, k1, k2, k3, k4, k5, BLOCK: tl.constexpr,
):  # fmt: skip
    place_N = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside_N = (place_N < tl.load(window_ptr)) & (place_N < limit)
    place_N = tl.where(inside_N, place_N, 0)
    element_N = _walk(place_N, inside_N, n, left_size, right_size, k0, k1, k2, k3, k4, k5, False)
    ours_N = inside_N & (element_N >= start) & (element_N < stop)
    tl.store(mark_ptr + (element_N - start), tl.full((BLOCK,), 1, tl.int8), mask=ours_N)


@triton.jit(do_not_specialize=["count", *_NUMBERS])
def _inverse_kernel(
    element_ptr, place_ptr, count,
    n, left_size, right_size, k0, k1, k2, k3, k4, k5, BLOCK: tl.constexpr,
):  # fmt: skip
    at_N = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside_N = at_N < count
    element_N = tl.load(element_ptr + at_N, mask=inside_N, other=0)
    place_N = _walk(element_N, inside_N, n, left_size, right_size, k0, k1, k2, k3, k4, k5, True)
    tl.store(place_ptr + at_N, place_N, mask=inside_N)


class TritonWalker(TorchWalker):
    """The same answers without a host sync."""

    def inverse(self, permutation: KeyedPermutation, element_N: Tensor) -> Tensor:
        place_N = torch.empty_like(element_N)
        count, numbers = len(element_N), _numbers(permutation)
        with on_device(element_N.device):
            _inverse_kernel[(triton.cdiv(count, BLOCK_N),)](element_N, place_N, count, *numbers, BLOCK=BLOCK_N)
        return place_N

    def mark(self, permutation: KeyedPermutation, window: Tensor, limit: int, start: int, mark: Tensor) -> None:
        numbers, stop = _numbers(permutation), start + len(mark) - 1
        with on_device(mark.device):
            _mark_kernel[(triton.cdiv(limit, BLOCK_N),)](
                mark.view(torch.int8), window, limit, start, stop, *numbers, BLOCK=BLOCK_N
            )


def _numbers(permutation: KeyedPermutation) -> list[int]:
    """What the kernels take of a permutation."""
    return [permutation.n, permutation.left_size, permutation.right_size, *map(signed, permutation.keys)]
