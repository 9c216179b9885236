"""Write coefficients of kymatio's scattering transform, which tests/model/test_scattering.py compares ours with.

    python3 -m venv env && env/bin/pip install -r requirements.txt
    env/bin/python reference.py > ../../../tests/model/scattering_reference.json

The images are formulas, so that the test makes the same ones. Of each transform the file keeps every channel's mean and
its coefficients at the first, a middle and the last place.
"""

from __future__ import annotations

import json
import sys

import numpy as np
from kymatio.numpy import Scattering2D

#: height, width, scales, angles
SIZES = ((28, 28, 2, 8), (32, 48, 3, 4), (30, 18, 1, 6))


def image(height: int, width: int) -> np.ndarray:
    """Return waves, a slope and a bright block, within [0, 1]; the same formula stands in the test."""
    row, column = np.mgrid[:height, :width].astype(np.float64)
    waves = np.cos(1.9 * row + 0.4 * column) + np.sin(0.7 * row - 1.1 * column) + np.cos(0.05 * row * column)
    block = (row > height / 3) & (row < height / 2) & (column > width / 4)
    return np.clip(0.4 + 0.1 * waves + 0.2 * row / height + 0.3 * block, 0.0, 1.0)


def main() -> None:
    """Print the references as JSON."""
    found = []
    for height, width, scales, angles in SIZES:
        transform = Scattering2D(J=scales, L=angles, shape=(height, width))
        maps = transform.scattering(image(height, width))
        rows, columns = maps.shape[1:]
        kept = [maps.mean(axis=(1, 2)), maps[:, 0, 0], maps[:, rows // 2, columns // 3], maps[:, -1, -1]]
        found.append({
            "size": [height, width, scales, angles],
            "map": [rows, columns],
            "coefficients": [[float(f"{value:.8g}") for value in values] for values in kept],
        })  # fmt: skip
    json.dump({"made_by": "kymatio 0.3.0, bench/peers/kymatio/reference.py", "transforms": found}, sys.stdout)
    print()


if __name__ == "__main__":
    main()
