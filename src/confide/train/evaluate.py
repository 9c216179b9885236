"""How good a model is: accuracy and the area under the ROC curve."""

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
    if not len(x):
        raise DataError("Expected at least one record to evaluate on")
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
