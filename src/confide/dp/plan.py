"""The privacy plan: one frozen object yields the clipped sum, the noise and the accounting, so they cannot disagree.

The mechanism is full-batch noisy gradient descent over silos: `rounds` times, each silo clips and rounds every record's
gradient to integers, sums them, adds its share of the noise, and secure aggregation adds the silos. The server learns

    sum over the records + sum over the silos of a discrete Gaussian of variance `share_variance`.

A released sum contains at least `quorum` silos, of which at most `colluding` tell the server their noise; the noise of
the other h = quorum - colluding is what the claim rests on. Silos beyond the quorum only add noise. The denominator of
the mean and every bound are public constants, never computed from records.

Proof: docs/protocols/dp-gradient.md. Full batch, so no sampling is claimed; `add or remove one`, so the distance of
neighbours is one clip norm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from confide.crypto.noise import MAX_DEVIATION, REACH, TAIL, discrete_gaussian, largest_draw
from confide.crypto.random import Randomness
from confide.dp.accountant import ACCOUNTANT, LEAST_SHARE_VARIANCE, NoisySums, check_target, gaussian_mu
from confide.dp.mechanisms import LARGEST_GRID, Clipped, clipped_sum, default_grid
from confide.errors import PrivacyError, UsageError

Matrix = NDArray[np.float64]
Vector = NDArray[np.int64]

_LARGEST_SUM = 1 << 62  # twice it is the ring of int64
_LARGEST_SURCHARGE = 0.01  # of epsilon; above it a finer grid is the better buy


def default_delta(expected_records: int) -> float:
    """Return `expected_records` ** -1.1, below one over the records: there a mechanism may publish a whole record."""
    return math.pow(max(2, expected_records), -1.1)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyPlan:
    """What is promised and everything that keeps the promise. Made by `calibrate`.

    Args:
        epsilon, delta: the promise for all rounds together, against the server with `colluding` silos.
        clip_norm: largest L2 norm C of one record's contribution.
        rounds: releases T; failed attempts whose sum may have been opened count.
        length: coordinates d of a vector.
        silos, quorum, colluding: N who add noise, the fewest in a released sum, the most who side with the server.
        expected_records: public size of the pooled data, the denominator of the mean. Never the data's own count.
        max_records: public cap on a silo's records; a silo's sum is cut to what that many records can reach.
        grid: integer steps s per clip norm.
        share_variance: variance of one silo's noise in grid steps squared.
        unit, relation, mechanism: what the label says.

    Example:
        >>> plan = PrivacyPlan.calibrate(
        ...     epsilon=1.0, delta=1e-5, clip_norm=0.5, rounds=20, length=31,
        ...     silos=4, quorum=3, colluding=1, expected_records=455,
        ... )
        >>> plan.shares, plan.grid, round(plan.noise_multiplier, 2)
        (2, 512, 16.68)
        >>> 0.999 < plan.epsilon_server <= 1.0 and plan.epsilon_outsiders < plan.epsilon_server
        True

    **Guarantees**: the sequence of all released sums is (epsilon, delta)-differentially private for `unit` under
    `relation` against the server with `colluding` silos, if the others follow the plan with secret randomness from the
    operating system; no released value depends on a record except through a clipped sum with noise.
    **Leaks**: what epsilon allows; that the run took place, its rounds and survivors; nothing about record counts.
    """

    epsilon: float
    delta: float
    clip_norm: float
    rounds: int
    length: int
    silos: int
    quorum: int
    colluding: int
    expected_records: int
    max_records: int
    grid: int
    share_variance: float
    unit: str = "record"
    relation: str = "add or remove one"
    mechanism: str = "full-batch gradient sums with discrete Gaussian noise"

    def __post_init__(self) -> None:
        check_target(self.epsilon, self.delta)
        _check_parties(self.silos, self.quorum, self.colluding)
        _check_sizes(self.clip_norm, self.rounds, self.length, self.grid, self.expected_records, self.max_records)
        if not self.epsilon_server <= self.epsilon:
            raise PrivacyError(
                f"Expected noise for epsilon={self.epsilon}, share_variance={self.share_variance:.6g} gives "
                f"{self.epsilon_server:.6g}; use PrivacyPlan.calibrate"
            )
        if self.share_variance > MAX_DEVIATION**2:
            raise PrivacyError(
                f"Expected noise of at most 2^40 grid steps; take a coarser grid than {self.grid}, fewer rounds than "
                f"{self.rounds} or a larger epsilon"
            )
        if 2 * self.silos * self.bound >= _LARGEST_SUM:
            raise PrivacyError(
                f"Expected sums below 2^62, a silo may submit {self.bound}; lower max_records={self.max_records}, "
                f"grid={self.grid} or rounds={self.rounds}"
            )

    @classmethod
    def calibrate(
        cls,
        *,
        epsilon: float,
        delta: float | None = None,
        clip_norm: float,
        rounds: int,
        length: int,
        silos: int = 1,
        quorum: int | None = None,
        colluding: int = 0,
        expected_records: int,
        max_records: int | None = None,
        grid: int | None = None,
        unit: str = "record",
    ) -> Self:
        """Return the plan with the least noise that keeps (epsilon, delta).

        Args:
            delta: None takes `expected_records` ** -1.1.
            silos, quorum, colluding: the defaults are the central model, one holder who adds all the noise.
            max_records: None takes 4 * `expected_records`.
            grid: None takes the smallest power of two above 50 sqrt(length).
            unit: "record", or the column that groups records, if each group gives one vector.
            epsilon, clip_norm, rounds, length, expected_records: as in the class.

        Raises:
            UsageError: a value is out of its range.
            PrivacyError: nobody honest would carry noise, the grid is too coarse for the claim, or sums overflow.
        """
        quorum = silos if quorum is None else quorum
        delta = default_delta(expected_records) if delta is None else delta
        grid = default_grid(max(1, length)) if grid is None else grid
        max_records = 4 * expected_records if max_records is None else max_records
        check_target(epsilon, delta)
        _check_parties(silos, quorum, colluding)
        _check_sizes(clip_norm, rounds, length, grid, expected_records, max_records)
        return cls(
            epsilon=epsilon,
            delta=delta,
            clip_norm=clip_norm,
            rounds=rounds,
            length=length,
            silos=silos,
            quorum=quorum,
            colluding=colluding,
            expected_records=expected_records,
            max_records=max_records,
            grid=grid,
            share_variance=_least_share_variance(
                epsilon, delta, grid=grid, shares=quorum - colluding, length=length, rounds=rounds
            ),
            unit=unit,
        )

    @property
    def shares(self) -> int:
        """Return h = quorum - colluding, the shares of the noise that the claim rests on."""
        return self.quorum - self.colluding

    @property
    def bound(self) -> int:
        """Return the largest absolute value that a silo may submit: `max_records` records and the noise's reach."""
        return self.max_records * self.grid + largest_draw(self.share_variance)

    @property
    def noise_multiplier(self) -> float:
        """Return the deviation of the h shares of one release over its sensitivity."""
        return math.sqrt(self.shares * self.share_variance) / self.grid

    @property
    def epsilon_server(self) -> float:
        """Return epsilon against the server with `colluding` silos, who know all but h shares of the noise."""
        return self.event(self.shares).epsilon(self.delta)

    @property
    def epsilon_outsiders(self) -> float:
        """Return epsilon against those who see only the released sums and models, at the same delta."""
        return self.event(self.quorum).epsilon(self.delta)

    def event(self, shares: int, *, releases: int | None = None) -> NoisySums:
        """Return what is accounted against an adversary who does not know `shares` shares of the noise.

        Args:
            shares: 1 to silos.
            releases: None stands for all `rounds`.
        """
        return NoisySums(
            sensitivity=self.grid,
            share_variance=self.share_variance,
            shares=shares,
            length=self.length,
            rounds=self.rounds if releases is None else releases,
        )

    def spent(self, releases: int) -> float:
        """Return the epsilon that `releases` releases have spent against the server with `colluding` silos.

        Raises:
            PrivacyError: more releases than the plan has rounds.
        """
        if not 0 <= releases <= self.rounds:
            raise PrivacyError(f"Expected at most rounds={self.rounds} releases, got {releases}; make a new plan")
        return self.event(self.shares, releases=releases).epsilon(self.delta) if releases else 0.0

    def clipped_sum(self, per_record: Matrix) -> Clipped:
        """Return the sum of a silo's records, each clipped and rounded to the grid: what `release` takes.

        Args:
            per_record: float64, shape (n, length): one gradient for each record, n >= 0.
        """
        if per_record.ndim != 2 or per_record.shape[1] != self.length:
            raise UsageError(f"Expected rows of length={self.length}, got shape {per_record.shape}")
        return clipped_sum(per_record, clip_norm=self.clip_norm, grid=self.grid)

    def noise(self, rng: Randomness) -> Vector:
        """Return one silo's share of the noise for one release: int64, shape (length,). Draw it afresh every time."""
        return discrete_gaussian(self.share_variance, self.length, rng)

    def release(self, clipped: Clipped, rng: Randomness) -> Vector:
        """Return what a silo submits to the aggregation: its clipped sum plus its share of the noise.

        Entries of the sum beyond what `max_records` records can reach are cut. Cutting moves no two sums further apart,
        so it costs no privacy, and nobody can tell from a refusal that a silo holds more records.

        Args:
            clipped: from `clipped_sum` of this plan.
            rng: the silo's own secret randomness; a fixed seed voids the claim.

        Returns:
            int64, shape (length,), entries within `bound`.

        Raises:
            PrivacyError: `clipped` is anything but this plan's clipped sum.
        """
        mine = (self.grid, self.clip_norm, (self.length,))
        if type(clipped) is not Clipped or (clipped.sensitivity, clipped.clip_norm, clipped.total.shape) != mine:
            raise PrivacyError("Expected what clipped_sum of this plan returned; nothing else has a known sensitivity")
        reach = self.max_records * self.grid
        return np.clip(clipped.total, -reach, reach) + self.noise(rng)

    def decode(self, total: Vector) -> Matrix:
        """Return the noisy gradient sum, float64, from the sum of what the silos released."""
        return total.astype(np.float64) * (self.clip_norm / self.grid)

    def label_fields(self) -> dict[str, Any]:
        """Return this plan's fields of `guarantee.PrivacyLabel`."""
        event = self.event(self.shares)
        return {
            "unit": self.unit,
            "relation": self.relation,
            "epsilon": self.epsilon,
            "delta": self.delta,
            "epsilon_outsiders": self.epsilon_outsiders,
            "epsilon_party": self.event(self.quorum - 1).epsilon(self.delta) if self.quorum > 1 else None,
            "mu": event.mu,
            "mechanism": (
                f"{self.mechanism}: {self.rounds} full-batch releases, {self.grid} grid steps per clip norm, "
                f"share variance {self.share_variance:.6g}, {self.shares} of {self.silos} shares counted"
            ),
            "clip_norm": self.clip_norm,
            "noise_multiplier": self.noise_multiplier,
            "sampling": "full batch: every record is in every release; no amplification is claimed",
            "noise": (
                "integers from record to sum: exact discrete Gaussian, cut at "
                f"{REACH} deviations (below {TAIL:.1g} of its mass, charged to delta)"
            ),
            "accountant": f"confide {metadata.version('confide')}: {ACCOUNTANT}",
        }


class Releases:
    """One silo's own count of what it has released under a plan: it does not rely on the server to stop.

    Args:
        plan: the plan.
        done: releases before this object was made, from the silo's store.
    """

    def __init__(self, plan: PrivacyPlan, *, done: int = 0) -> None:
        plan.spent(done)
        self._plan = plan
        self.done = done

    def release(self, clipped: Clipped, rng: Randomness) -> Vector:
        """Count a release, then return it.

        Raises:
            PrivacyError: the plan's rounds are spent, or as `PrivacyPlan.release`.
        """
        self._plan.spent(self.done + 1)
        self.done += 1
        return self._plan.release(clipped, rng)


def _check_parties(silos: int, quorum: int, colluding: int) -> None:
    if not 1 <= quorum <= silos:
        raise UsageError(f"Expected quorum={quorum} between 1 and silos={silos}; it is the fewest in a released sum")
    if not 0 <= colluding < quorum:
        raise PrivacyError(
            f"Expected colluding={colluding} below quorum={quorum}; somebody honest must carry the noise in every sum"
        )


def _check_sizes(
    clip_norm: float, rounds: int, length: int, grid: int, expected_records: int, max_records: int
) -> None:
    if not 0 < clip_norm < math.inf:
        raise UsageError(f"Expected clip_norm={clip_norm} to be finite and above 0; 0.5 suits unit rows")
    counts = {"rounds": rounds, "length": length, "expected_records": expected_records, "max_records": max_records}
    for name, count in counts.items():
        if count < 1:
            raise UsageError(f"Expected {name}={count} to be at least 1; it is a public constant")
    if not math.sqrt(length) <= grid <= LARGEST_GRID:
        raise UsageError(
            f"Expected grid={grid} from sqrt(length) to 2^30; {default_grid(length)} costs 1 % of the clip"
        )


def _least_share_variance(epsilon: float, delta: float, *, grid: int, shares: int, length: int, rounds: int) -> float:
    """Return the smallest variance of a share that keeps (epsilon, delta), rounded up.

    Raises:
        PrivacyError: the grid is too coarse for theorem 1, or so coarse that its surcharge counts; or too fine to draw.
    """

    def event(variance: float) -> NoisySums:
        return NoisySums(sensitivity=grid, share_variance=variance, shares=shares, length=length, rounds=rounds)

    goal = epsilon * (1 - 1e-12)  # so that epsilon as bisected from the variance found does not round above the target
    # A continuous Gaussian's variance: the sum of integers needs at least this, and hardly more.
    low = rounds * (grid / gaussian_mu(epsilon, delta)) ** 2 / shares
    high = 1.1 * low
    if low < LEAST_SHARE_VARIANCE or event(low).surcharge > _LARGEST_SURCHARGE * epsilon:
        raise PrivacyError(
            f"Expected a finer grid than {grid} steps per clip norm; at epsilon={epsilon} take 16 times it"
        )
    if event(high).delta(goal) > delta:
        raise PrivacyError(f"Expected a larger delta than {delta}; the tail of integer noise alone may exceed it")
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if event(middle).delta(goal) <= delta else (middle, high)
    return high
