"""Train LightGBM on pooled records and write its scores. Runs in its own environment.

    .venv/bin/python trees.py ARRAYS.npz SETTINGS SCORES.npy

The arrays are x, y, x_test and `category`, true for columns of codes. SETTINGS are LightGBM's, as JSON; what they leave
out is its default. Printed as one JSON line: the seconds of the training, its binning included.
"""

from __future__ import annotations

import json
import sys
import time

import lightgbm
import numpy as np


def main() -> None:
    """Train, write, print."""
    arrays, settings = np.load(sys.argv[1]), json.loads(sys.argv[2])
    rounds = settings.pop("num_iterations")
    begin = time.perf_counter()
    categories = np.flatnonzero(arrays["category"]).tolist()
    records = lightgbm.Dataset(arrays["x"], arrays["y"], categorical_feature=categories, params={"verbose": -1})
    trained = lightgbm.train({"objective": "binary", "verbose": -1, **settings}, records, rounds)
    seconds = time.perf_counter() - begin
    np.save(sys.argv[3], trained.predict(arrays["x_test"]))
    print(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main()
