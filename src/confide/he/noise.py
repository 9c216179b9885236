"""How large the errors of CKKS are, in a slot, by operation.

    N     ring degree
    l     primes of a level
    q, p  the largest data prime, the special prime

Errors of one operation are close to normal over the encryption's randomness; a standard deviation estimates, and
`TAIL` of them bound (beyond that with probability below 2^-64, under the usual assumption of independence).

Paper: the noise estimates of CKKS (ePrint 2016/421, section 3; 2018/931) with SEAL's distributions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from confide.he.parameters import ERROR_VARIANCE

#: Sums of many small independent terms are bounded by this many standard deviations.
TAIL = 12.0


def encoding(degree: int) -> float:
    """Return the deviation in a slot of rounding N coefficients to integers."""
    return math.sqrt(degree / 12)


def fresh(degree: int) -> float:
    """Return the deviation in a slot of a symmetric encryption and its encoding."""
    return math.sqrt(degree * (ERROR_VARIANCE + 1 / 12))


def rounding(degree: int) -> float:
    """Return the deviation in a slot after a division by a prime: of two polynomials, one times the ternary secret."""
    return math.sqrt(degree / 12 * (1 + 2 * degree / 3))


def switching(degree: int, primes: Sequence[int], special: int) -> float:
    """Return the deviation in a slot after a key switch at the level of `primes`.

    Each digit is uniform in [0, prime), and its product with a key's error is divided by the special prime.
    """
    digits = math.sqrt(sum((prime / special) ** 2 for prime in primes) / 3)
    return digits * math.sqrt(ERROR_VARIANCE) * degree + rounding(degree)


def zero(degree: int, special: int) -> float:
    """Return the deviation in a slot of a public-key encryption of zero, made modulo q·p and divided by p."""
    return math.sqrt(ERROR_VARIANCE * degree * (1 + 4 * degree / 3)) / special + rounding(degree)
