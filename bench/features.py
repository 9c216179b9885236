"""Features fixed in advance: images per second, and what a linear model makes of them.

    OMP_NUM_THREADS=1 python bench/features.py [--records 2000] [--json FILE]

Speed: processor seconds of one core for images of 28 x 28 through 81 channels (2 scales, 8 angles), the best of three;
beside it kymatio 0.3.0 on the same images, if bench/peers/kymatio/.venv is there (see requirements.txt there).

Accuracy, where ../shared/data is present: ridge regression without privacy on the first records of MNIST, 2,000 test
images, the best of three ridge coefficients. It compares features, so no figure of it is one of a private model.
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
from figures import Figure, at_least, command_line, show, write

from confide.model.projection import RandomProjection
from confide.model.scattering import Scattering

MNIST = Path(__file__).parents[1] / "../shared/data/mnist/mnist.npz"
PEER = Path(__file__).parent / "peers" / "kymatio"
IMAGES, REPEATS, TESTED = 512, 3, 2000
BAR_PER_SECOND = 2000.0
RIDGES = (0.01, 0.1, 1.0)


def ours_per_second() -> float:
    """Return images per processor second."""
    x = np.random.default_rng(0).uniform(size=(IMAGES, 28, 28)).astype(np.float32)
    transform, seconds = Scattering(28, 28), []
    transform.apply(x[:1])  # the filters
    for _ in range(REPEATS):
        begin = time.process_time()
        transform.apply(x)
        seconds.append(time.process_time() - begin)
    return IMAGES / min(seconds)


def theirs_per_second() -> float | None:
    """Return kymatio's images per processor second; None where it is not installed."""
    python = PEER / ".venv" / "bin" / "python"
    if not python.exists():
        print("kymatio is not installed: see bench/peers/kymatio/requirements.txt")
        return None
    command = [str(python), str(PEER / "speed.py"), str(IMAGES), str(REPEATS)]
    return IMAGES / float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


WAYS: dict[str, Any] = {
    "pixels, unit rows": lambda x: unit(x.reshape(len(x), -1)),
    "scattering, unit rows": lambda x: unit(Scattering(28, 28).apply(x)),
    "scattering in 9 groups": Scattering(28, 28, groups=9).apply,
    "scattering in 27 groups": Scattering(28, 28, groups=27).apply,
    "scattering in 81 groups": Scattering(28, 28, groups=81).apply,
    "scattering means in 27 groups": Scattering(28, 28, averaged=True, groups=27).apply,
    "27 groups, projected to 1,024": lambda x: unit(
        RandomProjection(3969, 1024, 1).apply(Scattering(28, 28, groups=27).apply(x))
    ),
}


def accuracy(way: Any, records: int) -> float:
    """Return the accuracy of ridge regression on the features in percent."""
    with np.load(MNIST) as file:
        train, y = file["x_train"][:records] / 255.0, file["y_train"][:records].astype(int)
        test, wanted = file["x_test"][:TESTED] / 255.0, file["y_test"][:TESTED].astype(int)
    a, b = (way(images).astype(np.float32) for images in (train, test))
    kernel, across, targets = a @ a.T, b @ a.T, np.eye(10, dtype=np.float32)[y] - np.float32(0.1)
    right = [
        (across @ np.linalg.solve(kernel + np.float32(ridge) * np.eye(len(a), dtype=np.float32), targets)).argmax(1)
        == wanted
        for ridge in RIDGES
    ]
    return 100.0 * max(float(each.mean()) for each in right)


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--records", type=int, default=2000, help="training records of MNIST")
    args = parser.parse_args()
    ours, theirs = round(ours_per_second(), 2), theirs_per_second()
    peer = (None, None) if theirs is None else ("kymatio 0.3.0", round(theirs, 2))
    met = at_least(ours, BAR_PER_SECOND)
    found = [Figure("scattering of 28 x 28, one core", ours, "images/s", *peer, BAR_PER_SECOND, met)]
    if MNIST.exists():
        found += [Figure(f"MNIST, {name}", round(accuracy(way, args.records), 2), "%") for name, way in WAYS.items()]
    show(found)
    write(found, args.json)


if __name__ == "__main__":
    main()
