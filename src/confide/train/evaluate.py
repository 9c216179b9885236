"""How good a model is: accuracy, the area under the ROC curve, and the concordance of survival."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from confide.errors import DataError
from confide.model.graph import Graph

Matrix = NDArray[np.float64]
Labels = NDArray[np.int64]


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
    return (
        f"accuracy on {len(y)} test records: {100 * share:.1f} % (always the commonest class: {100 * majority:.1f} %)"
    )
