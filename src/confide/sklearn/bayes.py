"""Gaussian naive Bayes as a scikit-learn estimator."""

# pyright: basic
from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin

from confide.dp.spending import Budget, label_of
from confide.sklearn.columns import class_moments, scaled
from confide.sklearn.records import (
    allowance_of,
    finite,
    places_of,
    public_bounds,
    public_classes,
    questions,
    randomness_of,
    rows_of,
)

Matrix = NDArray[np.float64]


class GaussianNB(ClassifierMixin, BaseEstimator):
    """Gaussian naive Bayes under differential privacy: counts, means and variances of each class from noisy sums.

    Args:
        epsilon, delta, bounds, classes, budget, share, random_state: as in `LogisticRegression`.

    After `fit`: `classes_`; `theta_` and `var_`, shape (k, d), in the units of X; `class_count_`, about, and
    `class_prior_`, shape (k,); `privacy_`, the label.

    **Guarantees**: what `fit` leaves in the estimator is (epsilon, delta)-differentially private, whatever the records.
    """

    def __init__(
        self,
        epsilon: float | None = None,
        delta: float | None = None,
        *,
        bounds: Any = None,
        classes: Any = None,
        budget: Budget | None = None,
        share: float | None = None,
        random_state: int | None = None,
    ) -> None:
        self.epsilon = epsilon
        self.delta = delta
        self.bounds = bounds
        self.classes = classes
        self.budget = budget
        self.share = share
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike | None = None) -> Self:
        """Spend what was promised and fit the model; as `LogisticRegression.fit`."""
        classes, rng, taken = public_classes(self.classes), randomness_of(self), allowance_of(self)
        rows = rows_of(self, X, reset=True)
        low, high = public_bounds(self.bounds, rows.shape[1])
        place = places_of(y, classes, len(rows))
        kept = finite(rows) & (place >= 0)
        found = class_moments(scaled(rows[kept], low, high), place[kept], len(classes), taken, rng)
        half = high / 2 - low / 2
        self.classes_ = classes
        self.theta_, self.var_ = low / 2 + high / 2 + half * found.means, half * half * found.variances
        self.class_count_, self.class_prior_ = found.weights, found.weights / found.weights.sum()
        self.privacy_ = label_of(
            taken,
            mechanism="the middle of the columns, then counts, means and squares of each class, in one noisy sum each",
            releases=2,
            noise_from=rng.origin,
        )
        return self

    def predict_log_proba(self, X: ArrayLike) -> Matrix:
        """Return the logarithm of `predict_proba`."""
        rows, _ = questions(self, X)
        joint = np.empty((len(rows), len(self.classes_)))
        for place, (mean, variance) in enumerate(zip(self.theta_, self.var_, strict=True)):
            distance = ((rows - mean) ** 2 / variance).sum(axis=1) + np.log(2 * np.pi * variance).sum()
            joint[:, place] = np.log(self.class_prior_[place]) - distance / 2
        top = joint.max(axis=1, keepdims=True)
        return joint - top - np.log(np.exp(joint - top).sum(axis=1, keepdims=True))

    def predict_proba(self, X: ArrayLike) -> Matrix:
        """Return the probability of each class, shape (n, k)."""
        return np.exp(self.predict_log_proba(X))

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return a class for each row; one with NaN or infinity is taken for the middle of the bounds."""
        found = self.predict_log_proba(X)
        return self.classes_[found.argmax(axis=1)]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags
