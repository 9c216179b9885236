"""What counts of held-out records say: each figure with the interval in which it lies.

Three things blur a figure, and each is in its interval as far as it applies.

* Bins: scores of one bin are not told apart. AUC, Brier score and calibration error are computed for the worst and the
  best place of each score inside its bin, so that the interval holds for certain. The AUC's is as wide as the share of
  pairs, one record of each class, that share a bin: (sum over bins of p n) / (P N), 1 at the very worst.
* Noise, under a privacy plan: its law is public, so figures are computed for many draws of what the counts may have
  been; the interval holds 95 % of them. The calibration error, which noise only ever raises, is bounded group by group.
* Chance: other records would give other figures. `accuracy_on_new_records` allows for it; the figures themselves speak
  of the records that were held out.

Without noise, accuracy, confusion matrix, balanced accuracy and the number of records are exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from confide.crypto.random import public_stream
from confide.train.alerts import average_precision, is_rare, precision_at_alert_rate
from confide.train.evaluate import ALERT_RATE
from confide.train.tally import MARKS, Tally, edges_of

Matrix = NDArray[np.float64]

#: Groups of scores in a reliability curve, of equal width.
GROUPS = 8

_DRAWS = 2000
_TAIL = 0.025


@dataclass(frozen=True, slots=True)
class Figure:
    """A value and where it lies, at 95 % where noise or chance has a part, for certain where bins alone have."""

    value: float
    low: float
    high: float

    @property
    def exact(self) -> bool:
        """Return whether nothing blurs it."""
        return self.low == self.high

    @property
    def unknown(self) -> bool:
        """Return whether a share may be anything."""
        return self.low <= 0 and self.high >= 1

    def __str__(self) -> str:
        if self.exact:
            return f"{self.value:.3f}"
        return "cannot tell" if self.unknown else f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True, slots=True)
class Reliability:
    """What happened to the records whose score lies in one group.

    Args:
        above, up_to: the scores of the group.
        records: how many there are.
        score: their mean score.
        happened: the share for which it happened: class 1, or with several classes the chosen class was right.
    """

    above: float
    up_to: float
    records: Figure
    score: Figure
    happened: Figure


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """How good a model is on the held-out records of everybody in `members` together.

    Args:
        records: how many there are.
        accuracy: share whose class was chosen.
        balanced_accuracy: mean of that share over the classes that occur.
        auc: of two classes: the chance that a record of class 1 scores above one of class 0, ties one half; None for
            several classes, or when a class is absent.
        brier: mean squared distance of the score from what happened, 0 or 1.
        calibration_error: distance of mean score and share for which it happened, in each of `GROUPS` groups of
            scores, on average over the records.
        curve: the same, group by group; groups without records are left out.
        confusion: counts by (true class, chosen class), shape (K, K); whole numbers unless there is noise.
        members: whose records.
        smallest: members of the smallest sum that the server saw.
        average_precision, alerts: of two classes, where class 1 is rare and there is no noise: the area under precision
            over recall, and the precision of the records that score highest (`evaluate.ALERT_RATE`); else None.
        noise: standard deviation of each count; 0 without a privacy plan.
    """

    records: Figure
    accuracy: Figure
    balanced_accuracy: Figure
    auc: Figure | None
    brier: Figure
    calibration_error: Figure
    curve: tuple[Reliability, ...]
    confusion: Matrix
    members: frozenset[str]
    smallest: int
    noise: float
    average_precision: Figure | None = None
    alerts: Figure | None = None

    @staticmethod
    def of(tally: Tally, counts: Matrix, members: Sequence[frozenset[str]], *, noise: float = 0.0) -> Evaluation:
        """Return what `Tally.counts` says.

        Args:
            tally: how the records were counted.
            counts: float64, shape (length,).
            members: of each sum that was added up.
            noise: standard deviation of each count.
        """
        possible = _possible(counts, noise)
        confusion, scores = tally.split(possible)
        edges = edges_of(tally.bins)
        rare = tally.classes == 2 and not noise and is_rare(scores[0])
        return Evaluation(
            records=_figure(*_records(confusion)),
            accuracy=_figure(*_accuracy(confusion)),
            balanced_accuracy=_figure(*_balanced(confusion)),
            auc=_auc_figure(scores, noise) if tally.classes == 2 else None,
            brier=_figure(*_brier(scores, edges)),
            calibration_error=_calibration_error(scores[0], edges, noise),
            curve=tuple(_curve(scores, edges)),
            confusion=confusion[0].copy(),
            members=frozenset[str]().union(*members),
            smallest=min(map(len, members)),
            noise=noise,
            average_precision=Figure(*average_precision(scores[0])) if rare else None,
            alerts=Figure(*precision_at_alert_rate(scores[0])) if rare else None,
        )

    def accuracy_on_new_records(self) -> Figure:
        """Return the accuracy with the 95 % interval for records of the same kind (Wilson's, for each end)."""
        few = max(0.0, self.records.low)
        low, high = wilson(self.accuracy.low, few)[0], wilson(self.accuracy.high, few)[1]
        return Figure(self.accuracy.value, low, high)

    def sentences(self) -> list[str]:
        """Return the figures as lines to print."""
        count = f"{self.records.value:.0f}"
        if self.noise:
            count = f"about {count} (noise: {self.records.low:.0f} to {self.records.high:.0f})"
        lines = [
            f"on {count} held-out records of {len(self.members)} parties, counted in one sum:",
            f"accuracy {self.accuracy}; for new records {self.accuracy_on_new_records()}",
            f"balanced accuracy {self.balanced_accuracy}",
            f"Brier score {self.brier}, calibration error {self.calibration_error}",
        ]
        lines += [f"AUC {self.auc}"] if self.auc is not None else []
        if self.average_precision is not None:
            chance = float(self.confusion[1].sum() / self.confusion.sum())
            lines.append(f"average precision {self.average_precision} (by chance {chance:.3f})")
            lines.append(f"precision of the {100 * ALERT_RATE:g} % that score highest {self.alerts}")
        return lines


def wilson(share: float, records: float) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a probability, from the share (0 to 1) that was seen in `records` trials."""
    if records <= 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(1 - _TAIL)
    centre, weight = share + z * z / (2 * records), 1 + z * z / records
    half = z * math.sqrt(share * (1 - share) / records + z * z / (4 * records * records))
    return max(0.0, (centre - half) / weight), min(1.0, (centre + half) / weight)


# --- one row of counts for each draw of the noise: row 0 as they came, the others what they may have been -------------


def _possible(counts: Matrix, noise: float) -> Matrix:
    if not noise:
        return counts[None, :]
    draws = public_stream("federated evaluation", "noise intervals").standard_normal((_DRAWS, len(counts)))
    return np.concatenate([counts[None, :], counts - noise * draws])


def _figure(value: Matrix, low: Matrix, high: Matrix) -> Figure:
    """Return the first row's value between the quantiles of all others, or between its own ends if it is alone."""
    if len(value) == 1:
        return Figure(float(value[0]), float(low[0]), float(high[0]))
    bottom, top = float(np.quantile(low[1:], _TAIL)), float(np.quantile(high[1:], 1 - _TAIL))
    return Figure(min(max(float(value[0]), bottom), top), bottom, top)


def _share(part: Matrix, low: Matrix, high: Matrix, whole: Matrix) -> tuple[Matrix, Matrix, Matrix]:
    """Return part / whole within [0, 1] and its ends; anything is possible where hardly a record is."""
    known = whole >= 1
    safe = np.where(known, whole, 1.0)
    value = np.where(known, np.clip(part / safe, 0, 1), 0.5)
    ends = np.clip(low / safe, 0, 1), np.clip(high / safe, 0, 1)
    return value, np.where(known, np.minimum(*ends), 0.0), np.where(known, np.maximum(*ends), 1.0)


def _records(confusion: Matrix) -> tuple[Matrix, Matrix, Matrix]:
    total = np.maximum(confusion.sum(axis=(1, 2)), 0.0)
    return total, total, total


def _accuracy(confusion: Matrix) -> tuple[Matrix, Matrix, Matrix]:
    right = np.trace(confusion, axis1=1, axis2=2)
    return _share(right, right, right, confusion.sum(axis=(1, 2)))


def _balanced(confusion: Matrix) -> tuple[Matrix, Matrix, Matrix]:
    """Return the mean recall over the classes that occur; with noise, a class that may be absent makes it vague."""
    right, total = np.diagonal(confusion, axis1=1, axis2=2), confusion.sum(axis=2)
    if len(confusion) > 1:
        value, low, high = _share(right, right, right, total)
        return value.mean(axis=1), low.mean(axis=1), high.mean(axis=1)
    occurs = total > 0
    recall = np.divide(right, total, out=np.zeros_like(right), where=occurs)
    mean = recall.sum(axis=1) / np.maximum(occurs.sum(axis=1), 1)
    return mean, mean, mean


def _auc_figure(scores: Matrix, noise: float) -> Figure | None:
    negative, positive = scores[:, 0], scores[:, 1]
    totals = negative.sum(axis=1), positive.sum(axis=1)
    if not noise and not all(total.all() for total in totals):
        return None  # undefined for one class
    below = ((np.cumsum(negative, axis=1) - negative) * positive).sum(axis=1)
    ties = (negative * positive).sum(axis=1)
    pairs = np.where(np.minimum(*totals) >= 1, totals[0] * totals[1], 0.0)
    return _figure(*_share(below + ties / 2, below, below + ties, pairs))


def _brier(scores: Matrix, edges: Matrix) -> tuple[Matrix, Matrix, Matrix]:
    above, up_to = edges[:-1], edges[1:]
    middle = (above + up_to) / 2
    parts = [np.zeros(len(scores)) for _ in range(3)]
    for row, squares in enumerate(
        ((above**2, middle**2, up_to**2), ((1 - up_to) ** 2, (1 - middle) ** 2, (1 - above) ** 2))
    ):
        for part, square in zip(parts, squares, strict=True):
            part += scores[:, row] @ square
    low, value, high = parts
    return _share(value, low, high, scores.sum(axis=(1, 2)))


def _grouped(cells: Matrix, edges: Matrix) -> Matrix:
    """Return cells summed over the bins of each group, (..., bins) to (..., GROUPS)."""
    starts = np.searchsorted(edges[:-1], np.arange(GROUPS) / GROUPS)
    return np.add.reduceat(cells, starts, axis=-1)


def _calibration_error(scores: Matrix, edges: Matrix, noise: float) -> Figure:
    """Return the calibration error of counts (2, bins), between bounds that hold for all groups at once."""
    total, happened = scores.sum(axis=0), _grouped(scores[1], edges)
    records = max(float(total.sum()), 1.0)
    gaps = [
        happened - _grouped(total * place, edges) for place in (edges[1:], (edges[:-1] + edges[1:]) / 2, edges[:-1])
    ]
    ends = np.minimum(gaps[0], gaps[2]), np.maximum(gaps[0], gaps[2])
    if not noise:
        nearest = np.maximum(0.0, np.maximum(ends[0], -ends[1]))
        furthest = np.maximum(np.abs(ends[0]), np.abs(ends[1]))
        return Figure(*(float(part.sum() / records) for part in (np.abs(gaps[1]), nearest, furthest)))
    middle = (edges[:-1] + edges[1:]) / 2
    deviation = noise * np.sqrt(_grouped((1 - middle) ** 2 + middle**2, edges))  # of each group's gap
    reach = NormalDist().inv_cdf(1 - _TAIL / (GROUPS + 1))  # all groups and the number of records at once
    spread = reach * noise * math.sqrt(MARKS * len(edges[1:]))
    few, many = max(records - spread, 1.0), records + spread
    low = np.maximum(0.0, np.maximum(ends[0], -ends[1]) - reach * deviation).sum() / many
    high = (np.maximum(np.abs(ends[0]), np.abs(ends[1])) + reach * deviation).sum() / few
    value = np.sqrt(np.maximum(0.0, gaps[1] ** 2 - deviation**2)).sum() / records  # without what noise adds
    low, high = min(float(low), 1.0), min(float(high), 1.0)
    return Figure(min(max(float(value), low), high), low, high)


def _curve(scores: Matrix, edges: Matrix) -> list[Reliability]:
    total = scores.sum(axis=1)
    middle = (edges[:-1] + edges[1:]) / 2
    records, happened = _grouped(total, edges), _grouped(scores[:, 1], edges)
    means = [_grouped(total * place, edges) for place in (middle, edges[:-1], edges[1:])]
    points: list[Reliability] = []
    for group in range(GROUPS):
        count, part = records[:, group], happened[:, group]
        if round(float(count[0])) < 1:
            continue
        held = np.maximum(count, 0.0)
        points.append(
            Reliability(
                above=group / GROUPS,
                up_to=(group + 1) / GROUPS,
                records=_figure(held, held, held),
                score=_figure(*_share(means[0][:, group], means[1][:, group], means[2][:, group], count)),
                happened=_figure(*_share(part, part, part, count)),
            )
        )
    return points
