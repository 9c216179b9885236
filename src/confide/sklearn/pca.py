"""Principal components as a scikit-learn transformer."""

# pyright: basic
from __future__ import annotations

import math
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from confide.dp.spending import Budget, label_of
from confide.errors import UsageError
from confide.sklearn.columns import middle_of, products_of, scaled
from confide.sklearn.records import allowance_of, finite, public_bounds, randomness_of, rows_of, whole

Matrix = NDArray[np.float64]

_MIDDLE = 0.1  # of mu^2
_MOST = 4.0  # that variances are stretched by, against what cutting took from them


class PCA(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Principal components under differential privacy: those of a noisy covariance.

    Records that are far out are cut to a distance, which keeps directions and lets the noise be less: to the usual one
    where records are few, to twice that where they are many, which keeps the variances too. These are stretched to the
    mean squared distance that the first release has measured.

    Args:
        n_components: how many, 1 to d; None keeps all.
        epsilon, delta, bounds, budget, share, random_state: as in `LogisticRegression`.

    After `fit`: `mean_`, shape (d,); `components_`, shape (n_components, d), orthonormal; `explained_variance_` and
    `explained_variance_ratio_`, shape (n_components,), at least 0; `privacy_`, the label.

    **Guarantees**: what `fit` leaves in the estimator is (epsilon, delta)-differentially private, whatever the records.

    Source: Dwork et al., Analyze Gauss (2014), noise on the covariance; here with the middle and the number of records
    noisy too.
    """

    def __init__(
        self,
        n_components: int | None = None,
        *,
        epsilon: float | None = None,
        delta: float | None = None,
        bounds: Any = None,
        budget: Budget | None = None,
        share: float | None = None,
        random_state: int | None = None,
    ) -> None:
        self.n_components = n_components
        self.epsilon = epsilon
        self.delta = delta
        self.bounds = bounds
        self.budget = budget
        self.share = share
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike | None = None) -> Self:
        """Spend what was promised; as `LogisticRegression.fit`, without labels."""
        rng, taken = randomness_of(self), allowance_of(self)
        rows = rows_of(self, X, reset=True)
        columns = rows.shape[1]
        kept = columns if self.n_components is None else self.n_components
        if whole("n_components", kept) > columns:
            raise UsageError(f"Expected n_components={kept} from 1 to the {columns} columns")
        low, high = public_bounds(self.bounds, columns)
        x = scaled(rows[finite(rows)], low, high)
        middle = middle_of(x, taken.part(_MIDDLE), rng)
        reach = 0.05 * math.sqrt(middle.records * taken.mu / math.sqrt(columns))  # noise is a hundredth of the rest
        products = products_of(x, middle, taken.part(1 - _MIDDLE), rng, reach=min(max(reach, 1.0), 2.0))
        weight = max(1.0, 2 * products.noise / products.constant**2, products.gram[-1, -1] / products.constant**2)
        mean = products.gram[:-1, -1] / products.constant / weight
        covariance = products.gram[:-1, :-1] / weight - np.outer(mean, mean)
        covariance *= min(max(columns * middle.spread / max(float(np.trace(covariance)), 1e-300), 1.0), _MOST)
        half = high / 2 - low / 2
        self.mean_ = low / 2 + high / 2 + half * np.clip(middle.centre + mean, -1.0, 1.0)
        values, vectors = np.linalg.eigh(covariance * np.outer(half, half))
        values, vectors = np.maximum(values[::-1], 0.0), vectors.T[::-1]
        vectors = vectors * np.where(vectors[np.arange(columns), np.abs(vectors).argmax(axis=1)] < 0, -1, 1)[:, None]
        self.components_, self.explained_variance_ = vectors[:kept], values[:kept]
        self.explained_variance_ratio_ = values[:kept] / max(float(values.sum()), 1e-300)
        self.n_components_ = kept
        self.privacy_ = label_of(
            taken,
            mechanism="the middle of the columns, then the products of all of them, in one noisy sum each",
            releases=2,
            noise_from=rng.origin,
        )
        return self

    def transform(self, X: ArrayLike) -> Matrix:
        """Return rows measured along the components, shape (n, n_components); what is not finite stays so."""
        check_is_fitted(self)
        with np.errstate(invalid="ignore"):
            return (rows_of(self, X, reset=False) - self.mean_) @ self.components_.T

    def inverse_transform(self, X: ArrayLike) -> Matrix:
        """Return the rows that lie at these places along the components."""
        check_is_fitted(self)
        return np.asarray(X, np.float64) @ self.components_ + self.mean_

    @property
    def _n_features_out(self) -> int:
        return len(self.components_)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags
