"""Print the test accuracy of Diffprivlib's logistic regression at epsilon = 1. Runs in its own environment.

    .venv/bin/python logistic.py ARRAYS.npz SEEDS

What a newcomer writes: `LogisticRegression(epsilon=1.0, data_norm=...)` on features that the schema's bounds put into
[-1, 1], so that the norm is known without the records. Its claim is (1, 0), which is stronger than (1, delta). As one
JSON line: the accuracy of each seed. The arrays are x, y, x_test, y_test, and tests, the number of each record's set.
"""

from __future__ import annotations

import json
import sys
import warnings

import numpy as np
from diffprivlib.models import LogisticRegression


def main() -> None:
    """Print the figures."""
    warnings.simplefilter("ignore")
    arrays, seeds = np.load(sys.argv[1]), int(sys.argv[2])
    x, y, x_test, y_test, tests = (arrays[name] for name in ("x", "y", "x_test", "y_test", "tests"))
    found = []
    for seed in range(seeds):
        model = LogisticRegression(epsilon=1.0, data_norm=x.shape[1] ** 0.5, max_iter=1000, random_state=seed).fit(x, y)
        right = model.predict(x_test) == y_test
        found.append(float(np.mean([right[tests == one].mean() for one in np.unique(tests)])))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
