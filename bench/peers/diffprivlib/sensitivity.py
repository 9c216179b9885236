"""Replay Diffprivlib's queries and models on neighbours, without noise. Runs in its own environment.

    .venv/bin/python sensitivity.py PAIRS

The same test as tests/statistical/test_queries_sensitivity.py: a mechanism notes what it is asked to hide and the
sensitivity that it was made with, and gives the exact value back; a neighbour (one record replaced, as Diffprivlib
counts) is run with the first one's answers. A distance above the sensitivity is a claim that does not hold. As one
JSON line: the largest distance over the sensitivity for each case; null where the records alone decided between an
answer and an error, which no noise covers; 1e300 where it is infinite: a sensitivity of 0, or NaN for one of the two.
"""

from __future__ import annotations

import json
import math
import sys
import warnings

import numpy as np
from diffprivlib import mechanisms, tools
from diffprivlib.models import LinearRegression

NOISED = (mechanisms.Laplace, mechanisms.LaplaceTruncated, mechanisms.LaplaceFolded, mechanisms.LaplaceBoundedDomain)


INFINITE = 1e300


class Replay:
    """What was asked to be hidden, and how far the neighbour's is from it."""

    def __init__(self) -> None:
        self.asked: list[tuple[float, float]] = []
        self.second, self.place, self.worst = False, 0, 0.0

    def randomise(self, mechanism, value):
        if not self.second:
            self.asked.append((float(value), float(mechanism.sensitivity)))
            return value
        first, sensitivity = self.asked[self.place]
        self.place += 1
        apart = abs(float(value) - first)
        if math.isnan(apart) or (apart > 1e-9 and not sensitivity):
            self.worst = INFINITE  # one is NaN and the other is not, or no noise was thought to be needed
        elif sensitivity:
            self.worst = max(self.worst, apart / sensitivity)
        return first


def distance(run, records, neighbour) -> float | None:
    replay = Replay()
    for kind in NOISED:
        kind.randomise = lambda self, value: replay.randomise(self, value)
    ends = []
    for rows in (records, neighbour):
        try:
            run(rows)
            ends.append(True)
        except ValueError:
            ends.append(False)
        replay.second = True
    if ends[0] != ends[1]:
        return None
    return replay.worst


def pairs(count: int, columns: int, low: float, high: float, missing: float = 0.0):
    draw = np.random.default_rng(5)
    for number in range(count):
        rows = draw.uniform(low, high, ((1, 2, 7, 40)[number % 4] + 1, columns))
        rows[draw.random(rows.shape) < missing] = np.nan
        other = rows.copy()
        rows[0], other[0] = draw.choice([low, high], columns), draw.choice([low, high], columns)
        yield rows, other


def with_nan(count: int):
    for rows, other in pairs(count, 1, 0.0, 100.0):
        other[0] = np.nan
        yield rows, other


def least_squares(rows):
    LinearRegression(epsilon=1.0, bounds_X=(0, 100), bounds_y=(0, 100)).fit(rows[:, :2], rows[:, 2])


CASES = {
    "LinearRegression, bounds (0, 100)": (least_squares, lambda count: pairs(count, 3, 0.0, 100.0)),
    "mean, bounds given": (
        lambda rows: tools.mean(rows[:, 0], epsilon=1.0, bounds=(0, 100)),
        lambda count: pairs(count, 1, 0.0, 100.0),
    ),
    "mean, bounds from the records": (
        lambda rows: tools.mean(rows[:, 0], epsilon=1.0),
        lambda count: pairs(count, 1, 0.0, 100.0),
    ),
    "nanmean, half of the values missing": (
        lambda rows: tools.nanmean(rows[:, 0], epsilon=1.0, bounds=(0, 100)),
        lambda count: pairs(count, 1, 0.0, 100.0, missing=0.5),
    ),
    "mean, one NaN": (lambda rows: tools.mean(rows[:, 0], epsilon=1.0, bounds=(0, 100)), with_nan),
}


def main() -> None:
    warnings.simplefilter("ignore")
    found = {}
    for name, (run, make) in CASES.items():
        worst = [distance(run, *pair) for pair in make(int(sys.argv[1]))]
        found[name] = None if None in worst else max(worst)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
