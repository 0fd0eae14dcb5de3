"""Counter-based randomness: a number is a function of (seed, stream, step) and of nothing else.

There is no generator state to keep, batch, share or restore: the same request draws the same
numbers in any batch, on any number of threads and after preemption.
"""

from __future__ import annotations

import os

_MASK32 = 0xFFFFFFFF
_MASK64 = 0xFFFFFFFFFFFFFFFF


def philox4x32(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, ...]:
    """Ten rounds of Philox4x32 (Salmon et al., SC'11): four 32-bit words of counter and key."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        left, right = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1 = (right >> 32) ^ c1 ^ k0, right & _MASK32
        c2, c3 = (left >> 32) ^ c3 ^ k1, left & _MASK32
        k0, k1 = (k0 + 0x9E3779B9) & _MASK32, (k1 + 0xBB67AE85) & _MASK32
    return c0, c1, c2, c3


def uniform(seed: int, stream: int, step: int) -> float:
    """A number in [0, 1) with 53 random bits.

    seed: any integer, taken modulo 2^64; stream: 0 <= stream < 2^32 (which completion of the
    request); step: 0 <= step < 2^64 (how many tokens it has already sampled).
    """
    key = seed & _MASK64
    counter = (step & _MASK32, (step >> 32) & _MASK32, stream & _MASK32, 0)
    high, low, _, _ = philox4x32(counter, (key & _MASK32, key >> 32))
    return float(((high << 32 | low) >> 11) * 2.0**-53)


def draw_seed() -> int:
    """A fresh 63-bit seed from the operating system."""
    return int.from_bytes(os.urandom(8), "little") >> 1
