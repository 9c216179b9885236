"""Boosted trees as a scikit-learn estimator: an additive model of one tree function for each column."""

# pyright: basic
from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from confide.dp.spending import Budget, label_of
from confide.errors import UsageError
from confide.sklearn.additive import features_of, prepared, private_additive, scores
from confide.sklearn.records import (
    allowance_of,
    known_cells,
    places_of,
    public_bounds,
    public_categories,
    public_classes,
    randomness_of,
    rows_of,
)

Matrix = NDArray[np.float64]


class GradientBoostingClassifier(ClassifierMixin, BaseEstimator):
    """Gradient-boosted trees of two classes under differential privacy, for one holder, with nothing to tune.

    The trees ask about one column each, and together they are an additive model: one step function of each column,
    whose structure is public, learnt by 20 noisy gradient sums over all leaves at once. There are no interactions.
    Chosen splits would spend on the choice what the leaves need (docs/scikit-learn.md).

    Args:
        epsilon, delta, bounds, budget, share, expected_records, random_state: as in `LogisticRegression`.
        classes: the two labels; public, needed.
        categories: of columns that are no numbers: {column: names}, by place or name, where X has the place of a name
            in this public list, as `OrdinalEncoder(categories=...)` gives it. Their bounds are not read.
        effects: "steps" has a value for each of 1024 intervals of a number, "trends" one slope for each number, and
            "auto" steps where the noise allows.

    After `fit`: `classes_`; `effects_`, for each column the values of its intervals or categories in log odds, and
    `intercept_`; `feature_importances_`, each column's mean absolute effect by the noisy counts, with a sum of 1;
    `privacy_`, the label.

    Example:
        >>> import numpy as np
        >>> x = np.linspace(-1, 1, 20_000)[:, None]
        >>> model = GradientBoostingClassifier(epsilon=1.0, delta=1e-6, bounds=(-1, 1), classes=(0, 1))
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
        bounds: Any = None,
        classes: Any = None,
        categories: Any = None,
        effects: str = "auto",
        budget: Budget | None = None,
        share: float | None = None,
        expected_records: int | None = None,
        random_state: int | None = None,
    ) -> None:
        self.epsilon = epsilon
        self.delta = delta
        self.bounds = bounds
        self.classes = classes
        self.categories = categories
        self.effects = effects
        self.budget = budget
        self.share = share
        self.expected_records = expected_records
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike | None = None) -> Self:
        """Spend what was promised and fit the model; as `LogisticRegression.fit`."""
        classes, rng, taken = public_classes(self.classes), randomness_of(self), allowance_of(self)
        if len(classes) != 2 or self.effects not in ("auto", "steps", "trends"):
            raise UsageError(
                'Expected two classes, and effects "auto", "steps" or "trends"; more: RandomForestClassifier'
            )
        rows = rows_of(self, X, reset=True)
        preprocess, known = self._prepared(rows)
        place = places_of(y, classes, len(rows))
        kept = known.all(axis=1) & (place >= 0)
        x = features_of(rows[kept], known[kept], preprocess)
        found = private_additive(
            x, place[kept], preprocess, taken, rng, records=self.expected_records, effects=self.effects
        )
        self.classes_ = classes
        ends = np.cumsum([getattr(rule, "levels", None) or rule.count for rule in preprocess.rules])
        self.effects_ = np.split(found.values, ends[:-1])
        self.intercept_ = found.offset
        self.feature_importances_ = found.importances
        self.privacy_ = label_of(
            taken,
            mechanism=f"{'' if self.expected_records else 'the number of records, then '}"
            f"{found.plan.label_fields()['mechanism']}",
            releases=found.plan.releases + (not self.expected_records),
            noise_from=rng.origin,
        )
        return self

    def _prepared(self, rows: Matrix) -> tuple[Any, NDArray[np.bool_]]:
        """Return the public preparation, and which cells are numbers or categories that it knows."""
        low, high = public_bounds(self.bounds, rows.shape[1])
        categories = public_categories(self, rows.shape[1])
        names = [f"x{place}" for place in range(rows.shape[1])]
        return prepared(names, low, high, categories), known_cells(rows, categories)

    def decision_function(self, X: ArrayLike) -> Matrix:
        """Return log odds, shape (n,); a column that is NaN, infinite or no known category adds nothing."""
        check_is_fitted(self)
        rows = rows_of(self, X, reset=False)
        preprocess, known = self._prepared(rows)
        return scores(rows, known, preprocess, np.concatenate(self.effects_), self.intercept_)

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return a class for each row."""
        positive = self.decision_function(X) > 0
        return self.classes_[positive.astype(int)]

    def predict_proba(self, X: ArrayLike) -> Matrix:
        """Return the probability of each class, shape (n, 2)."""
        found = 1 / (1 + np.exp(-np.clip(self.decision_function(X), -700, 700)))
        return np.stack([1 - found, found], axis=1)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.classifier_tags.multi_class = False
        return tags
