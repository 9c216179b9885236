"""Exact divergences of integer noise by mpmath: the oracle of the accountant's tests. Knows nothing of confide."""

from __future__ import annotations

from functools import cache
from itertools import product

import mpmath

DIGITS = 40


@cache
def discrete_gaussian(variance: int) -> tuple[mpmath.mpf, ...]:
    """Return P(-K ... K) of N_Z(0, variance), K = 13 deviations."""
    with mpmath.workdps(DIGITS):
        reach = int(13 * variance**0.5) + 1
        weights = [mpmath.exp(-mpmath.mpf(k * k) / (2 * variance)) for k in range(-reach, reach + 1)]
        total = mpmath.fsum(weights)
        return tuple(weight / total for weight in weights)


@cache
def shares(variance: int, count: int) -> tuple[mpmath.mpf, ...]:
    """Return the law of a sum of `count` independent N_Z(0, variance)."""
    law = discrete_gaussian(variance)
    with mpmath.workdps(DIGITS):
        total = law
        for _ in range(count - 1):
            total = tuple(
                mpmath.fdot((total[k], law[m - k]) for k in range(max(0, m - len(law) + 1), min(len(total), m + 1)))
                for m in range(len(total) + len(law) - 1)
            )
        return total


def delta(law: tuple[mpmath.mpf, ...], shifts: tuple[int, ...], epsilon: float) -> mpmath.mpf:
    """Return the hockey-stick divergence of noise `law` on each coordinate against itself moved by `shifts`."""
    with mpmath.workdps(DIGITS):
        scale = mpmath.exp(epsilon)
        pairs = [
            [(p, law[k - shift] if 0 <= k - shift < len(law) else mpmath.mpf(0)) for k, p in enumerate(law)]
            for shift in shifts
        ]
        if len(shifts) == 1:
            return mpmath.fsum(max(p - scale * q, 0) for p, q in pairs[0])
        return mpmath.fsum(
            max(mpmath.fprod(p for p, _ in cell) - scale * mpmath.fprod(q for _, q in cell), 0)
            for cell in product(*pairs)
        )


def gaussian_delta(mu: float, epsilon: float) -> mpmath.mpf:
    """Return the profile of N(0, 1) against N(mu, 1) as an integral over the loss, not through its closed form."""
    with mpmath.workdps(DIGITS):
        m, e = mpmath.mpf(mu), mpmath.mpf(epsilon)
        edge = e / m + m / 2  # beyond it the density of N(mu, 1) exceeds exp(e) times that of N(0, 1)

        def gain(x: mpmath.mpf) -> mpmath.mpf:
            return mpmath.npdf(x, m, 1) - mpmath.exp(e) * mpmath.npdf(x)

        width = 1 / (1 + edge)  # in which the normal tail falls by about 1 / e
        return mpmath.quad(gain, [edge + width * stop for stop in (0, 1, 2, 4, 8, 16, 32, 64, 128, 256)])
