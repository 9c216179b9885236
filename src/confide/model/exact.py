"""Products of matrices that round nothing, so that every order of summation gives the same bits.

A library for linear algebra sums the products of one row differently at different places and batch sizes, and a record
would move the last digits of the others' features. Numbers on a grid of 2^-a times numbers on a grid of 2^-b are whole
multiples of 2^-(a + b); while every partial sum stays below 2^(53 - a - b), float64 holds it exactly.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]

#: Bits of a float64's significand.
DIGITS = 53


def on_grid(values: Matrix, bits: int) -> Matrix:
    """Return the multiples of 2^-bits nearest to `values`."""
    return np.rint(values * 2.0**bits) * 2.0**-bits


def exact_product(a: Matrix, a_bits: int, b: Matrix, b_bits: int) -> Matrix:
    """Return `a` @ `b` rounded to two grids before and not at all within; shape (n, m) from (n, k) and (k, m).

    The caller sees to it that no partial sum reaches 2^(53 - a_bits - b_bits).

    Args:
        a: finite, one row for each record.
        a_bits, b_bits: of the grids 2^-bits.
        b: on its grid already.
    """
    return on_grid(a, a_bits) @ b
