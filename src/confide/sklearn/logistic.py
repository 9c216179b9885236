"""Logistic regression as a scikit-learn estimator."""

# pyright: basic
from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from confide.dp.spending import Budget, label_of
from confide.sklearn.columns import scaled, unit_rows
from confide.sklearn.descent import private_logistic
from confide.sklearn.records import (
    allowance_of,
    expected_of,
    finite,
    places_of,
    public_bounds,
    public_classes,
    randomness_of,
    rows_of,
)

Matrix = NDArray[np.float64]


class LogisticRegression(ClassifierMixin, BaseEstimator):
    """Logistic regression under differential privacy, for one holder of all records, with nothing to tune.

    Args:
        epsilon, delta: of the fit, for adding or removing one record; without a budget both are needed.
        bounds: (low, high) of the columns, each a number or one for each column; public, needed.
        classes: the labels that there may be; public, needed.
        budget, share: a `Budget` that others share, and the part of its mu^2 that a fit takes, unless `epsilon` says.
        expected_records: a public number of records, if there is one; without it a noisy count serves.
        random_state: None; a whole number repeats the noise, for tests, and voids the claim.

    After `fit`: `classes_`; `centre_`, the middle of the columns in [-1, 1]; `coef_`, shape (1 or k, d), and
    `intercept_`, of rows that are scaled by the bounds, measured from the middle and brought to length 1; `privacy_`,
    the label. Several classes are told apart one against the rest.

    Example:
        >>> import numpy as np
        >>> x = np.linspace(-1, 1, 20_000)[:, None]
        >>> model = LogisticRegression(epsilon=1.0, delta=1e-6, bounds=(-1, 1), classes=(0, 1))
        >>> bool(model.fit(x, x[:, 0] > 0.2).score(x, x[:, 0] > 0.2) > 0.85)
        True

    **Guarantees**: what `fit` leaves in the estimator is (epsilon, delta)-differentially private, whatever the records.
    `score` and `predict` on private records are not: they look at them without noise.
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
        expected_records: int | None = None,
        random_state: int | None = None,
    ) -> None:
        self.epsilon = epsilon
        self.delta = delta
        self.bounds = bounds
        self.classes = classes
        self.budget = budget
        self.share = share
        self.expected_records = expected_records
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike | None = None) -> Self:
        """Spend what was promised and fit the model. Each call is a release of its own.

        Args:
            X: shape (n, d), n >= 0.
            y: labels, shape (n,).

        Raises:
            UsageError: bounds or classes are missing, or contradict each other.
            PrivacyError: it does not fit into the budget.
        """
        classes, rng, taken = public_classes(self.classes), randomness_of(self), allowance_of(self)
        records = expected_of(self)
        rows = rows_of(self, X, reset=True)
        low, high = public_bounds(self.bounds, rows.shape[1])
        place = places_of(y, classes, len(rows))
        kept = finite(rows) & (place >= 0)
        outputs = 1 if len(classes) == 2 else len(classes)
        self.centre_, layer, plan = private_logistic(
            scaled(rows[kept], low, high), place[kept], outputs, taken, rng, records=records
        )
        self.classes_ = classes
        self.coef_, self.intercept_ = layer.weight, layer.bias
        self.n_iter_ = np.array([plan.releases])
        self.privacy_ = label_of(
            taken,
            mechanism=f"the middle of the columns, then {plan.label_fields()['mechanism']}",
            releases=plan.releases + 1,
            noise_from=rng.origin,
        )
        return self

    def decision_function(self, X: ArrayLike) -> Matrix:
        """Return log odds, shape (n,) for two classes, else (n, k): each class against the rest.

        Args:
            X: shape (n, d); a row with NaN or infinity gets the bias alone.
        """
        check_is_fitted(self)
        rows = rows_of(self, X, reset=False)
        low, high = public_bounds(self.bounds, rows.shape[1])
        known = finite(rows)
        x = unit_rows(scaled(np.where(known[:, None], rows, 0.0), low, high) - self.centre_) * known[:, None]
        found = x @ self.coef_.T + self.intercept_
        return found[:, 0] if len(self.classes_) == 2 else found

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return a class for each row."""
        scores = self.decision_function(X)
        return self.classes_[(scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(axis=1)]

    def predict_proba(self, X: ArrayLike) -> Matrix:
        """Return the probability of each class, shape (n, k); of several classes brought to a sum of 1."""
        scores = self.decision_function(X)
        found = 1 / (1 + np.exp(-np.clip(scores, -700, 700)))
        if found.ndim == 1:
            return np.stack([1 - found, found], axis=1)
        return found / found.sum(axis=1, keepdims=True)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags
