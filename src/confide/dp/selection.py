"""The best of a random number of runs, and what looking for it costs.

Choosing among private models by their scores is a release of its own: the best of m runs at epsilon = 1 may show far
more than epsilon = 1. If m is geometric and secret, and every run draws its setting anew and has a noisy score of its
own, the best run alone costs two to three times as much as one:

    D_a(best) <= a mu^2/2 + 2 (mu sqrt(2 log(1/g)) - mu^2/2) + log(1/g)/(a - 1),      g = 1 / (mean number of runs)

in Renyi divergence of order a, for runs that are mu-Gaussian each, score included (with D_b <= b mu^2/2 at the best b).
Settings may be as many as one likes; what counts is the mean number of runs. Nobody may learn m, or any other run.

Paper: Papernot, Steinke, Hyperparameter tuning with Renyi differential privacy (arXiv 2110.03620), theorem 2 with eta
= 1; from Renyi to (epsilon, delta): Canonne, Kamath, Steinke (arXiv 2004.00010), proposition 12. Integer noise adds at
most S (2a - 1)/(2 (a - 1)) to a run's divergence, because it changes probabilities by a factor of exp(S/2) at most, and
the cut tails of all runs together, on average, to delta.

    paper   here                        paper   here
    K       draw_runs                   gamma   stop / 2^32
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from confide.crypto.random import Randomness
from confide.dp.accountant import check_target
from confide.errors import PrivacyError, UsageError

#: Goes into the privacy label.
ACCOUNTANT = "Renyi divergence of the best of a geometric number of runs (Papernot and Steinke, arXiv 2110.03620)"

_COINS = 1 << 32
_ORDERS = 1 + np.exp(np.linspace(math.log(1e-2), math.log(1e5), 600))
_LARGEST_EPSILON = 32.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What the best of a random number of runs costs, and how many runs there are.

    Args:
        mean_runs: of the geometric number of runs, 1 to 10,000.
        mu: of the Gaussian mechanism behind one run, its score included.
        surcharge, tail: what integer noise adds to one run (`accountant.Composition`), the tail at epsilon 32.
        delta: of the result.

    Example:
        >>> from confide.dp.accountant import gaussian_mu
        >>> round(Selection(mean_runs=10, mu=gaussian_mu(0.5, 1e-5), delta=1e-5).epsilon, 2)
        1.22

    **Guarantees**: whoever sees the best run, its setting and its score, and nothing else, sees an (epsilon,
    delta)-private mechanism.
    **Leaks**: how long the search took says something about the number of runs; do not show it.
    """

    mean_runs: float
    mu: float
    surcharge: float = 0.0
    tail: float = 0.0
    delta: float

    def __post_init__(self) -> None:
        check_target(1.0, self.delta)
        if not (1 <= self.mean_runs <= 10_000 and self.mu > 0 and self.surcharge >= 0 and self.tail >= 0):
            raise UsageError(f"Expected mean_runs={self.mean_runs} from 1 to 10000 and mu={self.mu} above 0")

    @property
    def stop(self) -> int:
        """Return after how many of 2^32 coins the runs end: the exact parameter of their number."""
        return math.ceil(_COINS / self.mean_runs)

    @property
    def epsilon(self) -> float:
        """Return the epsilon of the result at `delta`, rounded up.

        Raises:
            PrivacyError: it is above 32.
        """
        most = -math.log(self.stop / _COINS)  # log(1 / gamma), the logarithm of the mean, too
        orders, mu = _ORDERS, self.mu
        run = orders * mu**2 / 2 + self.surcharge * (2 * orders - 1) / (2 * (orders - 1))
        best = max(1.0, math.sqrt(2 * most) / mu)  # the order at which the other runs are bounded
        others = (best - 1) * mu**2 / 2 + most / best + self.surcharge * (2 * best - 1) / (2 * best)
        divergence = run + 2 * others + most / (orders - 1)
        left = self.delta - self.tail * _COINS / self.stop
        if left <= 0:
            raise PrivacyError("Expected a larger delta; the cut tails of the noise exceed it")
        found = divergence + np.log1p(-1 / orders) - (math.log(left) + np.log(orders)) / (orders - 1)
        epsilon = max(0.0, float(found.min())) * (1 + 1e-9)
        if epsilon > _LARGEST_EPSILON:
            raise PrivacyError(f"Expected a search of epsilon at most 32, this one has {epsilon:.3g}; take fewer runs")
        return epsilon

    def draw_runs(self, rng: Randomness) -> int:
        """Return the number of runs, geometric and at least 1: nobody but whoever runs them may learn it."""
        count = 1
        while rng.below(_COINS) >= self.stop:
            count += 1
        return count


def affordable_mu(epsilon: float, delta: float, *, mean_runs: float) -> float:
    """Return the largest mu of a run such that the best of `mean_runs` on average keeps (epsilon, delta).

    `accountant.gaussian_epsilon(mu, delta)` is the epsilon to put into each job.

    Raises:
        PrivacyError: there is none.
    """
    check_target(epsilon, delta)
    low, high = 0.0, 16.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _fits(middle, epsilon, delta, mean_runs) else (low, middle)
    if not low > 0:
        raise PrivacyError(f"Expected a larger epsilon than {epsilon}; nothing is left for {mean_runs} runs")
    return low


def _fits(mu: float, epsilon: float, delta: float, mean_runs: float) -> bool:
    try:
        return Selection(mean_runs=mean_runs, mu=mu, delta=delta).epsilon <= epsilon
    except PrivacyError:
        return False
