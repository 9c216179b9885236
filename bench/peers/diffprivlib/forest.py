"""Print what Diffprivlib's random forest reaches. Runs in its own environment.

    .venv/bin/python forest.py ARRAYS.npz EPSILON SEEDS

The arrays are x, y, x_test, y_test, with columns in [-1, 1] by public bounds, which the forest is told with the
classes; what it is not told it would take from the records. Its claim is (epsilon, 0). As one JSON line: the AUC and
the average precision of each seed, for 10 trees of depth 5, its default, and 100 of depth 10.
"""

from __future__ import annotations

import json
import sys
import warnings

import numpy as np
from diffprivlib.models import RandomForestClassifier
from sklearn.metrics import average_precision_score, roc_auc_score


def main() -> None:
    """Print the figures."""
    warnings.simplefilter("ignore")
    arrays, epsilon, seeds = np.load(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    found: dict[str, list[tuple[float, float]]] = {}
    bounds = (-np.ones(arrays["x"].shape[1]), np.ones(arrays["x"].shape[1]))
    for trees, depth in ((10, 5), (100, 10)):
        for seed in range(seeds):
            model = RandomForestClassifier(
                trees, epsilon=epsilon, bounds=bounds, classes=[0, 1], max_depth=depth, random_state=seed
            ).fit(arrays["x"], arrays["y"])
            score = model.predict_proba(arrays["x_test"])[:, 1]
            pair = roc_auc_score(arrays["y_test"], score), average_precision_score(arrays["y_test"], score)
            found.setdefault(f"{trees} trees of depth {depth}", []).append((float(pair[0]), float(pair[1])))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
