"""A random forest as a scikit-learn estimator."""

# pyright: basic
from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from confide.dp.spending import Budget, label_of
from confide.errors import UsageError
from confide.sklearn.columns import scaled
from confide.sklearn.leaves import Forest, grown, importances
from confide.sklearn.records import (
    allowance_of,
    known_cells,
    places_of,
    public_bounds,
    public_categories,
    public_classes,
    randomness_of,
    rows_of,
    whole,
)

Matrix = NDArray[np.float64]

_SHARPENED = 3.0  # each tree asks about few columns and says too little; measured in docs/scikit-learn.md
_MOST_LEAVES = 1 << 22  # of all trees, times the classes


class RandomForestClassifier(ClassifierMixin, BaseEstimator):
    """A random forest of any number of classes under differential privacy, for one holder.

    Its questions are drawn without a look at the records, around noisy means of the columns; one release then counts
    the classes in all leaves. That costs accuracy: trees whose questions are not chosen say little, and more trees add
    noise as they add up. Of two classes `GradientBoostingClassifier` is more accurate where records are many.

    Args:
        epsilon, delta, bounds, budget, share, random_state: as in `LogisticRegression`.
        n_estimators: trees, at least 1; they share the noise.
        max_depth: questions from the top of a tree to a leaf, from 1 to 12.
        classes: the labels that there may be; public, needed.
        categories: as in `GradientBoostingClassifier`.

    After `fit`: `classes_`; `leaves_`, fractions of the classes in the leaves, shape
    (trees, leaves, k), and `class_prior_`, shape (k,); `feature_importances_`, what a column's questions take from
    Gini's impurity by the noisy counts, with a sum of 1; `privacy_`, the label.

    Example:
        >>> import numpy as np
        >>> x = np.linspace(-1, 1, 20_000)[:, None]
        >>> model = RandomForestClassifier(epsilon=1.0, delta=1e-6, bounds=(-1, 1), classes=(0, 1))
        >>> bool(model.fit(x, abs(x[:, 0]) > 0.5).score(x, abs(x[:, 0]) > 0.5) > 0.9)
        True

    **Guarantees**: what `fit` leaves in the estimator is (epsilon, delta)-differentially private, whatever the records.
    `score` and `predict` on private records are not: they look at them without noise.
    """

    def __init__(
        self,
        epsilon: float | None = None,
        delta: float | None = None,
        *,
        n_estimators: int = 10,
        max_depth: int = 6,
        bounds: Any = None,
        classes: Any = None,
        categories: Any = None,
        budget: Budget | None = None,
        share: float | None = None,
        random_state: int | None = None,
    ) -> None:
        self.epsilon = epsilon
        self.delta = delta
        self.n_estimators = n_estimators
        self.max_depth = max_depth
        self.bounds = bounds
        self.classes = classes
        self.categories = categories
        self.budget = budget
        self.share = share
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike | None = None) -> Self:
        """Spend what was promised and fit the forest; as `LogisticRegression.fit`."""
        classes, rng, taken = public_classes(self.classes), randomness_of(self), allowance_of(self)
        if not (whole("n_estimators", self.n_estimators) and whole("max_depth", self.max_depth) <= 12):
            raise UsageError("Expected n_estimators of at least 1 and max_depth from 1 to 12")
        if self.n_estimators * len(classes) << self.max_depth > _MOST_LEAVES:
            raise UsageError(f"Expected at most {_MOST_LEAVES} leaves times classes; take fewer trees or less depth")
        rows = rows_of(self, X, reset=True)
        x, known = self._scaled(rows)
        place = places_of(y, classes, len(rows))
        kept = known.all(axis=1) & (place >= 0)
        categories = {column: len(names) for column, names in public_categories(self, rows.shape[1]).items()}
        self._forest, nodes = grown(
            x[kept],
            place[kept],
            len(classes),
            categories,
            taken,
            rng,
            trees=self.n_estimators,
            depth=self.max_depth,
        )
        self.classes_ = classes
        self.leaves_, self.class_prior_ = nodes[-1].fractions, nodes[0].fractions[0, 0].copy()
        self.feature_importances_ = importances(self._forest, nodes, rows.shape[1])
        numbers = len(categories) < rows.shape[1]
        self.privacy_ = label_of(
            taken,
            mechanism=f"{'moments of the columns, then ' if numbers else ''}classes in the leaves of a drawn forest",
            releases=3 if numbers else 1,
            noise_from=rng.origin,
        )
        return self

    def _scaled(self, rows: Matrix) -> tuple[Matrix, NDArray[np.bool_]]:
        """Return what the trees take, and which cells are numbers or known categories; the others are in the middle."""
        low, high = public_bounds(self.bounds, rows.shape[1])
        categories = public_categories(self, rows.shape[1])
        known = known_cells(rows, categories)
        x = scaled(np.where(known, rows, low / 2 + high / 2), low, high)
        for column in categories:
            x[:, column] = np.where(known[:, column], rows[:, column], -1.0)
        return x, known

    def predict_log_proba(self, X: ArrayLike) -> Matrix:
        """Return the logarithm of `predict_proba`."""
        check_is_fitted(self)
        x, _ = self._scaled(rows_of(self, X, reset=False))
        forest: Forest = self._forest
        logs, reached = np.log(self.leaves_), forest.reached(x)
        found = np.zeros((len(x), len(self.classes_)))
        for tree in range(reached.shape[1]):
            found += logs[tree, reached[:, tree]]
        prior = np.log(self.class_prior_)
        joint = prior + _SHARPENED * (found / reached.shape[1] - prior)
        joint -= joint.max(axis=1, keepdims=True)
        return joint - np.log(np.exp(joint).sum(axis=1, keepdims=True))

    def predict_proba(self, X: ArrayLike) -> Matrix:
        """Return the probability of each class, shape (n, k): from the mean of the trees' logarithms, sharpened."""
        return np.exp(self.predict_log_proba(X))

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return a class for each row; what is no number counts as the middle, an unknown category as none."""
        found = self.predict_log_proba(X)
        return self.classes_[found.argmax(axis=1)]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags
