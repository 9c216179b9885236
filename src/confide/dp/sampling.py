"""What sampling saves: the accounting of releases that each take a Poisson sample of the records.

Each release includes each record with probability q, by a coin of its own. The law of a release is then a mixture over
the samples, and the integer noise of every part of the mixture is within a constant factor of a rounded Gaussian's; so
the mixture is, and theorem 1 of docs/protocols/dp-gradient.md carries over with the profile of the Poisson-sampled
Gaussian in place of the Gaussian's: theorem 3 of docs/protocols/dp-sgd.md, where every step is written out.

The profile comes from dp-accounting's privacy loss distributions, which round losses up. It is that of `add or remove
one`: the larger of both directions, each composed by itself.

    paper   here                        paper   here
    q       rate                        T       rounds
    s       sensitivity (grid steps)    H       surcharge
    u       rounded_variance

Without sampling (q = 1 everywhere) this is the exact Gaussian account of `accountant.Composition`, to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from typing import Any, cast

from dp_accounting.pld import privacy_loss_distribution

from confide.crypto.noise import TAIL
from confide.dp.accountant import ACCOUNTANT, LARGEST_EPSILON, Composition, NoisySums, least_epsilon
from confide.errors import PrivacyError, UsageError

#: Width of the steps that privacy losses are rounded up to: for a claim, and for figures on the way.
FINE, COARSE = 1e-4, 1e-3

#: Added to delta for what floating-point convolutions of at most some 10^6 masses may lose.
_ROUNDING = 1e-11

#: Below it `_ROUNDING` would no longer be small.
LEAST_DELTA = 1e-9


def accountant_name(rate: float) -> str:
    """Return what computes epsilon at this sampling rate, for the privacy label."""
    if rate == 1:
        return ACCOUNTANT
    return (
        f"privacy loss distributions (dp-accounting {metadata.version('dp-accounting')}, add or remove one, losses "
        f"rounded up to {FINE:g}) + discrete surcharge (docs/protocols/dp-sgd.md, theorem 3)"
    )


@dataclass(frozen=True, slots=True)
class SampledSums:
    """The accounting event: adaptive releases of integer noise on sums, each over a Poisson sample of its own.

    Args:
        sums: what each release is, given its sample.
        rate: q, the probability with which a release includes a record, 0 < q <= 1.
    """

    sums: NoisySums
    rate: float

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise UsageError(f"Expected rate={self.rate} above 0 and at most 1")


@dataclass(frozen=True)
class SampledComposition:
    """Several kinds of releases about the same records, sampled or not, each chosen in view of all before it.

    Args:
        parts: at least one.
        step: to which privacy losses are rounded up.

    Example:
        >>> sums = NoisySums(sensitivity=512, share_variance=3.04e6, shares=1, length=31, rounds=100)
        >>> round(SampledComposition((SampledSums(sums, 0.1),)).epsilon(9.1e-5), 3)
        1.0
    """

    parts: tuple[SampledSums, ...]
    step: float = FINE

    @cached_property
    def _sums(self) -> Composition:
        return Composition(tuple(part.sums for part in self.parts))

    @cached_property
    def _sampled(self) -> bool:
        return any(part.rate < 1 for part in self.parts)

    @cached_property
    def _profile(self) -> Callable[[float], float]:
        """Return delta(epsilon) of the Gaussian mechanisms behind, all together."""
        found: Any = None
        for part in self.parts:
            sums = part.sums
            # one of rate 1 composes exactly, so it is one release with all their mu
            repeats = sums.rounds if part.rate < 1 else 1
            deviation = math.sqrt(sums.rounded_variance * repeats / sums.rounds) / sums.sensitivity
            one: Any = privacy_loss_distribution.from_gaussian_mechanism(
                standard_deviation=deviation * (1 - 2.0**-48),
                value_discretization_interval=self.step,
                sampling_prob=min(1.0, part.rate * (1 + 2.0**-50)),
            )
            one = one.self_compose(repeats)
            found = one if found is None else found.compose(one)
        return cast("Callable[[float], float]", found.get_delta_for_epsilon)

    @property
    def surcharge(self) -> float:
        """Return H, what integers add to epsilon."""
        return self._sums.surcharge

    @property
    def mu(self) -> float | None:
        """Return the Gaussian-DP parameter; None if a part is sampled, which is no Gaussian mechanism."""
        return None if self._sampled else self._sums.mu

    def delta(self, epsilon: float) -> float:
        """Return a delta at which the releases are (epsilon, delta)-private together (theorem 3)."""
        if not self._sampled:
            return self._sums.delta(epsilon)
        surcharge = self.surcharge
        if epsilon < surcharge or epsilon > LARGEST_EPSILON:
            return 1.0
        tail = TAIL * math.fsum(
            part.sums.rounds * part.sums.length * (1 + part.sums.shares * (1 + math.exp(epsilon)))
            for part in self.parts
        )
        profile = float(self._profile(epsilon - surcharge)) + _ROUNDING
        return min(1.0, (1 + 2.0**-48) * (math.exp(surcharge) * profile + tail))

    def epsilon(self, delta: float) -> float:
        """Return the smallest epsilon at which `delta` suffices, rounded up; inf if there is none up to 32.

        Raises:
            PrivacyError: `delta` is below what floating-point convolutions can account for.
        """
        if not self._sampled:
            return self._sums.epsilon(delta)
        if delta < LEAST_DELTA:
            raise PrivacyError(f"Expected delta={delta} of at least {LEAST_DELTA:g} with sampling; or take rate 1")
        return least_epsilon(self.delta, delta)
