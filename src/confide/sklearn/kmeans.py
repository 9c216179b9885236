"""k-means as a scikit-learn estimator."""

# pyright: basic
from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from confide.crypto.random import public_stream
from confide.dp.spending import Budget, label_of
from confide.sklearn.columns import cluster_sums, middle_of, nearest, scaled
from confide.sklearn.records import allowance_of, finite, public_bounds, questions, randomness_of, rows_of, whole

Matrix = NDArray[np.float64]

_MIDDLE = 0.1  # of mu^2
_CLEAR = 2.0  # deviations of its noise that a cluster's size needs
_CANDIDATES = 256


class KMeans(ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin, BaseEstimator):
    """Lloyd's algorithm under differential privacy: noisy sizes and sums of the clusters, a fixed number of times.

    The first centres are spread over where the records are, as a noisy middle and distance say; no record is among
    them. A cluster whose size is not clear of its noise keeps its centre.

    Args:
        n_clusters: k, >= 1.
        max_iter: how often centres move, all of them; each time costs its part of epsilon.
        epsilon, delta, bounds, budget, share, random_state: as in `LogisticRegression`.

    After `fit`: `cluster_centers_`, shape (k, d), in the units of X; `privacy_`, the label. There is no `labels_` and
    no `inertia_`: they would keep private numbers of every record in the model. `predict` gives the cluster of a row.

    **Guarantees**: what `fit` leaves in the estimator is (epsilon, delta)-differentially private, whatever the records.

    Source: Su et al., Differentially private k-means clustering (arXiv 1504.05998): few iterations, spread centres.
    """

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        epsilon: float | None = None,
        delta: float | None = None,
        max_iter: int = 6,
        bounds: Any = None,
        budget: Budget | None = None,
        share: float | None = None,
        random_state: int | None = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.epsilon = epsilon
        self.delta = delta
        self.max_iter = max_iter
        self.bounds = bounds
        self.budget = budget
        self.share = share
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike | None = None) -> Self:
        """Spend what was promised; as `LogisticRegression.fit`, without labels."""
        whole("n_clusters", self.n_clusters)
        whole("max_iter", self.max_iter)
        rng, taken = randomness_of(self), allowance_of(self)
        rows = rows_of(self, X, reset=True)
        low, high = public_bounds(self.bounds, rows.shape[1])
        x = scaled(rows[finite(rows)], low, high)
        middle = middle_of(x, taken.part(_MIDDLE), rng)
        half, u = high / 2 - low / 2, x - middle.centre
        units = half / half.max()  # distances are those of X, up to a factor
        centres = _spread(self.n_clusters, rows.shape[1], middle.spread**0.5, units)
        part = taken.part((1 - _MIDDLE) / self.max_iter)
        for _ in range(self.max_iter):
            place = nearest(u * units, centres * units)
            sizes, sums, noise = cluster_sums(u, place, self.n_clusters, middle.distance, part, rng)
            known = sizes > max(1.0, _CLEAR * noise)
            moved = sums / np.where(known, sizes, 1.0)[:, None]
            centres = np.where(known[:, None], np.clip(moved, -1 - middle.centre, 1 - middle.centre), centres)
        self.cluster_centers_ = low / 2 + high / 2 + half * (middle.centre + centres)
        self.n_iter_ = self.max_iter
        self.privacy_ = label_of(
            taken,
            mechanism=f"the middle of the columns, then sums of {self.n_clusters} clusters {self.max_iter} times",
            releases=1 + self.max_iter,
            noise_from=rng.origin,
        )
        return self

    def fit_predict(self, X: ArrayLike, y: ArrayLike | None = None, **kwargs: Any) -> NDArray[Any]:
        """Return `fit(X).predict(X)`: the clusters are for whoever holds the records, and not private."""
        return self.fit(X).predict(X)

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the nearest centre of each row, cut to the bounds; that of their middle where NaN or infinity is."""
        rows, _ = questions(self, X)
        return nearest(rows, self.cluster_centers_).astype(np.int32)

    def transform(self, X: ArrayLike) -> Matrix:
        """Return the distance of each row to each centre, shape (n, k)."""
        check_is_fitted(self)
        rows = rows_of(self, X, reset=False)
        return np.sqrt(((rows[:, None, :] - self.cluster_centers_[None]) ** 2).sum(axis=2))

    @property
    def _n_features_out(self) -> int:
        return len(self.cluster_centers_)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags


def _spread(clusters: int, columns: int, deviation: float, units: Matrix) -> Matrix:
    """Return centres far from each other around 0, the same every time: the farthest of many, one after the other."""
    drawn = public_stream(0, "first centres of k-means").normal(0.0, deviation, (_CANDIDATES * clusters, columns))
    chosen = [int(((drawn * units) ** 2).sum(axis=1).argmin())]
    distance = (((drawn - drawn[chosen[0]]) * units) ** 2).sum(axis=1)
    typical = float(np.median(((drawn * units) ** 2).sum(axis=1)))
    inside = ((drawn * units) ** 2).sum(axis=1) <= typical  # where records are, not in far corners
    while len(chosen) < clusters:
        chosen.append(int(np.where(inside, distance, -1.0).argmax()))
        distance = np.minimum(distance, (((drawn - drawn[chosen[-1]]) * units) ** 2).sum(axis=1))
    return drawn[chosen]
