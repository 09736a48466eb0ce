"""A keyed permutation of ``range(n)``: shuffling and sampling without a list.

The order of the samples in an epoch and the classes that Partial FC samples are both "the first k elements of a random
permutation". Evaluated one element at a time it costs no memory, restarts anywhere, and is the same on every rank.

It is the generalised Feistel network of Black and Rogaway, "Ciphers with arbitrary finite domains" (CT-RSA 2002,
section 5): a number below ``a * b`` is split into (left, right) and each round adds a keyed hash of one half to the
other. ``a * b`` is barely above n, and the few numbers that land at n or above walk on until they fall inside.

Shapes: N = number of queried elements.
"""

import hashlib
import math
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

ROUNDS = 6
# A few hundred numbers go through NumPy five times as fast as through PyTorch, whose calls cost more.
Array = TypeVar("Array", Tensor, np.ndarray)
_MASK32 = 0xFFFFFFFF


def derive_key(*parts: object) -> int:
    """A 63-bit key from any printable parts, stable across processes and Python versions."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def mix32(x_N: Array, key: int) -> Array:
    """A 32-bit hash (the finaliser of MurmurHash3) of int64 values below 2**32."""
    x_N = x_N ^ key
    x_N = ((x_N ^ (x_N >> 16)) * 0x85EBCA6B) & _MASK32
    x_N = ((x_N ^ (x_N >> 13)) * 0xC2B2AE35) & _MASK32
    return x_N ^ (x_N >> 16)


class KeyedPermutation:
    """The permutation of ``range(n)`` that ``key`` names.

    ``permutation(index_N)`` maps positions to elements, ``permutation.inverse(element_N)`` maps back.
    Both take and return int64 tensors on any device, or int64 arrays. n may be anything from 1 to 2**62.
    """

    def __init__(self, n: int, key: int) -> None:
        self.n = n
        self.left_size = math.isqrt(n - 1) + 1
        self.right_size = -(-n // self.left_size)
        self.keys = [derive_key(key, n, r) & _MASK32 for r in range(ROUNDS)]

    def _shift(self, source_N: Array, round_: int, modulus: int) -> Array:
        # The hash is reduced by multiply-and-shift: no division per element.
        return (mix32(source_N, self.keys[round_]) * modulus) >> 32

    def _forward_once(self, x_N: Array) -> Array:
        left, right = x_N // self.right_size, x_N % self.right_size
        for r in range(0, ROUNDS, 2):
            left = left + self._shift(right, r, self.left_size)
            left = _where(left >= self.left_size, left - self.left_size, left)
            right = right + self._shift(left, r + 1, self.right_size)
            right = _where(right >= self.right_size, right - self.right_size, right)
        return left * self.right_size + right

    def _inverse_once(self, y_N: Array) -> Array:
        left, right = y_N // self.right_size, y_N % self.right_size
        for r in range(ROUNDS - 2, -1, -2):
            right = right - self._shift(left, r + 1, self.right_size)
            right = _where(right < 0, right + self.right_size, right)
            left = left - self._shift(right, r, self.left_size)
            left = _where(left < 0, left + self.left_size, left)
        return left * self.right_size + right

    def _walk(self, step: Callable[[Array], Array], x_N: Array) -> Array:
        y_N = step(x_N)
        # Cycle walking. One host sync per turn on a device; a * b - n <= sqrt(n), so turns are few.
        while bool((outside_N := y_N >= self.n).any()):
            if isinstance(y_N, Tensor) and y_N.is_cuda:  # to select them would be one more
                y_N = torch.where(outside_N, step(y_N), y_N)
            else:
                y_N[outside_N] = step(y_N[outside_N])
        return y_N

    def __call__(self, index_N: Array) -> Array:
        return self._walk(self._forward_once, index_N)

    def inverse(self, element_N: Array) -> Array:
        return self._walk(self._inverse_once, element_N)


def _where(condition: Array, yes: Array, no: Array) -> Array:
    return torch.where(condition, yes, no) if isinstance(condition, Tensor) else np.where(condition, yes, no)
