"""What noise costs: exact accounting of Gaussian noise, and of the integer noise that silos really add.

A Gaussian mechanism of L2 sensitivity s and variance u, released T times, is mu-GDP with mu = s sqrt(T / u), and its
privacy profile is known exactly (Balle, Wang, arXiv 1805.06083, theorem 8; Dong, Roth, Su, arXiv 1905.02383,
corollaries 2.13 and 3.3):

    delta(epsilon) = Phi(mu/2 - epsilon/mu) - exp(epsilon) Phi(-mu/2 - epsilon/mu).

Silos add integers: a sum of h discrete Gaussians of variance v each. Rounding N(0, u) to integers is post-processing of
the Gaussian mechanism, and its probabilities agree with those of the integer noise up to a factor of 1 + O(1 / u^2)
for u = h v - 1/12. So the integer mechanism has the Gaussian's epsilon plus a surcharge of 8 T d / u^2 and a tail near
1e-31 per draw in delta: theorem 1 of docs/protocols/dp-gradient.md, where every step is proved. With the default grid
the surcharge is below 1e-9; accounting by Renyi divergence would ask for 8 to 11 % more noise.

    paper   here                        paper   here
    s       sensitivity (grid steps)    T       rounds
    v       share_variance              d       length
    h       shares                      mu      mu

Every function errs to the safe side: deltas and epsilons are rounded up.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from confide.crypto.noise import TAIL
from confide.errors import PrivacyError, UsageError

#: Goes into the privacy label.
ACCOUNTANT = "exact Gaussian profile + discrete surcharge (docs/protocols/dp-gradient.md, theorem 1)"

#: The theorem needs shares of at least 3 grid steps of standard deviation.
LEAST_SHARE_VARIANCE = 9.0

_LARGEST_EPSILON = 32.0  # beyond it no claim is worth making, and the sampler's tail times exp(epsilon) would count


def gaussian_delta(mu: float, epsilon: float) -> float:
    """Return the smallest delta at which a mu-GDP mechanism is (epsilon, delta)-private, rounded up.

    Args:
        mu: sensitivity over standard deviation, sqrt(rounds) included, > 0.
        epsilon: >= 0.

    With e = 2^-53 and b the larger argument: an argument is off by at most 5 e b, the logarithm of the normal tail
    changes by at most 1 + b per unit, exp and erfc are good to 8 e together. So both terms are within a relative
    2^-49 (1 + b)^2, and 2^-1000 covers what underflows.
    """
    if not (mu > 0 and epsilon >= 0):
        raise ValueError(f"Expected mu={mu} above 0 and epsilon={epsilon} at least 0")
    if epsilon > _LARGEST_EPSILON:
        return gaussian_delta(mu, _LARGEST_EPSILON)
    argument = epsilon / mu + mu / 2
    first = _upper_tail(epsilon / mu - mu / 2)
    second = math.exp(epsilon) * _upper_tail(argument)
    slack = 2.0**-49 * (1 + argument) ** 2 * (first + second)
    return min(1.0, first - second + slack + 2.0**-1000)


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Return the smallest epsilon at which a mu-GDP mechanism is (epsilon, delta)-private, rounded up; inf above 32."""
    return _least_epsilon(lambda epsilon: gaussian_delta(mu, epsilon), delta)


def gaussian_mu(epsilon: float, delta: float) -> float:
    """Return the largest mu that is (epsilon, delta)-private, rounded down: sqrt(rounds) / mu is the noise multiplier.

    Raises:
        UsageError: epsilon is not in (0, 32] or delta not in (0, 1).
    """
    check_target(epsilon, delta)
    low, high = 0.0, 2.0 * math.sqrt(2.0 * _LARGEST_EPSILON) + 40.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if gaussian_delta(middle, epsilon) <= delta else (low, middle)
    if not low > 0:
        raise PrivacyError(f"Expected a reachable delta={delta}; it lies below what float64 can account for")
    return low


def check_target(epsilon: float, delta: float) -> None:
    """Raise UsageError unless 0 < epsilon <= 32 and 0 < delta < 1."""
    if not 0 < epsilon <= _LARGEST_EPSILON:
        raise UsageError(f"Expected epsilon={epsilon} above 0 and at most 32; 1 is a strong promise, 10 a weak one")
    if not 0 < delta < 1:
        raise UsageError(f"Expected delta={delta} between 0 and 1; below one over the number of records")


@dataclass(frozen=True, slots=True, kw_only=True)
class NoisySums:
    """The accounting event: adaptive releases of integer vectors with a sum of discrete Gaussians on each coordinate.

    Args:
        sensitivity: largest L2 distance between the vectors of neighbours, in grid steps, >= 1.
        share_variance: parameter v of each share of the noise, in grid steps squared, >= 9.
        shares: shares h that the adversary does not know, >= 1.
        length: coordinates d of a vector.
        rounds: releases T.

    Example:
        >>> event = NoisySums(sensitivity=512, share_variance=1e8, shares=2, length=31, rounds=20)
        >>> round(event.epsilon(1e-5), 3)
        0.576
    """

    sensitivity: int
    share_variance: float
    shares: int
    length: int
    rounds: int

    def __post_init__(self) -> None:
        if min(self.sensitivity, self.shares, self.length, self.rounds) < 1:
            raise UsageError("Expected sensitivity, shares, length and rounds of at least 1")
        if not self.share_variance >= LEAST_SHARE_VARIANCE:
            raise PrivacyError(
                f"Expected share_variance={self.share_variance} of at least 9 grid steps squared; take a finer grid"
            )

    @property
    def variance(self) -> float:
        """Return the variance h v of the sum of the shares, in grid steps squared."""
        return self.shares * self.share_variance

    @property
    def rounded_variance(self) -> float:
        """Return u with 1/u - 1/(12 u^2) = 1/(h v): N(0, u), rounded to integers, has variance close to h v."""
        return self.variance * (1 + math.sqrt(1 - 1 / (3 * self.variance))) / 2

    @property
    def mu(self) -> float:
        """Return s sqrt(T / u), the GDP parameter of the Gaussian mechanism behind, rounded up."""
        return self.sensitivity * math.sqrt(self.rounds / self.rounded_variance) * (1 + 2.0**-48)

    @property
    def surcharge(self) -> float:
        """Return what integers add to epsilon: 8 T d / u^2."""
        return 8 * self.rounds * self.length / self.rounded_variance**2 * (1 + 2.0**-48)

    def delta(self, epsilon: float) -> float:
        """Return a delta at which the releases are (epsilon, delta)-private together (theorem 1)."""
        return Composition((self,)).delta(epsilon)

    def epsilon(self, delta: float) -> float:
        """Return the smallest epsilon at which `delta` suffices, rounded up; inf if there is none up to 32."""
        return Composition((self,)).epsilon(delta)


@dataclass(frozen=True, slots=True)
class Composition:
    """Several kinds of releases about the same records, each chosen in view of all before it: one event.

    Gaussian mechanisms compose exactly, by adding mu^2; surcharges and tails add up (theorem 2 of
    docs/protocols/dp-gradient.md).

    Args:
        parts: at least one.

    Example:
        >>> first = NoisySums(sensitivity=512, share_variance=1e8, shares=2, length=3, rounds=1)
        >>> then = NoisySums(sensitivity=512, share_variance=1e8, shares=2, length=31, rounds=19)
        >>> round(Composition((first, then)).epsilon(1e-5), 3)
        0.576
    """

    parts: tuple[NoisySums, ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise UsageError("Expected at least one kind of release to account for")

    @property
    def mu(self) -> float:
        """Return the GDP parameter of the Gaussian mechanisms behind, all together, rounded up."""
        return math.hypot(*(part.mu for part in self.parts)) * (1 + 2.0**-48 if len(self.parts) > 1 else 1)

    @property
    def surcharge(self) -> float:
        """Return what integers add to epsilon."""
        return math.fsum(part.surcharge for part in self.parts)

    def tail(self, epsilon: float) -> float:
        """Return what the cut tails of the noise add to delta at `epsilon`; it grows with epsilon."""
        return TAIL * math.fsum(
            part.rounds * part.length * (1 + part.shares * (1 + math.exp(epsilon))) for part in self.parts
        )

    def delta(self, epsilon: float) -> float:
        """Return a delta at which the releases are (epsilon, delta)-private together."""
        surcharge = self.surcharge
        if epsilon < surcharge or epsilon > _LARGEST_EPSILON:
            return 1.0
        return min(
            1.0,
            (1 + 2.0**-48) * (math.exp(surcharge) * gaussian_delta(self.mu, epsilon - surcharge) + self.tail(epsilon)),
        )

    def epsilon(self, delta: float) -> float:
        """Return the smallest epsilon at which `delta` suffices, rounded up; inf if there is none up to 32."""
        return _least_epsilon(self.delta, delta)


def _upper_tail(x: float) -> float:
    """Return P(N(0, 1) > x)."""
    return math.erfc(x / math.sqrt(2.0)) / 2


def _least_epsilon(profile: Callable[[float], float], delta: float) -> float:
    """Return the smallest epsilon up to 32 with profile(epsilon) <= delta to 60 bits, always one that satisfies it."""
    if profile(0.0) <= delta:
        return 0.0
    low, high = 0.0, 2.0**-20
    while profile(high) > delta:
        low, high = high, 2 * high
        if high > _LARGEST_EPSILON:
            return math.inf
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if profile(middle) <= delta else (middle, high)
    return high
