"""The plan of noisy stochastic gradient descent: sampler, clipped sum, noise and accounting from one frozen object.

`rounds` times, each silo draws a Poisson sample of its records by its own coins, sums their clipped integer gradients,
adds its share of the noise, and secure aggregation adds the silos. Nobody but the silo knows which records, or how
many, were in a sample. What divides the sum is the public expected batch, never a count.

With rate 1 this is the plan of full-batch descent: the same noise and the same account as `plan.PrivacyPlan`.

Paper: Abadi et al. (arXiv 1607.00133), algorithm 1 with a fixed denominator; theorem 3 of docs/protocols/dp-sgd.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from confide.crypto.noise import REACH, TAIL
from confide.crypto.random import Randomness
from confide.dp.accountant import check_target
from confide.dp.mechanisms import LARGEST_GRID, Clipped, default_grid
from confide.dp.plan import default_delta
from confide.dp.release import Asked, SumRelease, least_variances
from confide.dp.sampling import COARSE, FINE, LEAST_DELTA, SampledComposition, SampledSums, accountant_name
from confide.errors import PrivacyError, UsageError

Matrix = NDArray[np.float64]
Vector = NDArray[np.int64]

#: A coin is a uniform 64-bit word that is compared with the rate in units of 2^-64.
_WORDS = 1 << 64

_LARGEST_SUM = 1 << 62  # twice it is the ring of int64

#: What the label calls the mechanism.
SAMPLED_GRADIENTS = "Poisson-sampled gradient sums with discrete Gaussian noise (DP-SGD)"


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledPlan:
    """What is promised and everything that keeps the promise. Made by `calibrate`.

    Args:
        epsilon, delta: the promise for all rounds together, against the server with `colluding` silos.
        clip_norm: largest L2 norm C of one record's contribution.
        coin: q * 2^64, an integer: a release includes a record whose 64-bit word is below it.
        rounds: releases T; failed attempts whose sum may have been opened count.
        length: coordinates d of a vector.
        silos, quorum, colluding: N who add noise, the fewest in a released sum, the most who side with the server.
        expected_records: public size of the pooled data; q times it divides the sums. Never the data's own count.
        max_batch: public cap on a silo's sample; its sum is cut to what that many records can reach.
        grid: integer steps s per clip norm.
        share_variance: variance of one silo's noise in grid steps squared.
        before: what is released about the same records besides, and accounted together with the rounds.

    Example:
        >>> plan = SampledPlan.calibrate(
        ...     epsilon=1.0, clip_norm=1.0, rate=0.1, rounds=100, length=31, expected_records=4708
        ... )
        >>> round(plan.noise_multiplier, 2), plan.expected_batch
        (3.4, 470.8)
        >>> 0.99 < plan.epsilon_server <= 1.0
        True

    **Guarantees**: the sequence of all released sums is (epsilon, delta)-differentially private for records under add
    or remove one against the server with `colluding` silos, if the others follow the plan with secret randomness.
    **Leaks**: what epsilon allows; that the run took place, its rounds and survivors; nothing about counts of records.
    """

    epsilon: float
    delta: float
    clip_norm: float
    coin: int
    rounds: int
    length: int
    silos: int
    quorum: int
    colluding: int
    expected_records: int
    max_batch: int
    grid: int
    share_variance: float
    before: tuple[SampledSums, ...] = ()

    def __post_init__(self) -> None:
        check_target(self.epsilon, self.delta)
        _check(self.coin, self.clip_norm, self.grid, self.length, self.quorum, self.silos, self.colluding)
        if min(self.rounds, self.length, self.expected_records, self.max_batch) < 1:
            raise UsageError("Expected rounds, length, expected_records and max_batch of at least 1; all are public")
        if not self.epsilon_server <= self.epsilon:
            raise PrivacyError(
                f"Expected noise for epsilon={self.epsilon}, share_variance={self.share_variance:.6g} gives "
                f"{self.epsilon_server:.6g}; use SampledPlan.calibrate"
            )
        if 2 * self.silos * self.bound >= _LARGEST_SUM:
            raise PrivacyError(f"Expected sums below 2^62; lower max_batch={self.max_batch} or grid={self.grid}")

    @classmethod
    def calibrate(
        cls,
        *,
        epsilon: float,
        delta: float | None = None,
        clip_norm: float,
        rate: float,
        rounds: int,
        length: int,
        silos: int = 1,
        quorum: int | None = None,
        colluding: int = 0,
        expected_records: int,
        max_batch: int | None = None,
        grid: int | None = None,
        before: tuple[SampledSums, ...] = (),
    ) -> Self:
        """Return the plan with about the least noise that keeps (epsilon, delta), always on the safe side.

        Args:
            delta: None takes `expected_records` ** -1.1.
            rate: q, 0 < q <= 1; it is rounded down to a multiple of 2^-64.
            max_batch: None takes 4 * q * `expected_records`, and 64 at least.
            grid: None takes the smallest power of two above 50 sqrt(length).
            before: must spend less than epsilon.
            silos, quorum, colluding, clip_norm, rounds, length, expected_records: as in the class.

        Raises:
            UsageError: a value is out of its range.
            PrivacyError: nobody honest would carry noise, `before` spends everything, or the grid is too coarse.
        """
        quorum = silos if quorum is None else quorum
        delta = default_delta(expected_records) if delta is None else delta
        grid = default_grid(max(1, length)) if grid is None else grid
        coin = int(rate * _WORDS) if 0 < rate <= 1 else 0
        check_target(epsilon, delta)
        if rate < 1 and delta < LEAST_DELTA:
            raise PrivacyError(f"Expected delta={delta} of at least {LEAST_DELTA:g} with sampling; or take rate 1")
        _check(coin, clip_norm, grid, length, quorum, silos, colluding)
        if rate == 1 and not before:
            asked = Asked(share=1.0, grid=grid, length=length, rounds=rounds)
            (variance,) = least_variances(epsilon, delta, shares=quorum - colluding, kinds=[asked])
        else:
            asked = Asked(share=1.0, grid=grid, length=length, rounds=1)
            variance = _least_variance(
                epsilon, delta, rate=coin / _WORDS, rounds=rounds, asked=asked, shares=quorum - colluding, before=before
            )
        return cls(
            epsilon=epsilon,
            delta=delta,
            clip_norm=clip_norm,
            coin=coin,
            rounds=rounds,
            length=length,
            silos=silos,
            quorum=quorum,
            colluding=colluding,
            expected_records=expected_records,
            max_batch=max(64, math.ceil(4 * rate * expected_records)) if max_batch is None else max_batch,
            grid=grid,
            share_variance=variance,
            before=before,
        )

    @property
    def rate(self) -> float:
        """Return q, the probability that a release includes a record."""
        return self.coin / _WORDS

    @property
    def expected_batch(self) -> float:
        """Return q times `expected_records`, what divides a sum: a public constant."""
        return self.rate * self.expected_records

    @property
    def shares(self) -> int:
        """Return h = quorum - colluding, the shares of the noise that the claim rests on."""
        return self.quorum - self.colluding

    @property
    def release_of(self) -> SumRelease:
        """Return what one silo adds up and submits, given its sample."""
        return SumRelease(
            length=self.length,
            clip_norm=self.clip_norm,
            grid=self.grid,
            share_variance=self.share_variance,
            max_records=self.max_batch,
            rounds=self.rounds,
        )

    @property
    def bound(self) -> int:
        """Return the largest absolute value that a silo may submit."""
        return self.release_of.bound

    @property
    def noise_multiplier(self) -> float:
        """Return the deviation of the h shares of one release over its sensitivity."""
        return math.sqrt(self.shares * self.share_variance) / self.grid

    @property
    def epsilon_server(self) -> float:
        """Return epsilon against the server with `colluding` silos, who know all but h shares of the noise."""
        return self.composition(self.shares).epsilon(self.delta)

    @property
    def epsilon_outsiders(self) -> float:
        """Return epsilon against those who see only the released sums and models, at the same delta."""
        return self.composition(self.quorum).epsilon(self.delta)

    def event(self, shares: int, *, releases: int | None = None) -> SampledSums:
        """Return what is accounted of the rounds against an adversary who does not know `shares` shares of the noise.

        Args:
            shares: 1 to silos.
            releases: None stands for all `rounds`.
        """
        return SampledSums(self.release_of.event(shares, releases=releases), self.rate)

    def composition(self, shares: int, *, releases: int | None = None, step: float = FINE) -> SampledComposition:
        """Return what is accounted in all; see `event`."""
        rounds = () if releases == 0 else (self.event(shares, releases=releases),)
        return SampledComposition((*self.before, *rounds), step)

    def spent(self, releases: int) -> float:
        """Return the epsilon that `releases` of the rounds have spent against the server with `colluding` silos.

        Raises:
            PrivacyError: more releases than the plan has rounds.
        """
        if not 0 <= releases <= self.rounds:
            raise PrivacyError(f"Expected at most rounds={self.rounds} releases, got {releases}; make a new plan")
        if not releases and not self.before:
            return 0.0
        if releases == self.rounds:
            return self.epsilon_server
        return min(self.epsilon, self.composition(self.shares, releases=releases, step=COARSE).epsilon(self.delta))

    def sample(self, records: int, rng: Randomness) -> Vector:
        """Return which of a silo's records are in one release: int64, ascending, each with probability q.

        Args:
            records: how many the silo holds, >= 0.
            rng: the silo's own secret randomness. Draw afresh for every release, and tell nobody.

        **Guarantees**: one coin for each record, exactly of probability `coin` / 2^64, compared as integers.
        """
        words = np.frombuffer(rng.bytes(8 * records), "<u8")
        if self.coin == _WORDS:
            return np.arange(records, dtype=np.int64)
        return np.flatnonzero(words < np.uint64(self.coin)).astype(np.int64)

    def clipped_sum(self, per_record: Matrix) -> Clipped:
        """Return the sum of a sample's records, each clipped and rounded to the grid; see `SumRelease.clipped_sum`."""
        return self.release_of.clipped_sum(per_record)

    def release(self, clipped: Clipped, rng: Randomness, *, done: int) -> Vector:
        """Return what a silo submits: its clipped sum plus its share of the noise.

        Args:
            clipped: the clipped sum of one `sample`, on this plan's grid.
            rng: the silo's own secret randomness; a fixed seed voids the claim.
            done: the silo's own count of the releases it has made; it does not rely on the server to stop.

        Raises:
            PrivacyError: the rounds are spent, or `clipped` is another plan's.
        """
        if not 0 <= done < self.rounds:
            raise PrivacyError(f"Expected fewer than rounds={self.rounds} releases, got {done}; make a new plan")
        return self.release_of.release(clipped, rng)

    def decode(self, total: Vector) -> Matrix:
        """Return the noisy mean gradient over the public expected batch, float64."""
        return self.release_of.decode(total) / self.expected_batch

    def label_fields(self) -> dict[str, Any]:
        """Return this plan's fields of `guarantee.PrivacyLabel`."""
        sampled = (
            f"Poisson: each silo includes each of its records with probability {self.rate:.6g} in each release, by a "
            f"64-bit coin of its own that nobody sees; run as accounted. Expected batch {self.expected_batch:.6g}, "
            "public; samples of any size take the same path"
        )
        full = "full batch: every record is in every release; no amplification is claimed"
        return {
            "unit": "record",
            "relation": "add or remove one",
            "epsilon": self.epsilon,
            "delta": self.delta,
            "epsilon_outsiders": self.epsilon_outsiders,
            "epsilon_party": self.composition(self.quorum - 1).epsilon(self.delta) if self.quorum > 1 else None,
            "mu": self.composition(self.shares).mu,
            "mechanism": (
                f"{SAMPLED_GRADIENTS}: {self.rounds} releases, {self.grid} grid steps per clip norm, "
                f"share variance {self.share_variance:.6g}, {self.shares} of {self.silos} shares counted"
            ),
            "clip_norm": self.clip_norm,
            "noise_multiplier": self.noise_multiplier,
            "sampling": sampled if self.rate < 1 else full,
            "noise": (
                "integers from record to sum: exact discrete Gaussian, cut at "
                f"{REACH} deviations (below {TAIL:.1g} of its mass, charged to delta)"
            ),
            "accountant": f"confide {metadata.version('confide')}: {accountant_name(self.rate)}",
        }


def _check(coin: int, clip_norm: float, grid: int, length: int, quorum: int, silos: int, colluding: int) -> None:
    if not 1 <= coin <= _WORDS:
        raise UsageError("Expected a rate above 0 and at most 1; the public expected batch over the expected records")
    if not 1e-6 <= clip_norm <= 1e6:  # within what quotients of float32 can hold
        raise UsageError(f"Expected clip_norm={clip_norm} from 1e-6 to 1e6; 1 suits most networks")
    if length < 1 or not math.sqrt(length) <= grid <= LARGEST_GRID:
        raise UsageError(f"Expected length={length} of 1 or more, and grid={grid} from sqrt(length) to 2^30")
    if not 1 <= quorum <= silos:
        raise UsageError(f"Expected quorum={quorum} between 1 and silos={silos}; it is the fewest in a released sum")
    if not 0 <= colluding < quorum:
        raise PrivacyError(
            f"Expected colluding={colluding} below quorum={quorum}; somebody honest must carry the noise in every sum"
        )


def _least_variance(
    epsilon: float,
    delta: float,
    *,
    rate: float,
    rounds: int,
    asked: Asked,
    shares: int,
    before: tuple[SampledSums, ...],
) -> float:
    """Return about the smallest variance of a share that keeps (epsilon, delta), rounded up.

    Bisection runs on coarse losses; what it finds is then checked on fine ones and raised until it holds.
    """
    # never more noise than all rounds need without sampling, never less than one round needs
    (largest,) = least_variances(
        epsilon * (0.5 if before else 1.0),
        delta * (0.5 if before else 1.0),
        shares=shares,
        kinds=[Asked(share=1.0, grid=asked.grid, length=asked.length, rounds=rounds)],
    )

    def holds(variance: float, step: float) -> bool:
        sums = SumRelease(
            length=asked.length, clip_norm=1.0, grid=asked.grid, share_variance=variance, max_records=1, rounds=rounds
        ).event(shares)
        return SampledComposition((*before, SampledSums(sums, rate)), step).delta(epsilon * (1 - 1e-9)) <= delta

    high = largest
    while not holds(high, COARSE):
        high *= 2
        if high > 2.0**16 * largest:
            raise PrivacyError(f"Expected what is released before to spend less than epsilon={epsilon}; lower it")
    low = high
    while low > 9.0 and holds(low, COARSE):
        high, low = low, max(9.0, low / 4)
    while high / low > 1 + 1e-4:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if holds(middle, COARSE) else (middle, high)
    while not holds(high, FINE):
        high *= 1 + 1e-4
    return high
