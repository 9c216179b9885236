"""Print scikit-survival's Cox model of pooled records as one JSON line. Runs in its own environment.

    .venv/bin/python cox.py ARRAYS.npz RIDGE

Breslow's ties and the same ridge for each record. The arrays are x, y, x_test, y_test, y with the columns time and
event. Printed: its concordance index on the test records, and its coefficients.
"""

from __future__ import annotations

import json
import sys

import numpy as np
from sksurv.linear_model import CoxPHSurvivalAnalysis
from sksurv.metrics import concordance_index_censored
from sksurv.util import Surv


def main() -> None:
    """Print the figures."""
    arrays, ridge = np.load(sys.argv[1]), float(sys.argv[2])
    x, y, x_test, y_test = (arrays[name] for name in ("x", "y", "x_test", "y_test"))
    model = CoxPHSurvivalAnalysis(alpha=ridge * len(x), ties="breslow", tol=1e-12)
    model.fit(x, Surv.from_arrays(y[:, 1] == 1, y[:, 0]))
    index = concordance_index_censored(y_test[:, 1] == 1, y_test[:, 0], model.predict(x_test))[0]
    print(json.dumps({"index": float(index), "coefficients": model.coef_.tolist()}))


if __name__ == "__main__":
    main()
