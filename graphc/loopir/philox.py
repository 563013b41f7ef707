"""Counter-based random bits: Philox4x32-10, and how its words are numbered. In numpy, and the constants for all others.

    words of the stream of a key:   0 1 2 3 | 4 5 6 7 | ...      word n is word n % 4 of block n // 4
    block b:                        philox4x32(counter=(b mod 2**32, b div 2**32, 0, 0), key=(low, high 32 bits))

A word depends on its key and its number alone, so that it can be computed anywhere, in any order, as often as wanted.

Source: J. Salmon, M. Moraes, R. Dror, D. Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
"""What the two halves of the key grow by from round to round."""

ROUNDS = 10
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def philox4x32(counter: tuple[Array, Array, Array, Array], key: tuple[Array, Array]) -> tuple[Array, ...]:
    """The four words of one block per element.

    Args:
        counter: four arrays of u32 numbers.
        key: two arrays of u32 numbers.

    Returns:
        Four arrays of uint32.
    """
    c0, c1, c2, c3 = (np.asarray(part).astype(np.uint64) for part in counter)
    k0, k1 = (np.asarray(part).astype(np.uint64) for part in key)
    for _ in range(ROUNDS):
        first, second = c0 * np.uint64(MULTIPLIERS[0]), c2 * np.uint64(MULTIPLIERS[1])
        c0, c1 = (second >> _HALF) ^ c1 ^ k0, second & _LOW
        c2, c3 = (first >> _HALF) ^ c3 ^ k1, first & _LOW
        k0, k1 = (k0 + np.uint64(KEY_STEPS[0])) & _LOW, (k1 + np.uint64(KEY_STEPS[1])) & _LOW
    return tuple(part.astype(np.uint32) for part in (c0, c1, c2, c3))


def philox_words(key: Array, number: Array) -> Array:
    """Word `number` of the stream of `key`.

    Args:
        key: int64, any value.
        number: int64, not negative, of a shape that broadcasts with the key's.

    Returns:
        uint32.
    """
    keys, numbers = np.broadcast_arrays(np.asarray(key, np.int64), np.asarray(number, np.int64))
    bits, block = keys.astype(np.uint64), (numbers >> np.int64(2)).astype(np.uint64)
    zero = np.zeros_like(block)
    words = philox4x32((block & _LOW, block >> _HALF, zero, zero), (bits & _LOW, bits >> _HALF))
    return np.choose(numbers & np.int64(3), words)
