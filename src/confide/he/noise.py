"""How large the errors of CKKS are in a slot, by operation: what is expected of them, and what bounds them.

    N     ring degree                            zeta   exp(i pi / N); a slot is a value at an odd power of it
    q_i   primes of a level                      p      the special prime
    e     an error of a key: N coefficients of variance 10.5, drawn once for each key
    s     the secret: N coefficients of variance 2/3

Deviations (`fresh`, `switching` ...) are root mean squares over slots and randomness: they estimate. `TAIL` or
`PRODUCT_TAIL` of them bound.

**Sums.** All that SEAL draws, and the rounding of a uniform number, is sub-Gaussian with its own variance for a proxy
(differences of bits, ternary and uniform numbers; Hoeffding's lemma and a comparison of power series). In a slot, real
and imaginary part of a sum z of N such terms are uncorrelated and of equal variance, since odd powers of zeta squared
sum to 0; so with g a standard normal vector in the plane, E exp(λ |z|² / σ²) = E exp(√(2λ) <g, z> / σ) is at most
1 / (1 - λ), 0 <= λ < 1, σ the deviation of z. Markov's inequality at λ = 1 - 1/t² gives

    Pr[|z| > t σ] <= e t² exp(-t²),  below 2^-73 for t = TAIL.

**Products.** Rounding errors meet the secret, digits meet a key's error. Given the second factor w, their sum is as
above with a deviation Y σ, E exp(λ Y²) at most 1 / (1 - λ): Y² is a mean of values |w|² and 1. Since 2 Y |z| is at most
Y² + |z|²,

    Pr[Y |z| > c σ] <= (e c)² exp(-2 c),  below 2^-73 for c = PRODUCT_TAIL.

**Errors that depend on each other.** Both bounds come from exponential moments, which are convex: for a sum of errors
with absolute weights, the same t and c hold for the sum of their deviations, whatever depends on what. So bounds that
are added linearly hold for all that happens under one key; those added in squares take independence.

What is assumed: digits and rounding errors are uniform and independent of the key, as those of encryptions look.

Paper: Hsu, Kakade, Zhang, "A tail inequality for quadratic forms of subgaussian random vectors" (2012), for moments;
the noise of CKKS (ePrint 2016/421, section 3; 2018/931) with SEAL's distributions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from confide.he.parameters import ERROR_VARIANCE

#: Deviations that bound a sum of independent terms in a slot; trees count at it, too.
TAIL = 7.5

#: Deviations that bound a product of two such sums.
PRODUCT_TAIL = 30.0


# --- what is expected -------------------------------------------------------------------------------------------------


def encoding(degree: int) -> float:
    """Return the deviation in a slot of rounding N coefficients to integers."""
    return math.sqrt(degree / 12)


def fresh(degree: int) -> float:
    """Return the deviation in a slot of a symmetric encryption and its encoding."""
    return math.sqrt(degree * (ERROR_VARIANCE + 1 / 12))


def rounding(degree: int) -> float:
    """Return the deviation in a slot after a division by a prime: of two polynomials, one times the ternary secret."""
    return math.sqrt(degree / 12 * (1 + 2 * degree / 3))


def switching(degree: int, primes: Sequence[int | float], special: float) -> float:
    """Return the deviation after a key switch at the level of `primes`, over all slots.

    Each digit is uniform in [0, prime), and its product with a key's error is divided by the special prime. A quarter
    of its mean square is its own, three quarters are that of the digit's mean, which a few slots have (`mean`).
    """
    digits = _digits(primes, special) / math.sqrt(3)
    return digits * math.sqrt(ERROR_VARIANCE) * degree + rounding(degree)


def zero(degree: int, special: float) -> float:
    """Return the deviation in a slot of a public-key encryption of zero, made modulo q·p and divided by p."""
    return math.sqrt(ERROR_VARIANCE * degree * (1 + 4 * degree / 3)) / special + rounding(degree)


def mean(degree: int, primes: Sequence[int | float], special: float) -> float:
    """Return the deviation of what the digits' means add in the worst slot of a key switch: over keys, not queries.

    A digit below q has the mean m(X) = q/2 · (1 + X + ... + X^(N-1)), after a hoisted rotation that of its image. At
    zeta^j, j odd, that is q / (1 - zeta^j), of absolute value q / 2 sin(pi j / 2N): at most about q N / pi, √N times
    the rest of the digit. It meets e, so Σ q_i / p · e_i in that slot is one sum of terms under the key, and whatever
    is switched with this key errs by the same number.
    """
    return _digits(primes, special) * math.sqrt(ERROR_VARIANCE * degree) / (2 * math.sin(math.pi / (2 * degree)))


def _digits(primes: Sequence[int | float], special: float) -> float:
    return math.sqrt(sum((prime / special) ** 2 for prime in primes))


# --- what bounds it ---------------------------------------------------------------------------------------------------


def encoding_bound(degree: int) -> float:
    """Return a bound of the error in a slot of rounding N coefficients to integers."""
    return TAIL * encoding(degree)


def fresh_bound(degree: int) -> float:
    """Return a bound of the error in a slot of a symmetric encryption and its encoding."""
    return TAIL * fresh(degree)


def rounding_bound(degree: int) -> float:
    """Return a bound of the error in a slot after a division by a prime."""
    return PRODUCT_TAIL * rounding(degree)


def switching_bound(degree: int, primes: Sequence[int | float], special: float, *, slots: int = 1) -> float:
    """Return a bound of the error in any slot after a key switch at the level of `primes`.

    The digits' means are a sum over the key's randomness; beside them, centred digits meet the key's errors and
    rounding meets the secret, both products, which are independent given the key.

    Args:
        degree: N.
        primes: of the level.
        special: p.
        slots: of the sum of the errors in so many different slots instead, no two of them conjugates. That is a sum of
            as many terms, since values at different odd powers of zeta are orthogonal in the coefficients; and the
            squares of a mean's values in N/2 such slots sum to N² q² / 8, half of N times those of its coefficients.
    """
    digits = _digits(primes, special) * math.sqrt(ERROR_VARIANCE)
    means = min(mean(degree, primes, special) * math.sqrt(slots), digits * degree * math.sqrt(degree / 8))
    return TAIL * means + PRODUCT_TAIL * math.sqrt(slots) * math.hypot(
        digits * degree / math.sqrt(12), rounding(degree)
    )


def zero_bound(degree: int, special: float) -> float:
    """Return a bound of the error in a slot of a public-key encryption of zero."""
    return PRODUCT_TAIL * zero(degree, special)
