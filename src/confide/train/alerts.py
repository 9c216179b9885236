"""What alerts for a rare class are worth, from counts by bins of the score: exact but for records that share a bin.

    scores   float64, shape (2, bins): class 0 and class 1, the bins from low to high

Both figures come as (value, low, high): where records of one bin are ordered among themselves by chance, worst, best.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from confide.train.evaluate import ALERT_RATE, RARE

Matrix = NDArray[np.float64]
Ends = tuple[float, float, float]


def is_rare(scores: Matrix) -> bool:
    """Return whether class 1 is there, and has less than `RARE` of the records."""
    return bool(0 < scores[1].sum() < RARE * scores.sum())


def average_precision(scores: Matrix) -> Ends:
    """Return what `evaluate.average_precision` is for records that were counted, class 1 among them."""
    negative, positive = scores[0, ::-1], scores[1, ::-1]
    above_negative, above_positive = np.cumsum(negative) - negative, np.cumsum(positive) - positive
    parts = np.zeros(3)
    for n, p, below, hits in zip(negative, positive, above_negative, above_positive, strict=True):
        if not p:
            continue
        rising = (
            np.arange(1, round(float(p)) + 1, dtype=np.float64) + hits
        )  # positives one by one, all negatives of the bin before them
        tied = p * (hits + p) / (hits + p + below + n)
        parts += (tied, (rising / (rising + below + n)).sum(), p * (hits + p) / (hits + p + below))
    value, low, high = parts / positive.sum()
    return float(value), float(low), float(high)


def precision_at_alert_rate(scores: Matrix, rate: float = ALERT_RATE) -> Ends:
    """Return what `evaluate.precision_at_alert_rate` is for records that were counted, one at least."""
    negative, positive = scores[0, ::-1], scores[1, ::-1]
    alerts = max(1, round(rate * scores.sum()))
    ends = np.cumsum(negative + positive)
    place = int(np.searchsorted(ends, alerts))
    n, p = negative[place], positive[place]
    hits, left = positive[:place].sum(), alerts - (ends[place] - n - p)
    found = hits + left * p / (n + p), hits + max(0.0, left - n), hits + min(p, left)
    value, low, high = (float(part) / alerts for part in found)
    return value, low, high
