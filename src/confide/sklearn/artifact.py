"""From a fitted estimator to the signed file that is served: the same model, with its privacy label."""

# pyright: basic
from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.utils.validation import check_is_fitted

from confide.model.artifact import Artifact
from confide.model.graph import Graph, Linear, Sigmoid
from confide.model.preprocess import Preprocess, Scale
from confide.sklearn.logistic import LogisticRegression
from confide.sklearn.records import public_bounds


def artifact_of(model: LogisticRegression, columns: Sequence[str] | None = None) -> Artifact:
    """Return a fitted model as what `confide serve` serves, in the clear or encrypted.

    Args:
        model: fitted; of several classes each output is one against the rest.
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
    features = model.coef_.shape[1]
    own = getattr(model, "feature_names_in_", [f"x{one}" for one in range(features)])
    low, high = public_bounds(model.bounds, features)
    rules = tuple(
        Scale(name=str(name), low=float(least), high=float(most), outside="clip")
        for name, least, most in zip(own if columns is None else columns, low, high, strict=False)
    )
    prepare = Preprocess(rules, unit_rows=True, centre=tuple(np.asarray(model.centre_).tolist()))
    classes = tuple(str(one) for one in model.classes_.tolist())
    graph = Graph((Linear(model.coef_, model.intercept_), Sigmoid()), classes)
    return Artifact(graph, prepare, model.privacy_, {"estimator": "LogisticRegression"})
