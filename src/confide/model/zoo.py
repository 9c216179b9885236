"""Public starting points for training: the shapes that every backend runs well."""

from __future__ import annotations

import math

import numpy as np

from confide.crypto.random import public_stream
from confide.errors import ModelError
from confide.model.graph import Graph, Linear, Sigmoid, Square
from confide.model.trees import perfect


def logistic(features: int, outputs: int = 1, *, classes: tuple[str, ...] = ()) -> Graph:
    """Return logistic regression with every parameter zero: convex, so the start does not matter.

    Args:
        features, outputs: columns in and out, >= 1.
        classes: names of the outcomes; empty, or as `Graph` says.

    Example:
        >>> logistic(30).parameters
        31
    """
    _check(features=features, outputs=outputs)
    return Graph((Linear(np.zeros((outputs, features)), np.zeros(outputs)), Sigmoid()), classes)


def hazard(features: int) -> Graph:
    """Return a linear log hazard with every parameter zero: one output, larger for records whose event comes sooner."""
    _check(features=features)
    return Graph((Linear(np.zeros((1, features)), np.zeros(1)),))


def mlp(features: int, hidden: int, outputs: int = 1, *, seed: int | str, classes: tuple[str, ...] = ()) -> Graph:
    """Return a network with one hidden layer of squares, its weights drawn from a public stream.

    Weights are normal with variance 1 / (features) and 1 / (3 hidden): features in [-1, 1] then keep the squares near
    or below 1 and the logits of that order (the square of a standard normal has second moment 3). Biases are zero.

    Args:
        features, hidden, outputs: columns in, squared and out, >= 1.
        seed: of the public stream "initial weights".
        classes: names of the outcomes; empty, or as `Graph` says.

    Example:
        >>> mlp(30, 16, seed=1).parameters
        513
    """
    _check(features=features, hidden=hidden, outputs=outputs)
    stream = public_stream(seed, "initial weights")
    first = stream.normal(0.0, 1.0 / math.sqrt(features), (hidden, features))
    second = stream.normal(0.0, 1.0 / math.sqrt(3 * hidden), (outputs, hidden))
    layers = (Linear(first, np.zeros(hidden)), Square(), Linear(second, np.zeros(outputs)), Sigmoid())
    return Graph(layers, classes)


def boosted(features: int, trees: int, depth: int, outputs: int = 1, *, classes: tuple[str, ...] = ()) -> Graph:
    """Return trees that say nothing yet: what boosting starts from.

    Args:
        features, outputs: columns in and out, >= 1.
        trees: of each output, >= 1.
        depth: of every tree, >= 1.
        classes: names of the outcomes; empty, or as `Graph` says.

    Example:
        >>> boosted(14, 100, 2).layers[0]
        Trees(14 -> 1, 100 trees, 400 leaves)
    """
    _check(features=features, trees=trees, depth=depth, outputs=outputs)
    return Graph((perfect(trees * outputs, depth, features=features, outputs=outputs), Sigmoid()), classes)


def _check(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ModelError(f"Expected {name}={size} to be at least 1")
