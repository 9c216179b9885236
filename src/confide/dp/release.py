"""One kind of release: sums of clipped integer vectors under shares of integer noise. A plan holds one or two of them.

A `PrivacyPlan` may take one release before the training (means and deviations of the columns), one at its start
(sufficient statistics) and many during it. Each
kind has its own length, grid and noise; `least_variances` sizes the noise of all kinds together, so that their
composition (`accountant.Composition`) keeps one (epsilon, delta).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from confide.crypto.noise import MAX_DEVIATION, discrete_gaussian, largest_draw
from confide.crypto.random import Randomness
from confide.dp.accountant import LEAST_SHARE_VARIANCE, Composition, NoisySums, gaussian_mu
from confide.dp.mechanisms import Clipped, clipped_sum
from confide.errors import PrivacyError, UsageError

Matrix = NDArray[np.float64]
Vector = NDArray[np.int64]

_LARGEST_SURCHARGE = 0.01  # of epsilon; above it a finer grid is the better buy


@dataclass(frozen=True, slots=True, kw_only=True)
class Portion:
    """What a plan is asked to keep for one release before the training.

    Args:
        share: of the plan's mu^2, 0 < share < 1.
        length: numbers in the vector, >= 1.
        clip_norm: largest L2 norm of one record's vector, > 0.
        of: what it is released for, for the label.
        grid: integer steps per clip norm; None takes `mechanisms.default_grid`.
    """

    share: float
    length: int
    clip_norm: float
    of: str = "mean and deviation of every number"
    grid: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise UsageError(f"Expected share={self.share} between 0 and 1; 0.1 leaves 95 % of the training's mu")


@dataclass(frozen=True, slots=True, kw_only=True)
class SumRelease:
    """What a silo adds up, and the noise that it adds.

    Args:
        length: coordinates d of a vector.
        clip_norm: largest L2 norm C of one record's vector.
        grid: integer steps s per clip norm.
        share_variance: variance of one silo's noise in grid steps squared.
        max_records: public cap on a silo's records; a silo's sum is cut to what that many records can reach.
        rounds: how many releases of this kind there are.
        of: what it is released for, for the label.
    """

    length: int
    clip_norm: float
    grid: int
    share_variance: float
    max_records: int
    rounds: int = 1
    of: str = ""

    def __post_init__(self) -> None:
        if self.share_variance > MAX_DEVIATION**2:
            raise PrivacyError(
                f"Expected noise of at most 2^40 grid steps; take a coarser grid than {self.grid}, fewer rounds than "
                f"{self.rounds} or a larger epsilon"
            )

    @property
    def bound(self) -> int:
        """Return the largest absolute value of an entry that a silo submits: what sizes the ring."""
        return self.max_records * self.grid + largest_draw(self.share_variance)

    def event(self, shares: int, *, releases: int | None = None) -> NoisySums:
        """Return what is accounted against an adversary who does not know `shares` shares of the noise."""
        return NoisySums(
            sensitivity=self.grid,
            share_variance=self.share_variance,
            shares=shares,
            length=self.length,
            rounds=self.rounds if releases is None else releases,
        )

    def clipped_sum(self, per_record: Matrix) -> Clipped:
        """Return the sum of a silo's records, each clipped and rounded to the grid: what `release` takes.

        Args:
            per_record: float64, shape (n, length): one vector for each record, n >= 0.
        """
        if per_record.ndim != 2 or per_record.shape[1] != self.length:
            raise UsageError(f"Expected rows of length={self.length}, got shape {per_record.shape}")
        return clipped_sum(per_record, clip_norm=self.clip_norm, grid=self.grid)

    def noise(self, rng: Randomness) -> Vector:
        """Return one silo's share of the noise for one release: int64, shape (length,). Draw it afresh every time."""
        return discrete_gaussian(self.share_variance, self.length, rng)

    def release(self, clipped: Clipped, rng: Randomness) -> Vector:
        """Return what a silo submits: its clipped sum plus its share of the noise, as `PrivacyPlan.release` says.

        Raises:
            PrivacyError: `clipped` is anything but a sum of this kind.
        """
        mine = (self.grid, self.clip_norm, (self.length,))
        if type(clipped) is not Clipped or (clipped.sensitivity, clipped.clip_norm, clipped.total.shape) != mine:
            raise PrivacyError("Expected what clipped_sum of this plan returned; nothing else has a known sensitivity")
        reach = self.max_records * self.grid
        return np.clip(clipped.total, -reach, reach) + self.noise(rng)

    def decode(self, total: Vector) -> Matrix:
        """Return the noisy sum, float64, from the sum of what the silos released."""
        return total.astype(np.float64) * (self.clip_norm / self.grid)

    def deviation(self, shares: int) -> float:
        """Return the standard deviation of the noise on an entry of `decode` when `shares` silos have added theirs."""
        return (shares * self.share_variance) ** 0.5 * self.clip_norm / self.grid


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What `least_variances` must know of one kind of release: all but its noise, and its share of mu^2."""

    share: float
    grid: int
    length: int
    rounds: int


def least_variances(epsilon: float, delta: float, *, shares: int, kinds: Sequence[Asked]) -> tuple[float, ...]:
    """Return the smallest variance of a share for each kind that keeps (epsilon, delta) together, rounded up.

    Args:
        shares: shares of the noise that the claim rests on.
        kinds: their shares of mu^2 add up to 1.

    Raises:
        PrivacyError: a grid is too coarse for theorem 1, or so coarse that its surcharge counts; or too fine to draw.
    """
    mu = gaussian_mu(epsilon, delta)
    # A continuous Gaussian's variance: the sum of integers needs at least this, and hardly more.
    least = [kind.rounds * (kind.grid / mu) ** 2 / shares / kind.share for kind in kinds]

    def together(factor: float) -> Composition:
        return Composition(
            tuple(
                NoisySums(
                    sensitivity=kind.grid,
                    share_variance=factor * variance,
                    shares=shares,
                    length=kind.length,
                    rounds=kind.rounds,
                )
                for kind, variance in zip(kinds, least, strict=True)
            )
        )

    goal = epsilon * (1 - 1e-12)  # so that epsilon as bisected from the variance found does not round above the target
    low, high = 1.0, 1.1
    if min(least) < LEAST_SHARE_VARIANCE or together(low).surcharge > _LARGEST_SURCHARGE * epsilon:
        raise PrivacyError(
            f"Expected a finer grid than {min(kind.grid for kind in kinds)} steps per clip norm; at epsilon={epsilon} "
            "take 16 times it"
        )
    if together(high).delta(goal) > delta:
        raise PrivacyError(f"Expected a larger delta than {delta}; the tail of integer noise alone may exceed it")
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if together(middle).delta(goal) <= delta else (middle, high)
    return tuple(high * variance for variance in least)
