"""scikit-learn estimators with differential privacy, for one holder of all records: `fit`, `predict`, pipelines."""

from importlib.util import find_spec

from confide.errors import MissingExtra

if find_spec("sklearn") is None:
    raise MissingExtra("scikit-learn", "train")

from confide.sklearn.logistic import LogisticRegression

__all__ = ["LogisticRegression"]
