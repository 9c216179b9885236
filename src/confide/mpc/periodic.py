"""Smooth functions of a masked value, in one round, by their Fourier series.

    cos(j w (v^ - r)) = cos(j w v^) cos(j w r) + sin(j w v^) sin(j w r)
    sin(j w (v^ - r)) = sin(j w v^) cos(j w r) - cos(j w v^) sin(j w r)

v^ = v + r is public, so each party forms the public factors A_j and B_j itself; whoever knows r deals shares of
cos(j w r) and sin(j w r). A period of 2^p units divides 2^64, so a wrap of v^ makes no difference.

    symbol   here         meaning
    p        period       the function has period 2^p units of the ring
    w        -            2 pi / 2^p
    m        terms        frequencies j = 1 .. m
    c_j      cosines[j]   c_0 is the constant
    s_j      sines[j - 1]

A function that is not periodic is fitted on [-bound, bound] by a series with a period of at least 4 bound (a Fourier
extension): for an analytic function the error falls geometrically with m. Beyond the bound the result is wrong, and
nothing leaks: a bound is a window as those of signs are.

The public factors are integers that both parties must agree on to the last bit, for they multiply uniform shares. So
they come from integer tables made by integer arithmetic, never from a machine's own sine.

Paper: Huybrechs, "On the Fourier extension of nonperiodic functions" (SIAM J. Numer. Anal. 47, 2010), section 3; dealt
sines for secret sharing: Zheng et al., "SecFormer" (arXiv 2401.00793), section 4.2, where masks are real numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from confide.errors import ModelError

Words = NDArray[np.uint64]
Matrix = NDArray[np.float64]

#: Fraction bits of a dealt cosine, of a public factor, and of their product.
DEALT_BITS, FACTOR_BITS = 28, 20
PRODUCT_BITS = DEALT_BITS + FACTOR_BITS
#: Largest period in bits and most frequencies.
MOST_PERIOD, MOST_TERMS = 56, 96
#: Largest coefficient in its units: two of them times a cosine of the tables fit 63 bits.
MOST_COEFFICIENT = 1 << 31

_PHASE_BITS = 24  # a public angle is cut to 2^-24 of a turn
_HALF = _PHASE_BITS // 2
_TABLE_BITS = 30  # of cosines in the tables


@dataclass(frozen=True, slots=True)
class Series:
    """sum over j of c_j cos(j w x) + s_j sin(j w x), x in units of the ring.

    Args:
        period: bits p of the period, 1 to 56.
        cosines: c_0 .. c_m in units of 2^-FACTOR_BITS.
        sines: s_1 .. s_m, likewise.
    """

    period: int
    cosines: tuple[int, ...]
    sines: tuple[int, ...]

    @property
    def terms(self) -> int:
        """Return m, the number of frequencies."""
        return len(self.sines)

    @property
    def rounding(self) -> float:
        """Return four deviations of what rounded cosines and factors add up to, as if each rounded by chance."""
        dealt = sum((c * 2.0**-FACTOR_BITS) ** 2 for c in (*self.cosines, *self.sines)) * 4.0**-DEALT_BITS
        return 4 * math.sqrt((dealt + 2 * self.terms * 4.0**-FACTOR_BITS) / 12)

    def apply(self, x: Matrix, scale: int) -> Matrix:
        """Return the series in float64 at real numbers x, held with `scale` fraction bits in the ring."""
        angle = x * (2 * math.pi * 2.0 ** (scale - self.period))
        y = np.full_like(x, float(self.cosines[0]))
        for j in range(1, self.terms + 1):
            y += self.cosines[j] * np.cos(j * angle) + self.sines[j - 1] * np.sin(j * angle)
        return y * 2.0**-FACTOR_BITS


def fit(
    function: Callable[[Matrix], Matrix],
    low: float,
    high: float,
    *,
    error: float,
    scale: int,
    allowed: Callable[[Matrix], Matrix] = np.ones_like,
) -> Series:
    """Return a series that is near a function on an interval.

    Args:
        function: smooth on [low, high], vectorised.
        low, high: the interval, low < high; the series is centred nowhere, x = 0 is x = 0.
        error: largest |series - function| on the interval, at least 2^-20.
        scale: fraction bits of x in the ring.
        allowed: how many times larger the error may be at x, at least 1.

    Raises:
        ModelError: no series of at most MOST_TERMS frequencies is as near.
    """
    span = math.ceil(math.log2(high - low))
    points = _points(low, high, 2048)
    wanted, tolerance = function(points), error * allowed(points)
    for terms in (8, 12, 16, 20, 24, 32, 40, 48, 64, MOST_TERMS):
        for period in (span + scale, span + scale + 1):
            if not 1 <= period <= MOST_PERIOD:
                continue
            few = _points(low, high, 8 * terms)  # twice as many conditions as a series has coefficients, and more
            series = _least_squares(few, function(few), terms, period, scale, 1 / allowed(few))
            if series is None:
                continue
            if (np.abs(series.apply(points, scale) - wanted) + series.rounding <= tolerance).all():
                return series
    raise ModelError(
        f"Expected a function that {MOST_TERMS} frequencies give to within {error:.1g} on an interval of {high - low:g}"
        "; calibrate on rows whose values lie closer together, or normalise before it"
    )


def _points(low: float, high: float, count: int) -> Matrix:
    """Return points of an interval, close together near its ends."""
    return (high + low) / 2 - (high - low) / 2 * np.cos(np.linspace(0, math.pi, count))


def _least_squares(
    points: Matrix, wanted: Matrix, terms: int, period: int, scale: int, weight: Matrix
) -> Series | None:
    """Return the coefficients that fit best; small singular values are cut, so that coefficients stay small.

    None if they do not.
    """
    angle = points[:, None] * (2 * math.pi * 2.0 ** (scale - period)) * np.arange(1, terms + 1)
    basis = np.hstack([np.ones((len(points), 1)), np.cos(angle), np.sin(angle)])
    found = np.linalg.lstsq(basis * weight[:, None], wanted * weight, rcond=1e-9)[0]
    whole = [int(each) for each in np.rint(found * 2.0**FACTOR_BITS)]
    if max(map(abs, whole)) > MOST_COEFFICIENT:
        return None
    return Series(period, tuple(whole[: terms + 1]), tuple(whole[terms + 1 :]))


# --- tables of whole numbers ------------------------------------------------------------------------------------------


def _whole_cosine(numerator: int, bits: int) -> tuple[int, int]:
    """Return round(2^30 (cos, sin)) of 2 pi numerator / 2^bits, by Taylor's series in integers of 120 bits."""
    one = 1 << 120
    pi = 4175892906503776358826876457663557747  # floor(pi 2^120)
    angle = 2 * pi * numerator >> bits
    term, cosine, sine = one, 0, 0
    for n in range(1, 80):
        part = term if n % 4 in (1, 2) else -term
        if n % 2:
            cosine += part
        else:
            sine += part
        term = (term * angle >> 120) // n
    half = 1 << 89
    return (cosine + half) >> 90, (sine + half) >> 90


@cache
def _tables(shift: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return cosines and sines of 2 pi i 2^shift / 2^24 for i < 2^12, times 2^30."""
    rows = [_whole_cosine(i << shift, _PHASE_BITS) for i in range(1 << _HALF)]
    cosines, sines = zip(*rows, strict=True)
    return np.array(cosines, np.int64), np.array(sines, np.int64)


def whole_waves(phase: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return round(2^30 cos) and round(2^30 sin) of 2 pi phase / 2^24, to a unit or two, the same on every machine."""
    high, low = phase >> _HALF & ((1 << _HALF) - 1), phase & ((1 << _HALF) - 1)
    (ch, sh), (cl, sl) = (tuple(t[i] for t in _tables(s)) for i, s in ((high, _HALF), (low, 0)))
    half = 1 << (_TABLE_BITS - 1)
    return (ch * cl - sh * sl + half) >> _TABLE_BITS, (sh * cl + ch * sl + half) >> _TABLE_BITS


# --- what the parties and who knows the mask compute ------------------------------------------------------------------


def factors(series: Series, masked: Words) -> tuple[Words, Words]:
    """Return A_j and B_j of public values v^: uint64, shape (m, count) each, in units of 2^-FACTOR_BITS.

    Args:
        masked: v^, uint64, shape (count,).
    """
    shift, half = _TABLE_BITS, 1 << (_TABLE_BITS - 1)
    first = np.empty((series.terms, len(masked)), np.int64)
    second = np.empty_like(first)
    for row, turned in enumerate(_multiples(series, masked)):
        excess = series.period - _PHASE_BITS
        cosine, sine = whole_waves(turned >> excess if excess > 0 else turned << -excess)
        c, s = series.cosines[row + 1], series.sines[row]
        first[row] = (c * cosine + s * sine + half) >> shift
        second[row] = (c * sine - s * cosine + half) >> shift
    return first.view(np.uint64), second.view(np.uint64)


def dealt(series: Series, mask: Words) -> tuple[Words, Words]:
    """Return cos(j w r) and sin(j w r) in units of 2^-DEALT_BITS, uint64 (m, count) each, for masks r (count,)."""
    angle = _multiples(series, mask) * (2 * math.pi * 2.0**-series.period)
    cosine, sine = (np.rint(wave(angle) * 2.0**DEALT_BITS).astype(np.int64) for wave in (np.cos, np.sin))
    return cosine.view(np.uint64), sine.view(np.uint64)


def share(series: Series, party: int, waves: tuple[Words, Words], shares: tuple[Words, Words]) -> Words:
    """Return a party's share of the series at scale PRODUCT_BITS: uint64, shape (count,).

    Args:
        party: 0 or 1; party 0 adds the constant.
        waves: what `factors` gave.
        shares: the party's shares of what `dealt` gave.
    """
    y = np.einsum("jn,jn->n", waves[0], shares[0]) + np.einsum("jn,jn->n", waves[1], shares[1])
    return y if party else y + np.uint64((series.cosines[0] << DEALT_BITS) % (1 << 64))


def _multiples(series: Series, words: Words) -> NDArray[np.int64]:
    """Return j v mod 2^p for j = 1 .. m: int64, shape (m, count)."""
    low = (words & np.uint64((1 << series.period) - 1)).astype(np.int64)
    return np.arange(1, series.terms + 1, dtype=np.int64)[:, None] * low & ((1 << series.period) - 1)
