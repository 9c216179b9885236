"""The privacy plan: one frozen object yields the clipped sum, the noise and the accounting, so they cannot disagree.

The mechanism is full-batch noisy gradient descent over silos: `rounds` times, each silo clips and rounds every record's
gradient to integers, sums them, adds its share of the noise, and secure aggregation adds the silos. The server learns

    sum over the records + sum over the silos of a discrete Gaussian of variance `share_variance`.

A released sum contains at least `quorum` silos, of which at most `colluding` tell the server their noise; the noise of
the other h = quorum - colluding is what the claim rests on. Silos beyond the quorum only add noise. The denominator of
the mean and every bound are public constants, never computed from records.

A plan may keep portions of its mu^2 for releases before the rounds: one of the sums that means and deviations follow
from, which prepares the features, and one of sufficient statistics, which the rounds start from. It is the same object,
so they cannot disagree: each knows its own noise, and epsilon is that of all together.

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

from confide.crypto.noise import REACH, TAIL
from confide.crypto.random import Randomness
from confide.dp.accountant import ACCOUNTANT, Composition, NoisySums, check_target
from confide.dp.mechanisms import LARGEST_GRID, Clipped, clipped_unit_sum, default_grid
from confide.dp.release import Asked, Portion, SumRelease, least_variances
from confide.errors import PrivacyError, UsageError

Matrix = NDArray[np.float64]
Vector = NDArray[np.int64]

#: The unit of a plan whose records are all somebody else's.
RECORD = "record"

#: What the label calls the mechanism.
GRADIENTS = "full-batch gradient sums with discrete Gaussian noise"
STATISTICS = "sufficient statistics with discrete Gaussian noise"
NEWTON = "sufficient statistics, then full-batch gradient sums, with discrete Gaussian noise"

_LARGEST_SUM = 1 << 62  # twice it is the ring of int64


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
        preparation: the release before the training, if there is one; it counts from the start, and within epsilon.
        statistics: the release that the rounds start from, if there is one: the first of the training.
        unit: "record", or the column that groups records: then each group gives one vector, and adding or removing all
            of its records is what epsilon is about.
        parties_per_unit: the most silos k that hold records of one unit. Nobody can check it: it is assumed.
        relation, mechanism: what the label says.

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
    preparation: SumRelease | None = None
    statistics: SumRelease | None = None
    unit: str = RECORD
    parties_per_unit: int = 1
    relation: str = "add or remove one"
    mechanism: str = GRADIENTS

    def __post_init__(self) -> None:
        check_target(self.epsilon, self.delta)
        if not 1 <= self.parties_per_unit <= self.silos or (self.unit == RECORD and self.parties_per_unit > 1):
            raise UsageError(
                f"Expected parties_per_unit={self.parties_per_unit} from 1 to the {self.silos} silos, and 1 for records"
            )
        if self.unit != RECORD and self.preparation is not None:
            raise PrivacyError(f'Expected no release before the training with unit="{self.unit}"; it counts records')
        _check_parties(self.silos, self.quorum, self.colluding)
        _check_sizes(self.clip_norm, self.rounds, self.length, self.grid, self.expected_records, self.max_records)
        if not self.epsilon_server <= self.epsilon:
            raise PrivacyError(
                f"Expected noise for epsilon={self.epsilon}, share_variance={self.share_variance:.6g} gives "
                f"{self.epsilon_server:.6g}; use PrivacyPlan.calibrate"
            )
        for kind in (*self._before, *self._first, self.training):
            if 2 * self.silos * kind.bound >= _LARGEST_SUM:
                raise PrivacyError(
                    f"Expected sums below 2^62, a silo may submit {kind.bound}; lower max_records={self.max_records}, "
                    f"grid={kind.grid} or rounds={self.rounds}"
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
        preparation: Portion | None = None,
        statistics: Portion | None = None,
        unit: str = RECORD,
        parties_per_unit: int = 1,
        mechanism: str = GRADIENTS,
    ) -> Self:
        """Return the plan with the least noise that keeps (epsilon, delta).

        Args:
            delta: None takes `expected_records` ** -1.1.
            silos, quorum, colluding: the defaults are the central model, one holder who adds all the noise.
            max_records: None takes 4 * `expected_records`.
            grid: None takes the smallest power of two above 50 sqrt(length).
            mechanism: what is released, for the label.
            preparation: what to keep for one release before the training; None keeps nothing.
            statistics: the same for one release that the rounds start from.
            unit: "record", or the column that groups records.
            parties_per_unit: how many silos may hold records of one unit.
            epsilon, clip_norm, rounds, length, expected_records: as in the class.

        Raises:
            UsageError: a value is out of its range.
            PrivacyError: nobody honest would carry noise, the grid is too coarse for the claim, or sums overflow.
        """
        quorum = silos if quorum is None else quorum
        delta = default_delta(expected_records) if delta is None else delta
        grid = default_grid(max(1, length)) << (parties_per_unit - 1).bit_length() if grid is None else grid
        max_records = 4 * expected_records if max_records is None else max_records
        check_target(epsilon, delta)
        _check_parties(silos, quorum, colluding)
        _check_sizes(clip_norm, rounds, length, grid, expected_records, max_records)
        portions = [portion for portion in (preparation, statistics) if portion is not None]
        kinds = [
            Asked(share=part.share, grid=part.grid or default_grid(part.length), length=part.length, rounds=1)
            for part in portions
        ]
        left = 1 - math.fsum(part.share for part in portions)
        if not left > 0:
            raise UsageError(f"Expected portions of mu^2 below 1 in all, got {1 - left}; the rounds get what is left")
        kinds.append(Asked(share=left, grid=grid, length=length, rounds=rounds))
        *before, variance = least_variances(epsilon, delta, shares=quorum - colluding, kinds=kinds)
        made = [
            SumRelease(
                length=part.length,
                clip_norm=part.clip_norm,
                grid=kind.grid,
                share_variance=one,
                max_records=max_records,
                of=part.of,
            )
            for part, kind, one in zip(portions, kinds, before, strict=False)
        ]
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
            share_variance=variance,
            preparation=made.pop(0) if preparation else None,
            statistics=made.pop(0) if statistics else None,
            unit=unit,
            parties_per_unit=parties_per_unit,
            relation=_relation(unit, parties_per_unit),
            mechanism=mechanism,
        )

    @property
    def shares(self) -> int:
        """Return h = quorum - colluding, the shares of the noise that the claim rests on."""
        return self.quorum - self.colluding

    @property
    def training(self) -> SumRelease:
        """Return the releases of the rounds."""
        return SumRelease(
            length=self.length,
            clip_norm=self.clip_norm,
            grid=self.grid,
            share_variance=self.share_variance,
            max_records=self.max_records,
            rounds=self.rounds,
        )

    @property
    def releases(self) -> int:
        """Return how many releases the training makes: the rounds, and before them the statistics if there are any."""
        return len(self._first) + self.rounds

    @property
    def _before(self) -> tuple[SumRelease, ...]:
        return () if self.preparation is None else (self.preparation,)

    @property
    def _first(self) -> tuple[SumRelease, ...]:
        return () if self.statistics is None else (self.statistics,)

    def kind(self, done: int) -> SumRelease:
        """Return what kind of release comes after `done` of the training's.

        Raises:
            PrivacyError: none does.
        """
        self.check_count(done + 1)
        return self._first[done] if done < len(self._first) else self.training

    @property
    def bound(self) -> int:
        """Return the largest absolute value that a silo may submit: `max_records` records and the noise's reach."""
        return self.training.bound

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

    def event(self, shares: int, *, releases: int | None = None) -> NoisySums:
        """Return what is accounted of the rounds against an adversary who does not know `shares` shares of the noise.

        Args:
            shares: 1 to silos.
            releases: None stands for all `rounds`.
        """
        return self.training.event(shares, releases=releases)

    def composition(self, shares: int, *, releases: int | None = None) -> Composition:
        """Return what is accounted of `releases` of the training's (None: all) and of the one before; see `event`."""
        made = self.releases if releases is None else releases
        kinds = self._before if not made else (*self._before, *self._first)
        rounds = made - len(self._first)
        last = (self.event(shares, releases=rounds),) if rounds > 0 else ()
        return Composition((*(kind.event(shares) for kind in kinds), *last))

    def spent(self, releases: int) -> float:
        """Return the epsilon that `releases` of the training's have spent against the server with `colluding` silos.

        The release before the training comes first, so it is always counted: `spent(0)` is what it costs alone.

        Raises:
            PrivacyError: more releases than the plan has.
        """
        self.check_count(releases)
        if not releases and not self._before:
            return 0.0
        return self.composition(self.shares, releases=releases).epsilon(self.delta)

    def check_count(self, releases: int) -> None:
        """Raise PrivacyError unless the training has as many releases."""
        if not 0 <= releases <= self.releases:
            raise PrivacyError(f"Expected at most releases={self.releases}, got {releases}; make a new plan")

    def clipped_sum(self, per_record: Matrix, units: Vector | None = None) -> Clipped:
        """Return the sum of a silo's units, each clipped and rounded to the grid: what `release` takes.

        Args:
            per_record: float64, shape (n, length): one gradient for each record, n >= 0.
            units: int64, shape (n,), equal for records of one unit; None where the unit is a record.

        Raises:
            PrivacyError: units are there for a plan whose unit is a record, or the other way round.
        """
        if (units is None) != (self.unit == RECORD):
            raise PrivacyError(f"Expected the units of the records if and only if unit={self.unit} is no record")
        if units is None:
            return self.training.clipped_sum(per_record)
        return clipped_unit_sum(
            per_record, units, clip_norm=self.clip_norm, grid=self.grid, parties=self.parties_per_unit
        )

    def noise(self, rng: Randomness) -> Vector:
        """Return one silo's share of the noise for one release: int64, shape (length,). Draw it afresh every time."""
        return self.training.noise(rng)

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
        return self.training.release(clipped, rng)

    def decode(self, total: Vector) -> Matrix:
        """Return the noisy gradient sum, float64, from the sum of what the silos released."""
        return self.training.decode(total)

    def label_fields(self) -> dict[str, Any]:
        """Return this plan's fields of `guarantee.PrivacyLabel`."""
        charged: dict[str, Any] = {}
        if self.preparation is not None:
            event = self.preparation.event(self.shares)
            charged = {
                "preprocessing": (
                    f"{self.preparation.of} from one noisy sum ({self.preparation.length} numbers, clip "
                    f"norm {self.preparation.clip_norm:.4g}) before the training; charged: it is part of epsilon and "
                    f"took {100 * (event.mu / self.composition(self.shares).mu) ** 2:.3g} % of mu^2"
                ),
                "preprocessing_epsilon": event.epsilon(self.delta),
            }
        started = ""
        if self.statistics is not None:
            part = 100 * (self.statistics.event(self.shares).mu / self.composition(self.shares).mu) ** 2
            started = f"1 release of {self.statistics.length} sums with {part:.3g} % of mu^2, then "
        return {
            "unit": self.unit,
            "relation": self.relation,
            "epsilon": self.epsilon,
            "delta": self.delta,
            "epsilon_outsiders": self.epsilon_outsiders,
            "epsilon_party": self.composition(self.quorum - 1).epsilon(self.delta) if self.quorum > 1 else None,
            "mu": self.composition(self.shares).mu,
            "mechanism": (
                f"{self.mechanism}: {started}{self.rounds} full-batch releases, {self.grid} grid steps per clip norm, "
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
            **charged,
        }


class Releases:
    """One silo's own count of what it has released under a plan: it does not rely on the server to stop.

    Args:
        plan: the plan.
        done: releases before this object was made, from the silo's store.
        prepared: whether the release before the training was made.
    """

    def __init__(self, plan: PrivacyPlan, *, done: int = 0, prepared: bool = False) -> None:
        plan.check_count(done)
        self._plan = plan
        self.done, self.prepared = done, prepared

    def prepare(self, clipped: Clipped, rng: Randomness) -> Vector:
        """Count the release before the training, then return it.

        Raises:
            PrivacyError: it was made, the training has begun, or the plan has none; or as `SumRelease.release`.
        """
        kind = self._plan.preparation
        if kind is None or self.prepared or self.done:
            raise PrivacyError("Expected one release before the training at most, and a plan that has it; make a plan")
        self.prepared = True
        return kind.release(clipped, rng)

    def release(self, clipped: Clipped, rng: Randomness) -> Vector:
        """Count a release, then return it.

        Raises:
            PrivacyError: the plan's releases are spent, or as `SumRelease.release`.
        """
        kind = self._plan.kind(self.done)
        self.done += 1
        return kind.release(clipped, rng)


def _relation(unit: str, parties: int) -> str:
    if unit == RECORD:
        return "add or remove one"
    where = "one party" if parties == 1 else f"{parties} parties"
    return f"add or remove one with all its records, at {where} at most: this is assumed, nobody can check it"


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
    if not 1e-60 <= clip_norm <= 1e60:
        raise UsageError(f"Expected clip_norm={clip_norm} from 1e-60 to 1e60; 0.5 suits unit rows")
    counts = {"rounds": rounds, "length": length, "expected_records": expected_records, "max_records": max_records}
    for name, count in counts.items():
        if count < 1:
            raise UsageError(f"Expected {name}={count} to be at least 1; it is a public constant")
    if not math.sqrt(length) <= grid <= LARGEST_GRID:
        raise UsageError(
            f"Expected grid={grid} from sqrt(length) to 2^30; {default_grid(length)} costs 1 % of the clip"
        )
