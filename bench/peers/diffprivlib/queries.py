"""Print the errors of Diffprivlib's queries under one budget. Runs in its own environment.

    .venv/bin/python queries.py ARRAYS.npz QUERIES SEEDS

QUERIES statistics of the array x, bounds 0 to 100, share a budget of epsilon = 1 and delta = 1e-6; each gets what
`BudgetAccountant.remaining` says that so many may have. As one JSON line: root mean squared error over the seeds of
the mean, the variance, the median and a cell of a histogram.
"""

from __future__ import annotations

import json
import sys
import warnings

import numpy as np
from diffprivlib import tools
from diffprivlib.accountant import BudgetAccountant

BOUNDS = (0.0, 100.0)
EDGES = np.linspace(0, 100, 11)


def main() -> None:
    warnings.simplefilter("ignore")
    x, queries, seeds = np.load(sys.argv[1])["x"], int(sys.argv[2]), int(sys.argv[3])
    each = BudgetAccountant(epsilon=1.0, delta=1e-6, slack=0.99e-6).remaining(queries)[0]
    cells = np.histogram(x, EDGES)[0]
    errors = {"mean": [], "variance": [], "median": [], "histogram": []}
    for seed in range(seeds):
        draw = {"epsilon": each, "random_state": seed}
        errors["mean"].append(tools.mean(x, bounds=BOUNDS, **draw) - x.mean())
        errors["variance"].append(tools.var(x, bounds=BOUNDS, **draw) - x.var())
        errors["median"].append(tools.quantile(x, 0.5, bounds=BOUNDS, **draw) - np.median(x))
        found = tools.histogram(x, bins=10, range=BOUNDS, **draw)[0]
        errors["histogram"].append(float(np.sqrt(((found - cells) ** 2).mean())))
    print(json.dumps({name: float(np.sqrt(np.mean(np.square(found)))) for name, found in errors.items()}))


if __name__ == "__main__":
    main()
