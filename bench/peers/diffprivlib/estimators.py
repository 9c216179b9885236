"""Print what Diffprivlib's estimators reach at epsilon = 1. Runs in its own environment.

    .venv/bin/python estimators.py ARRAYS.npz TASK

TASK is "classify", "trees", "regress", "cluster" or "components". The arrays are x, y, and test, shape (seeds, n), true
for the records of a seed's test part; beside them y_bounds for "regress", and for "trees" low and high of each column,
where a column with categories has their places. Other columns are in [-1, 1] by public bounds, which every estimator is
told. Its claim is (1, 0) for replacing one record, at most twice as strong as adding or removing one. As one JSON line:
the figure of each seed, by what it is of.

Logistic regression is tried as it is documented, with the norm that the bounds imply, and with rows that are brought to
length 1 first, which needs no record.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
from diffprivlib.models import PCA, GaussianNB, KMeans, LinearRegression, LogisticRegression, RandomForestClassifier

BOUNDS = (-1.0, 1.0)


def classify(x, y, test, seed: int, _) -> Iterator[tuple[str, float]]:
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    norm = x.shape[1] ** 0.5
    for name, rows, model in (
        ("logistic", x, LogisticRegression(epsilon=1.0, data_norm=norm, max_iter=1000, random_state=seed)),
        ("logistic, unit rows", unit, LogisticRegression(epsilon=1.0, data_norm=1.0, max_iter=1000, random_state=seed)),
        ("naive Bayes", x, GaussianNB(epsilon=1.0, bounds=BOUNDS, random_state=seed)),
    ):
        yield name, 100 * model.fit(rows[~test], y[~test]).score(rows[test], y[test])


def trees(x, y, test, seed: int, bounds) -> Iterator[tuple[str, float]]:
    model = RandomForestClassifier(epsilon=1.0, bounds=bounds, classes=[0, 1], random_state=seed)
    yield "random forest", 100 * model.fit(x[~test], y[~test]).score(x[test], y[test])


def regress(x, y, test, seed: int, y_bounds) -> Iterator[tuple[str, float]]:
    model = LinearRegression(epsilon=1.0, bounds_X=BOUNDS, bounds_y=tuple(y_bounds), random_state=seed)
    yield "least squares", model.fit(x[~test], y[~test]).score(x[test], y[test])


def cluster(x, y, test, seed: int, _) -> Iterator[tuple[str, float]]:
    model = KMeans(len(np.unique(y)), epsilon=1.0, bounds=BOUNDS, random_state=seed).fit(x[~test])
    apart = ((x[test][:, None] - model.cluster_centers_[None]) ** 2).sum(axis=2)
    yield "k-means", float(apart.min(axis=1).mean())


def components(x, y, test, seed: int, _) -> Iterator[tuple[str, float]]:
    norm = x.shape[1] ** 0.5
    model = PCA(8, epsilon=1.0, bounds=BOUNDS, data_norm=norm, random_state=seed).fit(x[~test])
    centred = x[test] - x[test].mean(axis=0)
    kept = centred @ np.linalg.qr(model.components_.T)[0]
    yield "PCA", 100 * float((kept * kept).sum() / (centred * centred).sum())


TASKS = {"classify": classify, "trees": trees, "regress": regress, "cluster": cluster, "components": components}


def main() -> None:
    warnings.simplefilter("ignore")
    arrays = np.load(sys.argv[1])
    found: dict[str, list[float]] = defaultdict(list)
    bounds = (arrays["low"], arrays["high"]) if "low" in arrays else arrays.get("y_bounds")
    for seed, test in enumerate(arrays["test"]):
        for name, figure in TASKS[sys.argv[2]](arrays["x"], arrays["y"], test, seed, bounds):
            found[name].append(figure)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
