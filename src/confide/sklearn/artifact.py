"""From a fitted estimator to the signed file that is served: the same model, with its privacy label."""

# pyright: basic
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from confide.errors import ModelError
from confide.model.artifact import Artifact
from confide.model.graph import Graph, Linear, Sigmoid
from confide.model.preprocess import Preprocess, Scale
from confide.model.trees import Trees
from confide.sklearn.additive import prepared
from confide.sklearn.boosting import GradientBoostingClassifier
from confide.sklearn.logistic import LogisticRegression
from confide.sklearn.records import public_bounds, public_categories
from confide.train.additive_columns import MOST_LEVELS, additive, with_values
from confide.train.tree_columns import columns_of

Matrix = NDArray[np.float64]


def artifact_of(
    model: LogisticRegression | GradientBoostingClassifier, columns: Sequence[str] | None = None
) -> Artifact:
    """Return a fitted model as what `confide serve` serves: trees in the clear, lines encrypted too.

    Args:
        model: fitted; of several classes each output is one against the rest.
            A served category is one of its names, where X had its place.
        columns: the names of the raw columns; None takes those of the data frame that it was fitted on, else x0, x1 ...

    Raises:
        NotFittedError: it is not fitted.
        ModelError: as many names as there are columns are needed, all different.

    Example:
        >>> import numpy as np
        >>> x = np.linspace(-1, 1, 1000)[:, None]
        >>> model = LogisticRegression(epsilon=1.0, delta=1e-4, bounds=(-1, 1), classes=("low", "high"))
        >>> artifact = artifact_of(model.fit(x, np.where(x[:, 0] > 0, "high", "low")), columns=["age"])
        >>> artifact.graph.classes, artifact.preprocess.columns, artifact.label.unit
        (('high', 'low'), ('age',), 'record')
    """
    check_is_fitted(model)
    features: int = cast("Any", model).n_features_in_
    own = getattr(model, "feature_names_in_", [f"x{one}" for one in range(features)])
    names = [str(name) for name in (own if columns is None else columns)]
    if len(names) != features:
        raise ModelError(f"Expected {features} names of columns, got {len(names)}; one for each column of X")
    low, high = public_bounds(model.bounds, features)
    graph, prepare = (_of_trees if isinstance(model, GradientBoostingClassifier) else _of_lines)(
        model, names, low, high
    )
    return Artifact(graph, prepare, model.privacy_, {"estimator": type(model).__name__})


def _of_lines(model: Any, names: list[str], low: Matrix, high: Matrix) -> tuple[Graph, Preprocess]:
    rules = tuple(
        Scale(name=name, low=float(least), high=float(most), outside="clip")
        for name, least, most in zip(names, low, high, strict=True)
    )
    prepare = Preprocess(rules, unit_rows=True, centre=tuple(np.asarray(model.centre_).tolist()))
    return Graph((Linear(model.coef_, model.intercept_), Sigmoid()), _classes(model)), prepare


def _of_trees(model: Any, names: list[str], low: Matrix, high: Matrix) -> tuple[Graph, Preprocess]:
    prepare = prepared(names, low, high, public_categories(model, len(names)))
    start, columns = additive(prepare), columns_of(prepare, most_levels=MOST_LEVELS)
    trees = with_values(cast("Trees", start.layers[0]), columns, np.concatenate(model.effects_), model.intercept_)
    return Graph((trees, Sigmoid()), _classes(model)), prepare


def _classes(model: Any) -> tuple[str, ...]:
    return tuple(str(one) for one in model.classes_.tolist())
