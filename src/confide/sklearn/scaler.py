"""Standardisation as a scikit-learn transformer."""

# pyright: basic
from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from confide.dp.spending import Budget, label_of
from confide.sklearn.columns import class_moments, scaled
from confide.sklearn.records import allowance_of, finite, public_bounds, randomness_of, rows_of

Matrix = NDArray[np.float64]


class StandardScaler(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """Mean and deviation of every column under differential privacy.

    In a pipeline, what comes after needs bounds of its own: these are public constants in units of deviations, such as
    (-4, 4), and what lies beyond counts as the bound. `LogisticRegression` brings columns to one scale by itself.

    Args:
        with_mean, with_std: what `transform` applies; both are fitted.
        epsilon, delta, bounds, budget, share, random_state: as in `LogisticRegression`.

    After `fit`: `mean_`, `var_`, `scale_`, shape (d,); `privacy_`, the label.

    **Guarantees**: what `fit` leaves in the estimator is (epsilon, delta)-differentially private, whatever the records.
    `transform` changes a row by public numbers alone and looks at no other row.
    """

    def __init__(
        self,
        epsilon: float | None = None,
        delta: float | None = None,
        *,
        with_mean: bool = True,
        with_std: bool = True,
        bounds: Any = None,
        budget: Budget | None = None,
        share: float | None = None,
        random_state: int | None = None,
    ) -> None:
        self.epsilon = epsilon
        self.delta = delta
        self.with_mean = with_mean
        self.with_std = with_std
        self.bounds = bounds
        self.budget = budget
        self.share = share
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike | None = None) -> Self:
        """Spend what was promised; as `LogisticRegression.fit`, without labels."""
        rng, taken = randomness_of(self), allowance_of(self)
        rows = rows_of(self, X, reset=True)
        low, high = public_bounds(self.bounds, rows.shape[1])
        x = scaled(rows[finite(rows)], low, high)
        found = class_moments(x, np.zeros(len(x), np.int64), 1, taken, rng)
        half = high / 2 - low / 2
        self.mean_, self.var_ = low / 2 + high / 2 + half * found.means[0], half * half * found.variances[0]
        self.scale_ = np.sqrt(self.var_)
        self.privacy_ = label_of(
            taken,
            mechanism="the middle of the columns, then means and squares, in one noisy sum each",
            releases=2,
            noise_from=rng.origin,
        )
        return self

    def transform(self, X: ArrayLike) -> Matrix:
        """Return (X - mean) / deviation; what is not finite stays so."""
        check_is_fitted(self)
        middle, scale = self._applied()
        return (rows_of(self, X, reset=False) - middle) / scale

    def inverse_transform(self, X: ArrayLike) -> Matrix:
        """Return what `transform` was given."""
        check_is_fitted(self)
        middle, scale = self._applied()
        return rows_of(self, X, reset=False) * scale + middle

    def _applied(self) -> tuple[Any, Any]:
        return self.mean_ if self.with_mean else 0.0, self.scale_ if self.with_std else 1.0

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags
