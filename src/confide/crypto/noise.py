"""Exact discrete Gaussian noise, drawn in bulk.

`discrete_gaussian` draws from N_Z(0, v), P(k) proportional to exp(-k^2 / 2v) over the integers with |k| <= K, where
K >= 12 sqrt(v). That cut is the only deviation from N_Z(0, v): its total variation is below 2 exp(-72) < 1.1e-31 per
draw (`TAIL`), and whoever accounts for the noise charges it to delta. Nothing else is approximate: floats only decide
the comparisons that they can decide for certain.

How: propose k uniformly in [-K, K], accept with probability exp(-k^2 / 2v), that is if U < exp(-k^2 / 2v) for a uniform
real U. The first 64 bits of U are compared in float64 under a proved error interval; where they lie inside it (about
one draw in 10^12) more bits of U are drawn and the comparison is made with as many digits as it takes.

Timing: the number of proposals until one is accepted is independent of the value accepted, and all arithmetic on
proposals is vectorised over blocks whose sizes do not depend on values. What remains is the rare exact comparison and
whatever the processor's own multiplication and exponential leak; draw noise before it is needed if that matters.

Why not Skellam noise, which is closed under addition? It needs Poisson variates of mean v/2, and exact ones of mean
10^8 and more are slow, while library ones decide by floats whose error grows with the mean. Being closed under addition
is not needed: a sum of h discrete Gaussians of deviation >= 3 is one discrete Gaussian of variance h v up to a factor
of exp(1e-37) in every probability (docs/protocols/dp-gradient.md, lemma 3), and its tails are as light as a Gaussian's,
so the accounting is that of the continuous Gaussian. Skellam's costs more on coarse grids.

Paper: Canonne, Kamath, Steinke (arXiv 2004.00010), definition 1 and section 5; we propose from the uniform law in place
of their discrete Laplace, because that vectorises. Kairouz, Liu, Steinke (arXiv 2102.06387), theorem 9 for the sum.
"""

from __future__ import annotations

import math
from decimal import Context, Decimal
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from confide.crypto.random import Randomness

#: Draws reach this many standard deviations to either side.
REACH = 12

#: Bounds both P(|N_Z(0, v)| > REACH sqrt(v)) and the total variation between a draw and N_Z(0, v), for every v.
TAIL = 2 * math.exp(-(REACH**2) / 2)

#: The largest standard deviation: 12 of them stay below 2^44, so that every product here is exact or bounded.
MAX_DEVIATION = 2.0**40

_BLOCK = 1 << 15  # proposals per block: their words and intermediates stay in the second-level cache
_WORDS = 1 << 64


def largest_draw(variance: float | Fraction) -> int:
    """Return K, the largest absolute value that a draw can have: the smallest integer above 12 sqrt(variance).

    Args:
        variance: the parameter v, 1 <= v <= 2^80.

    Raises:
        ValueError: `variance` is out of range.
    """
    if not 1 <= variance <= MAX_DEVIATION**2:
        raise ValueError(f"Expected variance={float(variance):.6g} between 1 and 2^80 grid steps squared")
    return math.isqrt(math.floor(REACH**2 * Fraction(variance))) + 1


def discrete_gaussian(variance: float | Fraction, count: int, rng: Randomness) -> NDArray[np.int64]:
    """Draw independent integers from the discrete Gaussian N_Z(0, variance), cut at 12 standard deviations.

    Args:
        variance: the parameter v, 1 <= v <= 2^80, taken at its exact value. The law's own variance equals v up to a
            relative 1e-6 at v = 1 and far less above.
        count: number of draws, >= 0.
        rng: the source of secret bytes.

    Returns:
        int64, shape (count,).

    Raises:
        ValueError: `variance` or `count` is out of range.

    **Guarantees** the exact law above: every probability is that of N_Z(0, v) conditioned on |k| <= K.

    Example:
        >>> from confide.crypto.random import SeededRandomness
        >>> discrete_gaussian(9.0, 5, SeededRandomness("doc")).dtype
        dtype('int64')
    """
    reach = largest_draw(variance)
    if count < 0:
        raise ValueError(f"Expected count={count} to be at least 0")
    exact = Fraction(variance)
    drawn = np.empty(count, np.int64)
    done = 0
    while done < count:
        proposals = min(_BLOCK, 10 * (count - done) + 64)  # about 9.6 proposals per accepted value
        accepted = _accepted(exact, reach, proposals, rng)[: count - done]
        drawn[done : done + len(accepted)] = accepted
        done += len(accepted)
    return drawn


def _accepted(variance: Fraction, reach: int, proposals: int, rng: Randomness) -> NDArray[np.int64]:
    """Return the accepted ones among `proposals` uniform proposals, in the order of the proposals."""
    words = np.frombuffer(rng.bytes(16 * proposals), "<u8").reshape(2, proposals)
    width = 2 * reach + 1
    quotient = words[0] // np.uint64(width)
    value = (words[0] - quotient * np.uint64(width)).astype(np.int64) - reach
    unbiased = quotient < np.uint64(_WORDS // width)  # the last, incomplete run of residues is no proposal
    below, unsure = _compare(value, words[1], variance)
    for index in np.flatnonzero(unsure & unbiased):
        below[index] = _below_exactly(int(value[index]), int(words[1][index]), variance, rng)
    return value[below & unbiased]


def _compare(
    value: NDArray[np.int64], word: NDArray[np.uint64], variance: Fraction
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return where U < exp(-value^2 / 2v) for certain, and where 64 bits of U and float64 cannot tell.

    U lies in [word, word + 1] / 2^64. With e = 2^-53: `value` is a float64 exactly; its square, 1 / 2v and their
    product round once each, so the exponent, at most 85, is off by less than 4e * 85 < 2^-44. numpy's exp is taken to
    be within 4 units in the last place, so p is within a relative 2^-43; `word` as a float is within a relative e. A
    gap of more than 2^-42 p + 2^-61 therefore has the sign of p - U.
    """
    exponent = value.astype(np.float64)
    np.multiply(exponent, exponent, out=exponent)
    np.multiply(exponent, -float(1 / (2 * variance)), out=exponent)
    gap = np.exp(exponent, out=exponent)
    margin = gap * 2.0**-42 + 2.0**-61
    gap -= word.astype(np.float64) * 2.0**-64
    return gap > margin, np.abs(gap) <= margin


def _below_exactly(value: int, word: int, variance: Fraction, rng: Randomness) -> bool:
    """Return whether U < exp(-value^2 / 2v) for a uniform U whose first 64 bits are `word`, drawing more bits of U.

    `decimal` rounds its exponential correctly, so with p digits the exponent x is within x 10^-p, and exp(-x) within a
    relative (x + 1) 10^-p < 10^(2 - p) for x <= 85. exp of a rational other than 0 is irrational: the loop ends.
    """
    if value == 0:
        return True
    exponent = Fraction(value * value) / (2 * variance)
    bits = 64
    while True:
        word = word << 64 | int.from_bytes(rng.bytes(8), "little")
        bits += 64
        digits = bits // 3 + 20
        context = Context(prec=digits)
        quotient = context.divide(Decimal(exponent.numerator), Decimal(exponent.denominator))
        power = Fraction(context.exp(quotient.copy_negate()))
        slack = power * Fraction(1, 10 ** (digits - 3))
        if Fraction(word + 1, 1 << bits) <= power - slack:
            return True
        if Fraction(word, 1 << bits) >= power + slack:
            return False
