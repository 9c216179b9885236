"""A bound on a vector's length that random projections can check: what is tested, and how often it errs.

    symbol   here           meaning
    B        norm           the largest L2 norm of an honest vector of integers
    M        modulus        the ring Z_M that the vector lives in; cmod is the residue nearest to zero
    r        rows           projections g_1 ... g_r, entries -1, 0, 1 with probability 1/4, 1/2, 1/4
    T        threshold      the test: sum over j of cmod(<g_j, x>)^2 <= T = r B^2 (1 + excess) / 2
    c        ratio          vectors of norm c B or more are to fail

<g, x> has variance ||x||^2 / 2, so an honest sum has mean r B^2 / 2 at most. docs/protocols/shares.md proves both
errors:

* ||x|| <= B fails with probability at most ((1 + excess) e^-excess)^(r/2), from E exp(s <g, x>^2) <= (1 - s B^2)^(-1/2)
  (Rademacher sums are sub-Gaussian). It is the price of zero knowledge too: an honest client draws again.
* ||x|| >= c B, whatever x, passes with probability at most (e^(a (1 + excess) / 4) worst(a))^r for every a > 0
  (Chernoff), where worst(a) bounds E exp(-a cmod(<g, x>)^2 / 2 B^2) over all such x.

The idea of projections modulo M with wrap-around in mind is that of PINE (Rothblum, Omri, Chen, Talwar);
the lemma with its constants is ours, since here the projections bound the norm by themselves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from confide.errors import UsageError

#: M is at least this many times c B: then sums that wrap add less than 10^-6 to `worst`.
_ROOM = 12
_MOST_ROWS = 1 << 14
_TILTS = tuple(0.4 + 0.1 * step for step in range(8))


@dataclass(frozen=True)
class NormBound:
    """The test of one bound.

    Args:
        norm: B, an integer of at least 1.
        rows: r, a multiple of 16, 16 to 16,384.
        excess_percent: 100 * excess.
        ratio_percent: 100 * c.

    Raises:
        UsageError: an argument out of range.
    """

    norm: int
    rows: int = 320
    excess_percent: int = 80
    ratio_percent: int = 250

    def __post_init__(self) -> None:
        rows = 16 <= self.rows <= _MOST_ROWS and self.rows % 16 == 0
        if self.norm < 1 or not rows or self.excess_percent < 1 or self.ratio_percent < 200:
            raise UsageError(
                f"Expected norm={self.norm} of at least 1, rows={self.rows} a multiple of 16 from 16 to {_MOST_ROWS}, "
                f"excess_percent={self.excess_percent} of at least 1, ratio_percent={self.ratio_percent} above 199"
            )

    @property
    def threshold(self) -> int:
        """Return T, rounded down."""
        return self.rows * self.norm**2 * (100 + self.excess_percent) // 200

    @property
    def ring_bits(self) -> int:
        """Return the smallest k for which the lemma holds in the ring of integers mod 2^k."""
        return (-(-_ROOM * self.ratio_percent * self.norm // 100) - 1).bit_length()

    @cached_property
    def soundness_bits(self) -> float:
        """Return b: a vector of norm c B or more passes with probability at most 2^-b, over the draw of the rows."""
        growth = (1 + self.excess_percent / 100) / 4
        ratio = self.ratio_percent / 100
        return max(-self.rows * (math.log2(worst(tilt, ratio)) + tilt * growth / math.log(2)) for tilt in _TILTS)

    @property
    def completeness_bits(self) -> float:
        """Return b: a vector of norm B or less fails with probability at most 2^-b."""
        excess = self.excess_percent / 100
        return self.rows / 2 * (excess - math.log1p(excess)) / math.log(2)


def worst(tilt: float, ratio: float) -> float:
    """Return a bound on E exp(-a cmod(<g, x>)^2 / 2 B^2) over every x of norm c B or more.

    Args:
        tilt: a, above 0.
        ratio: c, at least 2.

    Either one coordinate has |x_i| >= c B: it alone gives (1 + e^(-a c^2 / 2)) / 2. Or some coordinates, each u_i B
    with u_i < c, have a norm between c B and sqrt(2) c B: they give E prod cos^2(sqrt(a) xi u_i / 2) over a normal xi,
    which is, by Hoelder, at most the supremum over 0 < u <= c of E |cos(sqrt(a) xi u / 2)|^(2 c^2 / u^2). The supremum
    is taken over 100 values of u, the expectation over 1,001 values of xi; the limit at u = 0 is (1 + a c^2 /
    2)^(-1/2).
    """
    single = (1 + math.exp(-tilt * ratio**2 / 2)) / 2
    xi, step = np.linspace(0, 10, 1001, retstep=True)
    density = np.exp(-(xi**2) / 2) * step * math.sqrt(2 / math.pi)
    density[0] /= 2
    u = np.linspace(0, ratio, 101)[1:, None]
    cosines = np.abs(np.cos(math.sqrt(tilt) / 2 * u * xi)) + 1e-300
    many = np.exp(2 * (ratio / u) ** 2 * np.log(cosines)) @ density
    limit = 1 / math.sqrt(1 + tilt * ratio**2 / 2)
    return max(single, limit, float(many.max())) + _wraps(tilt, ratio)


def _wraps(tilt: float, ratio: float) -> float:
    """Return what sums of M/2 or more can add, in either case, when M >= 12 c B.

    With Y = <g, x_P> and ||x_P||^2 < 2 c^2 B^2, the k-th image of zero is met by |Y| >= |k| M / 2, of probability at
    most 2 exp(-k^2 12^2 / 8) (Hoeffding), or from a distance of |k| M / 2.
    """
    hits = [2 * math.exp(-((k * _ROOM) ** 2) / 8) for k in range(1, 4)]
    near = [math.exp(-tilt * (k * _ROOM * ratio / 2) ** 2 / 2) for k in range(1, 4)]
    return 2.1 * (sum(hits) + sum(near))
