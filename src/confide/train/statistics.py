"""Training in one round: parties send sums over their records, and the model follows from the sum of the sums.

What a party contributes is `confide.dp.moments`: x x^T and x y^T over its records. Linear models for which these are
sufficient are then solved for, without another look at a record: the model over silos is the model over the pooled
records, up to the grid, and there is nothing to tune by trial.

Solving is public post-processing that every party repeats (`confide.train.course`), so it is written in operations on
single elements in one order: a library's solver rounds otherwise on every machine.

    ridge           W = (G + r I)^-1 B on targets of +-1: least squares with a ridge r
    discriminant    linear discriminant analysis: class means, one covariance, so that outputs are log odds

Source: Hastie, Tibshirani, Friedman, The Elements of Statistical Learning (2nd ed.), sections 3.4 and 4.3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from confide.crypto.random import Randomness
from confide.dp.mechanisms import Clipped, default_grid
from confide.dp.moments import Moments
from confide.dp.plan import RECORD, PrivacyPlan
from confide.errors import DataError, ModelError
from confide.model.graph import Graph
from confide.train.encodings import Encoding, charge, charges, release
from confide.train.learner import GraphLearner
from confide.train.linear_head import CONSTANT
from confide.train.local import Silo
from confide.train.sections import PrivacySection, TrainSection
from confide.wire import Store

Matrix = NDArray[np.float64]
Vector = NDArray[np.int64]

#: How far the targets may reach against the products of features: several classes have more of them.
_CROSS_WEIGHT, _CROSS_WEIGHT_OF_SEVERAL = 1.0, 2.0

_NOISE_RIDGE = 2.5  # times the noise's deviation times sqrt(features): noise moves an eigenvalue by at most 2
_LEAST_RIDGE = 1e-9
_GRID, _LARGEST_NOISY_GRID = 1 << 16, 1 << 13
_PARTS, _LARGEST_GROUPED_GRID = 1 << 8, 1 << 11  # of a unit's weight; noise stays below 2^40 steps with both
#: A party may hold this many times the expected number of records.
MOST_TIMES = 16


def solve(matrix: Matrix, right: Matrix) -> Matrix:
    """Return x with matrix x = right, for a symmetric matrix that is positive definite.

    Args:
        matrix: float64, shape (d, d).
        right: float64, shape (d, k).

    Raises:
        numpy.linalg.LinAlgError: the matrix is not positive definite.

    Cholesky's factorisation, column by column, each step one operation on single elements.
    """
    left, rest = np.zeros_like(matrix), matrix.copy()
    size = len(matrix)
    for place in range(size):
        pivot = rest[place, place]
        if not pivot > 0:
            raise np.linalg.LinAlgError("not positive definite")
        column = rest[place:, place] / np.sqrt(pivot)
        left[place:, place] = column
        rest[place + 1 :, place + 1 :] -= column[1:, None] * column[None, 1:]
    x = right.copy()
    for place in range(size):
        x[place] = x[place] / left[place, place]
        x[place + 1 :] -= left[place + 1 :, place, None] * x[place]
    for place in reversed(range(size)):
        x[place] = x[place] / left[place, place]
        x[:place] -= left[place, :place, None] * x[place]
    return x


def ridge_regression(gram: Matrix, cross: Matrix, *, ridge: float) -> Matrix:
    """Return the weights of least squares with a ridge, shape (d, k), from sums that may be noisy.

    Args:
        gram: sum of x x^T, symmetric, shape (d, d).
        cross: sum of x y^T, shape (d, k).
        ridge: what is added to the diagonal, > 0; where noise has made `gram` indefinite it is doubled until it is not.

    Raises:
        ModelError: no ridge helps, as where sums are not finite.
    """
    unit = np.eye(len(gram))
    while math.isfinite(ridge):
        try:
            return solve(gram + ridge * unit, cross)
        except np.linalg.LinAlgError:
            ridge *= 2.0
    raise ModelError("Expected sums over records that a linear model can be solved from; they are not finite")


def discriminant(gram: Matrix, cross: Matrix, *, ridge: float, constant: float) -> Matrix:
    """Return linear discriminant analysis from the same sums: log odds up to a common term, shape (d, k).

    Args:
        gram: sum of x x^T over records whose last feature is `constant`, shape (d, d).
        cross: sum of x over the records of each class, shape (d, k), k >= 2.
        ridge: what is added to the diagonal of the scatter within the classes, > 0; doubled as in `ridge_regression`.
        constant: > 0.

    Counts that noise has made smaller than one record count as one.
    """
    counts = np.maximum(cross[-1] / constant, 1.0)
    means = cross[:-1] / counts
    within = gram[:-1, :-1].copy()
    for place, count in enumerate(counts.tolist()):
        within -= count * means[:, place, None] * means[None, :, place]
    middle = (means * counts).sum(axis=1) / counts.sum()
    apart = means - middle[:, None]  # from the middle: features that tell no classes apart get no weight
    weights = ridge_regression(within, apart * counts.sum(), ridge=ridge)
    offsets = np.log(counts) - ((apart / 2 + middle[:, None]) * weights).sum(axis=0)
    return np.concatenate([weights, offsets[None] / constant])


def moments_of(graph: Graph, train: TrainSection, privacy: PrivacySection | None) -> Moments:
    """Return which sums the parties of a job contribute, from its starting graph: a linear layer and a sigmoid."""
    features, row_norm = graph.features + 1, 0.0
    if privacy is not None:  # newton clips gradients by clip_norm, and its rows have norm 1
        row_norm = 1.0 if train.algorithm == "newton" else privacy.clip_norm
    grouped = privacy is not None and privacy.unit != RECORD
    largest = _LARGEST_GROUPED_GRID if grouped else _LARGEST_NOISY_GRID
    return Moments(
        features=features,
        targets=graph.outputs,
        norm=math.hypot(row_norm, CONSTANT) if row_norm else math.sqrt(graph.features + CONSTANT**2),
        grid=min(largest, default_grid(features)) if privacy else _GRID,
        parts=_PARTS if grouped else 1,
        cross_weight=_CROSS_WEIGHT if graph.outputs == 1 else _CROSS_WEIGHT_OF_SEVERAL,
    )


class Statistics(Encoding):
    """One round: the sums over a party's records, with its share of the noise under a plan.

    Args:
        learner: of the starting graph, a linear layer and a sigmoid.
        train: solver, weight_decay (the ridge for each record) and expected_records.
        moments: from `moments_of`.
        plan: the noise: a plan's statistics, or its one round, is a release of `moments`; None without privacy.
    """

    def __init__(
        self, learner: GraphLearner, train: TrainSection, moments: Moments, *, plan: PrivacyPlan | None
    ) -> None:
        self.learner, self._train, self._moments, self._plan = learner, train, moments, plan
        self._most_records = MOST_TIMES * train.expected_records
        self.length = moments.length
        self._kind = (plan.statistics or plan.training) if plan else None
        self.bound = self._kind.bound if self._kind else self._most_records * moments.largest
        self.releases = plan.rounds if plan else train.attempts

    def contribution(self, parameters: Matrix, silo: Silo, number: int, rng: Randomness, store: Store) -> Vector:
        parties = self._plan.parties_per_unit if self._plan else 1
        clipped = _summed(self._moments, silo.x, silo.y, silo.units, parties)
        if self._plan is not None:
            return release(self._plan, clipped, rng, store)
        if len(silo.x) > self._most_records:
            raise DataError(
                f"Expected at most {MOST_TIMES} * train.expected_records={self._train.expected_records} records at "
                f"{silo.name}; set train.expected_records to the public order of magnitude"
            )
        return clipped.total

    def charge(self, store: Store) -> Mapping[str, bytes | None]:
        return charge(store) if self._plan else {}

    def charged(self, store: Store) -> int:
        return charges(store)

    def epsilon(self, releases: int) -> float | None:
        return self._plan.spent(releases) if self._plan else None

    def read(self, sums: Vector) -> tuple[Matrix, Matrix, float]:
        """Return what released sums say about x x^T and x y^T, and the ridge that their noise asks for."""
        moments, noise = self._moments, 0.0
        gram, cross = moments.split(sums.astype(np.float64) * (moments.clip_norm / moments.sensitivity))
        if self._plan is not None and self._kind is not None:
            noise = self._kind.deviation(self._plan.shares) / self._kind.clip_norm
        beside, _ = moments.deviations(noise)
        ridge = self._train.weight_decay * max(1.0, gram[-1, -1] / CONSTANT**2)
        ridge += _NOISE_RIDGE * beside * math.sqrt(moments.features)
        return gram, cross, max(ridge, _LEAST_RIDGE)

    def update(self, parameters: Matrix, sums: Vector, members: frozenset[str], number: int) -> Matrix:
        weights = SOLVERS[self._train.solver](*self.read(sums))
        return np.concatenate([weights[:-1].T.ravel(), weights[-1] * CONSTANT]) - parameters


def solved(train: TrainSection, start: Graph, x: Matrix, y: Vector) -> Graph:
    """Return the model of these records alone, without privacy.

    Args:
        train: solver and weight_decay.
        start: a linear layer and a sigmoid.
        x, y: as a `Silo` has them.
    """
    learner, moments = GraphLearner(start, train), moments_of(start, train, None)
    change = Statistics(learner, train, moments, plan=None).update(
        learner.start, _summed(moments, x, y).total, members=frozenset({"alone"}), number=1
    )
    return learner.model(learner.start + change)


def _summed(moments: Moments, x: Matrix, y: Vector, units: Vector | None = None, parties: int = 1) -> Clipped:
    features = np.concatenate([x, np.full((len(x), 1), CONSTANT)], axis=1)
    places, signs = (
        (y, np.ones_like(y)) if moments.targets > 1 else (np.zeros_like(y), 2 * (y == 1).astype(np.int64) - 1)
    )
    return moments.summed(features, places, signs, units, parties=parties)


def _least_squares(gram: Matrix, cross: Matrix, ridge: float) -> Matrix:
    """Return weights whose outputs, through a sigmoid, are near the fitted probabilities where these are near 1/2."""
    fitted = ridge_regression(gram, cross, ridge=ridge)
    if cross.shape[1] == 1:
        return 2.0 * fitted  # targets of +-1: p = (1 + score) / 2, and the log odds of p are near 4 (p - 1/2)
    fitted = 4.0 * fitted
    fitted[-1] -= 2.0 / CONSTANT
    return fitted


def _log_odds(gram: Matrix, cross: Matrix, ridge: float) -> Matrix:
    """Return the weights of discriminant analysis: log odds of the second of two classes, or each class's own."""
    if cross.shape[1] > 1:
        return discriminant(gram, cross, ridge=ridge, constant=CONSTANT)
    everybody = gram[:, -1:] / CONSTANT
    both = np.concatenate([everybody - cross, everybody + cross], axis=1) / 2
    found = discriminant(gram, both, ridge=ridge, constant=CONSTANT)
    return found[:, 1:] - found[:, :1]


#: How weights follow from the sums, by the name of train.solver.
SOLVERS: Mapping[str, Callable[[Matrix, Matrix, float], Matrix]] = {
    "ridge": _least_squares,
    "discriminant": _log_odds,
}
