"""Exact discrete Gaussian noise, drawn in bulk.

`discrete_gaussian` draws from N_Z(0, v), P(k) proportional to exp(-k^2 / 2v) over the integers with |k| <= K, where
K >= 12 sqrt(v). That cut is the only deviation from N_Z(0, v): its total variation is below 2 exp(-72) < 1.1e-31 per
draw (`TAIL`), and whoever accounts for the noise charges it to delta. Nothing else is approximate: floats only decide
the comparisons that they can decide for certain.

How: the magnitudes 0 to K lie in strips of equal width. Each strip j has a ceiling c_j, a multiple of 2^-8 at or above
exp(-k^2 / 2v) for all its k. Propose a strip with probability proportional to c_j, a magnitude in it and a sign
uniformly (minus zero is no proposal), and accept k with probability exp(-k^2 / 2v) / c_j, that is if
c_j U < exp(-k^2 / 2v) for a uniform real U: what is accepted has the law above, and 9 in 10 proposals are. The first 64
bits of U are compared in float64 under a proved error interval; where they lie inside it (about one draw in 10^12) more
bits of U are drawn and the comparison is made with as many digits as it takes.

Timing: the number of proposals until one is accepted is independent of the value accepted, and all arithmetic on
proposals is vectorised over blocks whose sizes do not depend on values. What remains is the rare exact comparison and
whatever the processor's own multiplication and exponential leak; draw noise before it is needed if that matters.

Why not Skellam noise, which is closed under addition? It needs Poisson variates of mean v/2, and exact ones of mean
10^8 and more are slow, while library ones decide by floats whose error grows with the mean. Being closed under addition
is not needed: a sum of h discrete Gaussians of deviation >= 3 is one discrete Gaussian of variance h v up to a factor
of exp(1e-37) in every probability (docs/protocols/dp-gradient.md, lemma 3), and its tails are as light as a Gaussian's,
so the accounting is that of the continuous Gaussian. Skellam's costs more on coarse grids.

Paper: Canonne, Kamath, Steinke (arXiv 2004.00010), definition 1 and section 5; we propose from a staircase in place of
their discrete Laplace, because that vectorises. Kairouz, Liu, Steinke (arXiv 2102.06387), theorem 9 for the sum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
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
_STRIPS = 128
_LEVELS = 256  # a ceiling is a multiple of 1 / 256, so it is exact in float64


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
    stairs = _staircase(exact, reach)
    drawn = np.empty(count, np.int64)
    done = 0
    while done < count:
        proposals = min(_BLOCK, (count - done) * 9 // 8 + 64)  # about 1.08 proposals per accepted value
        accepted = _accepted(exact, reach, stairs, proposals, rng)[: count - done]
        drawn[done : done + len(accepted)] = accepted
        done += len(accepted)
    return drawn


@dataclass(frozen=True, slots=True, eq=False)
class _Staircase:
    """Where proposals come from.

    Args:
        width: integers of a strip.
        table: int64; each strip as often as its ceiling has levels.
        ceilings: float64, shape (strips,); exact.
    """

    width: int
    table: NDArray[np.int64]
    ceilings: NDArray[np.float64]


def _staircase(variance: Fraction, reach: int) -> _Staircase:
    """Return strips over 0 to `reach`; a ceiling is never below the exponential at the strip's least magnitude."""
    width = -(-(reach + 1) // _STRIPS)
    least = np.arange(_STRIPS, dtype=np.float64) * width
    top = np.exp(-(least * least) * float(1 / (2 * variance)))
    levels = np.ceil(top * (_LEVELS * (1 + 2.0**-40))).astype(np.int64)  # exp is within 2^-43, as in `_compare`
    levels = np.maximum(levels, 1)
    return _Staircase(width, np.repeat(np.arange(_STRIPS), levels), levels / _LEVELS)


def _accepted(variance: Fraction, reach: int, stairs: _Staircase, proposals: int, rng: Randomness) -> NDArray[np.int64]:
    """Return the accepted ones among `proposals` proposals, in the order of the proposals."""
    words = np.frombuffer(rng.bytes(16 * proposals), "<u8").reshape(2, proposals)
    places = 2 * stairs.width  # of a strip: magnitude and sign
    choices = places * len(stairs.table)
    quotient = words[0] // np.uint64(choices)
    choice = words[0] - quotient * np.uint64(choices)
    entry = choice // np.uint64(places)
    place = (choice - entry * np.uint64(places)).astype(np.int64)
    strip = stairs.table[entry.astype(np.int64)]
    value = strip * stairs.width + (place >> 1)
    negative = (place & 1).astype(np.bool_)
    # the last, incomplete run of residues is no proposal, nor is what lies beyond the reach, nor a second zero
    proposed = (quotient < np.uint64(_WORDS // choices)) & (value <= reach) & ~(negative & (value == 0))
    below, unsure = _compare(value, words[1], variance, stairs.ceilings[strip])
    for index in np.flatnonzero(unsure & proposed):
        ceiling = Fraction(float(stairs.ceilings[strip[index]]))
        below[index] = _below_exactly(int(value[index]), int(words[1][index]), variance, rng, ceiling)
    return (value * (1 - 2 * (place & 1)))[below & proposed]


def _compare(
    value: NDArray[np.int64],
    word: NDArray[np.uint64],
    variance: Fraction,
    ceiling: NDArray[np.float64] | float = 1.0,
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return where c U < exp(-value^2 / 2v) for certain, and where 64 bits of U and float64 cannot tell.

    U lies in [word, word + 1] / 2^64, the ceiling c below 1.01. With e = 2^-53: `value` is a float64 exactly; its
    square, 1 / 2v and their product round once each, so the exponent, at most 85, is off by less than 4e * 85 < 2^-44.
    numpy's exp is taken to be within 4 units in the last place, so p is within a relative 2^-43; `word` as a float is
    within a relative e, and c times it within 2e. A gap of more than 2^-42 p + 2^-61 therefore has the sign of p - c U.
    """
    exponent = value.astype(np.float64)
    np.multiply(exponent, exponent, out=exponent)
    np.multiply(exponent, -float(1 / (2 * variance)), out=exponent)
    gap = np.exp(exponent, out=exponent)
    margin = gap * 2.0**-42 + 2.0**-61
    gap -= word.astype(np.float64) * (ceiling * 2.0**-64)
    return gap > margin, np.abs(gap) <= margin


def _below_exactly(value: int, word: int, variance: Fraction, rng: Randomness, ceiling: Fraction = Fraction(1)) -> bool:
    """Return whether c U < exp(-value^2 / 2v) for a uniform U whose first 64 bits are `word`, drawing more bits of U.

    `decimal` rounds its exponential correctly, so with p digits the exponent x is within x 10^-p, and exp(-x) within a
    relative (x + 1) 10^-p < 10^(2 - p) for x <= 85. exp of a rational other than 0 is irrational, and at 0 the
    loop ends with probability 1.
    """
    if value == 0 and ceiling <= 1:
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
        if ceiling * Fraction(word + 1, 1 << bits) <= power - slack:
            return True
        if ceiling * Fraction(word, 1 << bits) >= power + slack:
            return False
