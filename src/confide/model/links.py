"""From a model's outputs to what people ask for: the likeliest class, probabilities, the mean. At the client only.

A link says what an output column is:

    "probability"   of a class by itself: the model ends in a sigmoid; one column stands for the second of two classes
    "logit"         a score: sigmoid of one column, softmax of several give probabilities
    "log"           the logarithm of a mean or of a hazard ratio (Poisson, gamma, Cox): exp gives it
    "identity"      the mean itself
    ""              the model does not say; several columns that are named count as logits
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from confide.errors import ModelError, UsageError
from confide.model.graph import Graph, Sigmoid, sigmoid

Matrix = NDArray[np.float64]

LINKS = ("", "probability", "logit", "log", "identity")


def link_of(graph: Graph, stated: str = "") -> str:
    """Return the link of a model: a last sigmoid says it, else what its owner stated; "" if nobody says.

    Raises:
        ModelError: the statement is no link, or contradicts the sigmoid.
    """
    known = ("", "probability") if isinstance(graph.layers[-1], Sigmoid) else LINKS
    if stated not in known:
        raise ModelError(f"Expected link={stated!r} to be one of {', '.join(filter(None, known))}")
    if isinstance(graph.layers[-1], Sigmoid):
        return "probability"
    return stated or ("logit" if graph.outputs > 1 and graph.classes else "")


def probabilities(y: Matrix, link: str, classes: tuple[str, ...]) -> Matrix:
    """Return one probability per class, shape (rows, classes); each row sums to 1.

    Args:
        y: outputs, float64, shape (rows, outputs).
        link: "probability" of several classes, one against the rest each, is divided by its sum.
        classes: their names.

    Raises:
        UsageError: the outputs are no probabilities of classes.
    """
    if not classes:
        raise UsageError("Expected a model that names its classes; use predict")
    if link == "probability":
        if y.shape[1] == 1:
            return np.hstack([1 - y, y])
        low = np.maximum(y, np.finfo(np.float64).tiny)  # a reply that carries noise may be a little below 0
        return low / low.sum(axis=1, keepdims=True)
    if y.shape[1] == 1 and link == "logit":
        return np.hstack([sigmoid(-y), sigmoid(y)])
    if y.shape[1] > 1 and link in ("", "logit"):
        return _softmax(y)
    raise UsageError("Expected a model whose outputs are logits or probabilities of its classes; use predict or mean")


def mean(y: Matrix, link: str) -> Matrix:
    """Return what the outputs are about, shape (rows, outputs): exp of a logarithm, probabilities of logits, else y."""
    if link == "log":
        with np.errstate(over="ignore"):
            return np.exp(y)
    if link == "logit":
        return sigmoid(y) if y.shape[1] == 1 else _softmax(y)
    return y


def decide(y: Matrix, link: str, classes: tuple[str, ...]) -> list[str]:
    """Return the name of the likeliest class of each row. Raises UsageError if the model names none."""
    if not classes:
        raise UsageError("Expected a model that names its classes; use predict")
    limit = 0.0 if link == "logit" else 0.5
    places = (y[:, 0] > limit).astype(int) if y.shape[1] == 1 else y.argmax(axis=1)
    return [classes[place] for place in places.tolist()]


def _softmax(y: Matrix) -> Matrix:
    shifted = np.exp(y - y.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)
