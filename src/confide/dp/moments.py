"""Sufficient statistics: the sums from which least squares, ridge regression and discriminant analysis all follow.

A record is a row of d features x and a vector of k targets y. What is summed over the records is

    the upper triangle of x x^T, and x y^T:   d (d + 1) / 2 + d k numbers.

Rows are clipped and rounded to integers X of norm at most g first; what follows is integer arithmetic. A target is one
of a record's k marks, +1 or -1 on one place and 0 elsewhere, written as the integer t. The numbers that are summed are

    5 X_i^2,   7 X_i X_j for i < j,   t X_i for the marked place.

7 / 5 stands for sqrt(2): an entry off the diagonal stands for two of the symmetric matrix. So the squares of a record's
first two kinds add up to 25 sum X_i^4 + 49 sum_{i<j} X_i^2 X_j^2 <= 25 (sum X_i^2)^2 <= (5 g^2)^2, since 49 < 50, and
those of the third to at most (t g)^2. Adding or removing one record therefore moves the sums by an L2 norm of at most

    s = ceil(sqrt((5 g^2)^2 + (t g)^2)),

exactly, whatever the record and whatever the others. Where a unit is more than a record (a patient with several), its
records get integer weights that add up to W at most, and the unit moves the sums by W s at most: a norm is convex.
It All of it is exact: the integers of a block of records stay below
2^53, where float64's matrix product has no rounding in any order.

Source: Wang, Revisiting differentially private linear regression (UAI 2018), algorithms 1 and 2: one release of both
sums, and a ridge against the noise; here with one sensitivity for both, since they leave together.

    paper   here                              paper   here
    X^T X   gram                              X^T y   cross
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from confide.dp.mechanisms import Clipped, ranks, to_grid
from confide.errors import UsageError

Matrix = NDArray[np.float64]
Vector = NDArray[np.int64]

_DIAGONAL, _BESIDE = 5, 7  # 7/5 is just below sqrt(2)
_EXACT_BITS = 53
_BLOCK_RECORDS = 1 << 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """The sums over records of d features, each with one mark among k targets.

    Args:
        features: d, a constant one included if the model has a bias, >= 1.
        targets: k, >= 1.
        norm: largest L2 norm of a row of features, > 0; longer rows are scaled down.
        grid: g, integer steps per `norm`, a few times 50 sqrt(d) at most 2^13 where noise is added, 2^18 at most.
        parts: W, into how many integers the weight of one record is cut, so that records of one unit can share it; 1
            where every record is a unit.
        cross_weight: how much of a record's reach the targets get against the features' products, > 0: the larger, the
            less noise in x y^T and the more in x x^T.
    """

    features: int
    targets: int
    norm: float
    grid: int
    cross_weight: float = 1.0
    parts: int = 1

    def __post_init__(self) -> None:
        if min(self.features, self.targets) < 1 or not (self.norm > 0 and self.cross_weight > 0):
            raise UsageError(
                f"Expected features={self.features} and targets={self.targets} of at least 1, norm={self.norm} and "
                f"cross_weight={self.cross_weight} above 0"
            )
        if not math.sqrt(self.features) <= self.grid <= 1 << 18:
            raise UsageError(f"Expected grid={self.grid} from sqrt({self.features}) to 2^18")

    @property
    def mark(self) -> int:
        """Return t, a target in grid steps: what `cross_weight` makes of the reach of the products."""
        return max(1, round(self.cross_weight * _DIAGONAL * self.grid))

    @property
    def length(self) -> int:
        """Return how many numbers are summed."""
        return self.features * (self.features + 1) // 2 + self.features * self.targets

    @property
    def largest(self) -> int:
        """Return the largest absolute value that one record adds to a sum."""
        return max(_DIAGONAL * self.grid**2, self.mark * self.grid) * self.parts

    @property
    def sensitivity(self) -> int:
        """Return s, the largest L2 distance by which one record moves the sums, in integer steps."""
        square = (_DIAGONAL * self.grid**2) ** 2 + (self.mark * self.grid) ** 2
        root = math.isqrt(square)
        return (root if root * root == square else root + 1) * self.parts

    @property
    def clip_norm(self) -> float:
        """Return what `sensitivity` steps stand for: a step of the products is norm^2 / (5 g^2)."""
        return self.sensitivity * self.norm**2 / (_DIAGONAL * self.grid**2 * self.parts)

    def summed(
        self, x: Matrix, places: Vector, signs: Vector, units: Vector | None = None, *, parties: int = 1
    ) -> Clipped:
        """Return the sums over a party's records.

        Args:
            x: float64, shape (n, d), n >= 0. Rows that are zero or hold NaN or infinity count as zero.
            places: int64, shape (n,): the target that each record marks, 0 to k - 1.
            signs: int64, shape (n,): 1 or -1.
            units: int64, shape (n,), equal for records of one unit; needed if and only if `parts` is above 1.
            parties: the most parties that hold records of one unit: its weight here is an equal part of 1.

        Raises:
            UsageError: shapes do not fit, or places and signs are others.
        """
        self._check(x, places, signs)
        weight = self._weights(len(x), units, parties)
        gram = np.zeros((self.features, self.features), np.int64)
        cross = np.zeros((self.features, self.targets), np.int64)
        ignored, step = 0, self._block()
        for start in range(0, len(x), step):
            block = slice(start, start + step)
            rows, usable = to_grid(x[block], self.norm, self.grid)
            ignored += len(rows) - usable
            exact = rows.astype(np.float64)
            weighted = exact * weight[block, None]
            gram += (exact.T @ weighted).astype(np.int64)
            marked = np.zeros((len(rows), self.targets))
            marked[np.arange(len(rows)), places[block]] = signs[block] * weight[block]
            cross += (exact.T @ marked).astype(np.int64)
        weights = np.where(np.eye(self.features, dtype=bool), _DIAGONAL, _BESIDE)
        upper = (gram * weights)[np.triu_indices(self.features)]
        total = np.concatenate([upper, (cross * self.mark).ravel()])
        return Clipped(total, self.sensitivity, self.clip_norm, ignored)

    def split(self, decoded: Matrix) -> tuple[Matrix, Matrix]:
        """Return what released sums say about x x^T, shape (d, d), symmetric, and x y^T, shape (d, k).

        Args:
            decoded: released sums times `clip_norm` / `sensitivity`, shape (length,), as `PrivacyPlan.decode` has them.
        """
        upper, cross = np.split(decoded, [self.features * (self.features + 1) // 2])
        gram = np.zeros((self.features, self.features))
        gram[np.triu_indices(self.features)] = upper
        gram = gram + np.triu(gram, 1).T
        gram = np.where(np.eye(self.features, dtype=bool), gram, gram * (_DIAGONAL / _BESIDE))
        # a mark is worth mark * X steps of norm^2 / (5 g^2), and stands for x = X norm / g
        return gram, cross.reshape(self.features, self.targets) * (_DIAGONAL * self.grid / (self.mark * self.norm))

    def deviations(self, noise_multiplier: float) -> tuple[float, float]:
        """Return the noise's deviation on an entry of x x^T beside the diagonal, and on one of x y^T.

        Args:
            noise_multiplier: deviation of one number's noise over `clip_norm`.
        """
        one = noise_multiplier * self.clip_norm
        return one * _DIAGONAL / _BESIDE, one * _DIAGONAL * self.grid / (self.mark * self.norm)

    def _block(self) -> int:
        """Return how many records can be multiplied at once without rounding."""
        return min(_BLOCK_RECORDS, max(1, (1 << _EXACT_BITS) // (self.grid**2 * self.parts)))

    def _weights(self, records: int, units: Vector | None, parties: int) -> Vector:
        """Return the weight of each record in parts: those of a unit add up to parts // parties at most.

        They share it equally, the first ones with one part more where it does not divide.
        """
        if (units is None) != (self.parts == 1) or (units is not None and units.shape != (records,)):
            raise UsageError(f"Expected one unit for each record if and only if parts={self.parts} is above 1")
        if units is None:
            return np.ones(records, np.int64)
        places, rank, counts = ranks(units)
        whole, rest = np.divmod(self.parts // parties, counts)
        return whole[places] + (rank < rest[places])

    def _check(self, x: Matrix, places: Vector, signs: Vector) -> None:
        if x.ndim != 2 or x.shape[1] != self.features or places.shape != (len(x),) or signs.shape != (len(x),):
            raise UsageError(
                f"Expected rows of {self.features} features with a place and a sign each, got {x.shape}, "
                f"{places.shape} and {signs.shape}"
            )
        if len(x) and not (0 <= places.min() and places.max() < self.targets and (np.abs(signs) == 1).all()):
            raise UsageError(f"Expected places from 0 to {self.targets - 1} and signs of 1 or -1")
