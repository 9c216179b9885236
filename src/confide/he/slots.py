"""From slots to the coefficients of a plaintext, in numpy: what CKKS encodes with, for engines without SEAL's encoder.

    N    ring degree        zeta    exp(i pi / N)
    z_j  slot j < N/2, the value of the polynomial at zeta^(3^j); at the conjugate root it is the conjugate

    m_k = (2 / N) Re sum_j z_j zeta^(-k 3^j)

which is one Fourier transform of length N over the odd powers of zeta. Coefficients are rounded to integers; those of
2^62 and more are rounded to multiples of a power of two, below the last bit of a float64.

Paper: CKKS (ePrint 2016/421), section 3.2; slots in SEAL's order.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from confide.he.arithmetic import Slots

Integers = NDArray[np.int64]

_MOST_BITS = 62


def coefficients(slots: Slots, scale: float, degree: int) -> tuple[Integers, int]:
    """Return (c, s): the coefficients are c · 2^s.

    Args:
        slots: float64 or complex128, shape (N/2,), or one number in all.
        scale: what 1 is represented by.
        degree: N.

    Raises:
        OverflowError: values that are not finite.
    """
    if not np.isfinite(slots).all():
        raise OverflowError("Expected finite values")
    if isinstance(slots, float):
        found = np.zeros(degree)
        found[0] = slots * scale
    else:
        places, turns = _tables(degree)
        values = np.zeros(degree, np.complex128)
        values[places] = slots
        found = (np.fft.fft(values) * turns).real * (scale * 2 / degree)
    largest = float(np.abs(found).max())
    shift = max(0, math.frexp(largest)[1] - _MOST_BITS)
    return np.rint(np.ldexp(found, -shift)).astype(np.int64), shift


@lru_cache(maxsize=8)
def _tables(degree: int) -> tuple[Integers, NDArray[np.complex128]]:
    """Return for each slot t with 3^j = 2 t + 1 modulo 2N, shape (N/2,); and zeta^-k, shape (N,)."""
    power, places = 1, np.empty(degree // 2, np.int64)
    for slot in range(degree // 2):
        places[slot] = power >> 1
        power = power * 3 % (2 * degree)
    return places, np.exp(-1j * np.pi * np.arange(degree) / degree)
