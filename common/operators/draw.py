"""Random draws that come out the same on every platform and in every release of NumPy.

Only the raw words of the counter-based Philox generator are used: NumPy promises that stream, while it may
change what ``Generator`` makes of it.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray


def _generator(seed: int, purpose: str) -> np.random.Philox:
    # the purpose is half of the key, so that draws for different ends are independent at the same seed
    word = int.from_bytes(hashlib.sha256(purpose.encode()).digest()[:8], "little")
    return np.random.Philox(key=np.array([seed, word], dtype=np.uint64))


def random_bits(shape: tuple[int, ...], seed: int, purpose: str) -> NDArray[np.bool_]:
    """Independent fair coin throws; a longer first axis continues a shorter one."""
    count = int(np.prod(shape))
    words = _generator(seed, purpose).random_raw((count + 63) // 64).astype("<u8")
    bits = np.unpackbits(words.view(np.uint8), count=count, bitorder="little")
    return bits.astype(np.bool_).reshape(shape)


def random_order(count: int, seed: int, purpose: str) -> NDArray[np.intp]:
    """A random permutation of 0 ... count-1."""
    return np.argsort(_generator(seed, purpose).random_raw(count), kind="stable")


def weighted_choice(weights: NDArray[np.float64], count: int, seed: int, purpose: str) -> NDArray[np.intp]:
    """``count`` different indices, drawn one after the other with chances proportional to ``weights``.

    By exponential clocks (Efraimidis and Spirakis, 2006): the same law as sequential draws without
    replacement. Worked in logarithms, so that vanishing weights keep their order.
    """
    uniform = ((_generator(seed, purpose).random_raw(len(weights)) >> np.uint64(11)) + 0.5) * 2.0**-53
    with np.errstate(divide="ignore"):
        rings_at = np.log(-np.log(uniform)) - np.log(weights)
    return np.sort(np.argsort(rings_at, kind="stable")[:count])
