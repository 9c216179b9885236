"""The largest norm of a party's contribution, fixed or following a quantile of the norms.

What is clipped is what goes into the sum, weight included, so the norm C bounds how far one party can move it. C is
public: it follows from the job and from released sums alone, and every party takes it from what the round starts from.

Paper: Andrew, Thakkar, McMahan, Ramaswamy (arXiv 1905.03871), algorithm 1 with the geometric update, without noise:
C <- C exp(-rate (share - quantile)), share being the share of the parties whose norm was at most C. Each party's answer
is one more coordinate of the sum, 0 or 1.
"""

from __future__ import annotations

import math
from copy import copy

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]

#: C stays within this factor of where it started: when nothing moves any more it must not shrink to nothing.
_FURTHEST = 2.0**20


class Clip:
    """A norm that contributions are scaled down to.

    Args:
        norm: C at the start, > 0; infinity clips nothing.
        quantile: share of the parties whose norm C should cover, 0 < quantile < 1; 0 keeps C.
        rate: how far one round may move log C, > 0.

    **Guarantees**: a clipped vector's norm is at most C, up to float64's rounding; no answer, a forged one included,
    moves log C by more than `rate` in a round.
    **Leaks**: with a quantile, how many parties of each sum were at most C; not which.
    """

    def __init__(self, *, norm: float = math.inf, quantile: float = 0.0, rate: float = 1.0) -> None:
        self.norm, self._start, self._quantile, self._rate = norm, norm, quantile, rate

    @property
    def follows(self) -> bool:
        """Return whether C follows the norms, so that each party answers whether its own was at most C."""
        return self._quantile > 0

    def apply(self, values: Matrix) -> tuple[Matrix, bool]:
        """Return `values` scaled down to norm C if they are longer, and whether they were not."""
        if math.isinf(self.norm):
            return values, True
        with np.errstate(over="ignore"):  # BLAS would wake threads that spin on for a while
            norm = math.sqrt(float(np.add.reduce(values * values)))
        if norm <= self.norm:
            return values, True
        return values * (self.norm / norm), False

    def followed(self, within: int, members: int) -> Clip:
        """Return the clip after a sum over `members` parties, `within` of which said that their norm was at most C."""
        share = min(1.0, max(0.0, within / members))
        # to single precision: everybody computes C, and the exponential's last bits are each machine's own
        moved = float(np.float32(self.norm * math.exp(-self._rate * (share - self._quantile))))
        return self.at(min(self._start * _FURTHEST, max(self._start / _FURTHEST, moved)))

    def at(self, norm: float) -> Clip:
        """Return this clip, having come to `norm`."""
        other = copy(self)
        other.norm = norm
        return other
