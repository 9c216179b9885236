"""Least squares and ridge regression as scikit-learn estimators."""

# pyright: basic
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, RegressorMixin

from confide.dp.spending import Budget, is_real, label_of
from confide.errors import UsageError
from confide.guarantee import PrivacyLabel
from confide.sklearn.columns import middle_of, products_of, scaled
from confide.sklearn.records import allowance_of, finite, public_bounds, questions, randomness_of, rows_of, targets_of
from confide.train.statistics import ridge_regression

Matrix = NDArray[np.float64]

_MIDDLE = 0.1  # of mu^2
_NOISE_RIDGE = 2.0  # times the noise's deviation times sqrt(columns): noise moves an eigenvalue by as much at most


class Ridge(RegressorMixin, BaseEstimator):
    """Ridge regression under differential privacy: a noisy middle, then one noisy sum of products.

    A record is its row and its target together, cut as a whole to a usual length, so that a line through the records
    stays one. The products of the target are a part of the same release, with its one sensitivity.

    Args:
        alpha: the ridge, >= 0, in units of columns scaled by their bounds to [-1, 1]; what the noise asks for is added.
        y_bounds: (low, high) of the target; public, needed.
        epsilon, delta, bounds, budget, share, random_state: as in `LogisticRegression`.

    After `fit`: `coef_`, shape (d,), and `intercept_` in the units of X and y; `privacy_`, the label. Predictions are
    cut to `y_bounds`.

    **Guarantees**: what `fit` leaves in the estimator is (epsilon, delta)-differentially private, whatever the records.
    """

    def __init__(
        self,
        epsilon: float | None = None,
        delta: float | None = None,
        *,
        alpha: float = 1.0,
        bounds: Any = None,
        y_bounds: Any = None,
        budget: Budget | None = None,
        share: float | None = None,
        random_state: int | None = None,
    ) -> None:
        self.epsilon = epsilon
        self.delta = delta
        self.alpha = alpha
        self.bounds = bounds
        self.y_bounds = y_bounds
        self.budget = budget
        self.share = share
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike | None = None) -> Self:
        """Spend what was promised and fit the line; as `LogisticRegression.fit`, with numbers to predict."""
        line = _fitted(self, X, y, alpha=self.alpha)
        self.coef_, self.intercept_, self.privacy_ = line.slopes, line.intercept, line.label
        return self

    def predict(self, X: ArrayLike) -> Matrix:
        """Return a number for each row, cut to the bounds; one with NaN or infinity gets the middle of `y_bounds`."""
        return _predicted(self, X)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags


class LinearRegression(RegressorMixin, BaseEstimator):
    """Least squares under differential privacy: `Ridge` without a ridge but what the noise asks for.

    Args:
        epsilon, delta, bounds, y_bounds, budget, share, random_state: as in `Ridge`.
    """

    def __init__(
        self,
        epsilon: float | None = None,
        delta: float | None = None,
        *,
        bounds: Any = None,
        y_bounds: Any = None,
        budget: Budget | None = None,
        share: float | None = None,
        random_state: int | None = None,
    ) -> None:
        self.epsilon = epsilon
        self.delta = delta
        self.bounds = bounds
        self.y_bounds = y_bounds
        self.budget = budget
        self.share = share
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike | None = None) -> Self:
        line = _fitted(self, X, y, alpha=0.0)
        self.coef_, self.intercept_, self.privacy_ = line.slopes, line.intercept, line.label
        return self

    def predict(self, X: ArrayLike) -> Matrix:
        return _predicted(self, X)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags


@dataclass(frozen=True, slots=True)
class _Line:
    slopes: Matrix
    intercept: float
    label: PrivacyLabel


def _fitted(estimator: Any, X: ArrayLike, y: ArrayLike | None, *, alpha: float) -> _Line:
    """Return the line of an estimator's records, in the units of X and y."""
    if not (is_real(alpha) and 0 <= alpha < math.inf):
        raise UsageError(f"Expected alpha={alpha!r} to be a finite number from 0")
    rng, taken = randomness_of(estimator), allowance_of(estimator)
    rows = rows_of(estimator, X, reset=True)
    low, high = public_bounds(estimator.bounds, rows.shape[1])
    low_y, high_y = public_bounds(estimator.y_bounds, 1, name="y_bounds")
    target = targets_of(y, len(rows))
    both = np.concatenate([rows, target[:, None]], axis=1)
    low, high = np.append(low, low_y), np.append(high, high_y)
    x = scaled(both[finite(both)], low, high)
    middle = middle_of(x, taken.part(_MIDDLE), rng)
    products = products_of(x, middle, taken.part(1 - _MIDDLE), rng)
    features = [*range(rows.shape[1]), rows.shape[1] + 1]  # the constant stands behind the target
    gram, cross = products.gram[np.ix_(features, features)], products.gram[features, rows.shape[1]]
    ridge = alpha + _NOISE_RIDGE * products.noise * math.sqrt(len(features))
    weights = ridge_regression(gram, cross[:, None], ridge=max(ridge, 1e-9))[:, 0]
    half, centre = high / 2 - low / 2, low / 2 + high / 2 + (high / 2 - low / 2) * middle.centre
    slopes = weights[:-1] * half[-1] / half[:-1]
    intercept = centre[-1] + half[-1] * weights[-1] * products.constant - float(slopes @ centre[:-1])
    label = label_of(
        taken,
        mechanism="the middle of columns and target, then the products of all of them, in one noisy sum each",
        releases=2,
        noise_from=rng.origin,
    )
    return _Line(slopes, float(intercept), label)


def _predicted(estimator: Any, X: ArrayLike) -> Matrix:
    rows, known = questions(estimator, X)
    low, high = public_bounds(estimator.y_bounds, 1, name="y_bounds")
    found = np.clip(rows @ estimator.coef_ + estimator.intercept_, low, high)
    return np.where(known, found, low / 2 + high / 2)
