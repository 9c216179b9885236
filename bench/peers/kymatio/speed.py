"""Print the processor seconds that kymatio 0.3.0 takes for images of 28 x 28. Runs in its own environment.

env/bin/python speed.py IMAGES REPEATS
"""

import sys
import time

import numpy as np
from kymatio.numpy import Scattering2D


def main() -> None:
    """Print the best of some repeats."""
    images, repeats = int(sys.argv[1]), int(sys.argv[2])
    x = np.random.default_rng(0).uniform(size=(images, 28, 28)).astype(np.float32)
    transform, seconds = Scattering2D(J=2, L=8, shape=(28, 28)), []
    for _ in range(repeats):
        begin = time.process_time()
        transform.scattering(x)
        seconds.append(time.process_time() - begin)
    print(min(seconds))


if __name__ == "__main__":
    main()
