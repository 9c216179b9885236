"""How good a model is: accuracy, the area under the ROC curve, what an alert is worth, the concordance of survival."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from confide.errors import DataError
from confide.model.graph import Graph

Matrix = NDArray[np.float64]
Labels = NDArray[np.int64]

#: Share of records for which somebody is alerted, where the CLI says what an alert is worth.
ALERT_RATE = 0.01

#: A class of fewer records than this share is rare: accuracy says little, alerts are what a model is for.
RARE = 0.1


def decide(y: Matrix) -> Labels:
    """Return class indices from predictions (batch, outputs): threshold 0.5 for one column, argmax for several."""
    return (y[:, 0] > 0.5).astype(np.int64) if y.shape[1] == 1 else y.argmax(axis=1).astype(np.int64)


def accuracy(graph: Graph, x: Matrix, y: Labels) -> float:
    """Return the share of records (0 to 1) whose class is predicted."""
    if not len(x) or y.ndim != 1:
        raise DataError("Expected at least one record to evaluate on, each with a class; survival has `concordance`")
    return float((decide(graph.apply(x)) == y).mean())


def auc(scores: Matrix, y: Labels) -> float:
    """Return the chance (0 to 1) that a random record of class 1 scores above one of class 0; ties count half.

    Args:
        scores: float64, shape (n,).
        y: int64 of 0 and 1, shape (n,), both present.
    """
    positive, negative = np.sort(scores[y == 1]), np.sort(scores[y == 0])
    if not len(positive) or not len(negative):
        raise DataError("Expected records of both classes; AUC is undefined for one")
    below = np.searchsorted(negative, positive, side="left").sum()
    up_to = np.searchsorted(negative, positive, side="right").sum()
    return float((below + up_to) / (2 * len(positive) * len(negative)))


def average_precision(scores: Matrix, y: Labels) -> float:
    """Return the area under the curve of precision over recall, by steps: the mean precision over records of class 1.

    A record's precision is the share of class 1 among those that score as high or higher, ties all included. By chance
    it is the share of class 1.

    Args:
        scores: float64, shape (n,).
        y: int64 of 0 and 1, shape (n,), class 1 present.

    Raises:
        DataError: no record is of class 1.
    """
    if not (y == 1).any():
        raise DataError("Expected a record of class 1; precision over recall is undefined without one")
    order = np.argsort(-scores, kind="stable")
    hits, ordered = np.cumsum(y[order] == 1), scores[order]
    last = np.searchsorted(-ordered, -ordered, side="right") - 1  # of those that score the same
    precision = hits[last] / (last + 1)
    return float(precision[y[order] == 1].mean())


def precision_at_alert_rate(scores: Matrix, y: Labels, rate: float = ALERT_RATE) -> float:
    """Return the share of class 1 among the records that score highest: what an alert is worth.

    Args:
        scores: float64, shape (n,), n >= 1. Where records on the edge score the same, the expected share of a random
            choice among them counts.
        y: int64 of 0 and 1, shape (n,).
        rate: share of records that raise an alert, 0 < rate <= 1; one record at least does.

    Raises:
        DataError: there are no records, or no such rate.
    """
    if not len(y) or not 0 < rate <= 1:
        raise DataError(f"Expected at least one record and an alert rate={rate} above 0, at most 1")
    alerts = max(1, round(rate * len(y)))
    edge = np.partition(scores, len(scores) - alerts)[len(scores) - alerts]
    above, on = scores > edge, scores == edge
    part = (alerts - np.count_nonzero(above)) * (y[on] == 1).mean()
    return float((np.count_nonzero(y[above] == 1) + part) / alerts)


def concordance(scores: Matrix, times: Matrix, events: Labels) -> float:
    """Return the chance (0 to 1) that of two records the one whose event came first scores higher; ties count half.

    Pairs count whose order is known: an event, and a record that was observed beyond it, or as long without an event.

    Args:
        scores: float64, shape (n,), larger for an earlier event.
        times: shape (n,), in any unit.
        events: 1 for an event, 0 for a record that was lost sight of, shape (n,).

    Source: Harrell et al., Evaluating the yield of medical tests (1982).

    Raises:
        DataError: no pair's order is known.
    """
    above, pairs = 0.0, 0
    for place in np.flatnonzero(events == 1).tolist():
        later = (times > times[place]) | ((times == times[place]) & (events != 1))
        others = scores[later]
        above += np.count_nonzero(others < scores[place]) + np.count_nonzero(others == scores[place]) / 2
        pairs += len(others)
    if not pairs:
        raise DataError("Expected an event and a record that was observed beyond it; no pair's order is known")
    return float(above / pairs)


def in_words(graph: Graph, x: Matrix, y: Matrix | Labels) -> str:
    """Return one figure of a model on records in the clear, in words: accuracy, or of survival the concordance index.

    Args:
        y: classes (n,), or times and events (n, 2).

    Raises:
        DataError: there are no records, or no pair's order is known.
    """
    if y.ndim == 2:
        index = concordance(graph.apply(x)[:, 0], y[:, 0].astype(np.float64), y[:, 1].astype(np.int64))
        return f"concordance index on {len(y)} test records: {index:.3f} (by chance: 0.500)"
    share = accuracy(graph, x, y.astype(np.int64))
    majority = np.bincount(y.astype(np.int64)).max() / len(y)
    said = (
        f"accuracy on {len(y)} test records: {100 * share:.1f} % (always the commonest class: {100 * majority:.1f} %)"
    )
    return said if graph.outputs > 1 else said + alerts_in_words(graph, x, y.astype(np.int64))


def alerts_in_words(graph: Graph, x: Matrix, y: Labels) -> str:
    """Return what alerts for class 1 are worth, in words, where that class is rare; else ""."""
    share = float((y == 1).mean())
    if not 0 < share < RARE:
        return ""
    scores = graph.apply(x)[:, 0]
    precision = precision_at_alert_rate(scores, y)
    return (
        f"; average precision {average_precision(scores, y):.3f} (by chance {share:.3f}), precision of the "
        f"{100 * ALERT_RATE:g} % that score highest {precision:.3f}"
    )
