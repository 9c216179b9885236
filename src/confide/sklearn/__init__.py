"""scikit-learn estimators with differential privacy, for one holder of all records: `fit`, `predict`, pipelines."""

from importlib.util import find_spec

from confide.errors import MissingExtra

if find_spec("sklearn") is None:
    raise MissingExtra("scikit-learn", "train")

from confide.sklearn.artifact import artifact_of
from confide.sklearn.bayes import GaussianNB
from confide.sklearn.boosting import GradientBoostingClassifier
from confide.sklearn.forest import RandomForestClassifier
from confide.sklearn.kmeans import KMeans
from confide.sklearn.logistic import LogisticRegression
from confide.sklearn.pca import PCA
from confide.sklearn.regression import LinearRegression, Ridge
from confide.sklearn.scaler import StandardScaler

__all__ = [
    "PCA",
    "GaussianNB",
    "GradientBoostingClassifier",
    "KMeans",
    "LinearRegression",
    "LogisticRegression",
    "RandomForestClassifier",
    "Ridge",
    "StandardScaler",
    "artifact_of",
]
