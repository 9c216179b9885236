"""Local work of a silo: losses and gradients of a graph, per record or summed, in numpy.

The loss is the logistic loss of each output against its class (one-vs-rest for several), so the gradient at the logits
is p - y. Parameters travel as one flat vector: weight then bias of each linear layer, row-major.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from confide.errors import DataError, ModelError
from confide.model.graph import Graph, Linear, Sigmoid, Square, sigmoid

Matrix = NDArray[np.float64]
Labels = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Silo:
    """One party's records; they never leave it.

    Args:
        name: the party.
        x: float64, shape (n, features).
        y: int64 class indices, shape (n,).
    """

    name: str
    x: Matrix
    y: Labels

    def __post_init__(self) -> None:
        if self.x.ndim != 2 or self.y.shape != self.x.shape[:1]:
            raise DataError(
                f"Expected x (n, features) and y (n,) at {self.name}, got {self.x.shape} and {self.y.shape}"
            )
        if not np.isfinite(self.x).all():
            raise DataError(f"Expected finite features at {self.name}; state a rule for missing values in the schema")

    def __repr__(self) -> str:
        return f"Silo({self.name!r})"


def targets(y: Labels, outputs: int) -> Matrix:
    """Return the targets of `outputs` columns: (y == 1) for one column, one-hot for several."""
    if outputs == 1:
        return (y == 1).astype(np.float64)[:, None]
    return (y[:, None] == np.arange(outputs)[None, :]).astype(np.float64)


def flatten(graph: Graph) -> Matrix:
    """Return all parameters as one float64 vector, shape (parameters,)."""
    parts = [part.ravel() for layer in graph.layers if isinstance(layer, Linear) for part in (layer.weight, layer.bias)]
    return np.concatenate(parts)


def unflatten(graph: Graph, vector: Matrix) -> Graph:
    """Return `graph` with its parameters replaced by `vector`."""
    layers: list[Linear | Square | Sigmoid] = []
    at = 0
    for layer in graph.layers:
        if isinstance(layer, Linear):
            weight = vector[at : at + layer.weight.size].reshape(layer.weight.shape)
            at += layer.weight.size
            bias = vector[at : at + layer.bias.size]
            at += layer.bias.size
            layer = Linear(weight.copy(), bias.copy())
        layers.append(layer)
    return Graph(tuple(layers), graph.classes)


def _passes(graph: Graph, x: Matrix, y: Labels) -> list[tuple[Matrix, Matrix]]:
    """Return (input, gradient at the output) of each linear layer, per record: shapes (n, in), (n, out)."""
    if not isinstance(graph.layers[-1], Sigmoid):
        raise ModelError("Expected a graph that ends in Sigmoid; training uses the logistic loss")
    inputs: list[Matrix] = []
    value = x
    for layer in graph.layers[:-1]:
        inputs.append(value)
        match layer:
            case Linear(weight, bias):
                value = value @ weight.T + bias
            case Square():
                value = value * value
            case Sigmoid():
                value = sigmoid(value)
    gradient = sigmoid(value) - targets(y, graph.outputs)
    passes: list[tuple[Matrix, Matrix]] = []
    for layer, given in zip(reversed(graph.layers[:-1]), reversed(inputs), strict=True):
        match layer:
            case Linear(weight, _):
                passes.append((given, gradient))
                gradient = gradient @ weight
            case Square():
                gradient = gradient * 2.0 * given
            case Sigmoid():
                out = sigmoid(given)
                gradient = gradient * out * (1.0 - out)
    return passes[::-1]


def gradient_sum(graph: Graph, x: Matrix, y: Labels) -> Matrix:
    """Return the sum over records of the loss gradient, shape (parameters,)."""
    parts: list[Matrix] = []
    for given, gradient in _passes(graph, x, y):
        parts += [(gradient.T @ given).ravel(), gradient.sum(axis=0)]
    return np.concatenate(parts)


def record_gradients(graph: Graph, x: Matrix, y: Labels) -> Matrix:
    """Return the loss gradient of each record, shape (n, parameters): what differential privacy clips."""
    parts: list[Matrix] = []
    for given, gradient in _passes(graph, x, y):
        weights = gradient[:, :, None] * given[:, None, :]
        parts += [weights.reshape(len(given), gradient.shape[1] * given.shape[1]), gradient]
    return np.concatenate(parts, axis=1)


def descend(
    graph: Graph,
    x: Matrix,
    y: Labels,
    *,
    steps: int,
    learning_rate: float,
    momentum: float,
    weight_decay: float,
    proximal: float = 0.0,
    shift: Matrix | float = 0.0,
) -> Graph:
    """Return `graph` after full-batch gradient descent with heavy-ball momentum on (x, y).

    Args:
        graph: the starting point; ends in Sigmoid.
        x, y: at least one record.
        steps: gradient evaluations, >= 0.
        learning_rate: step size on the mean gradient, > 0.
        momentum: 0 <= momentum < 1.
        weight_decay: coefficient of the ridge term (half the squared norm), >= 0.
        proximal: coefficient of half the squared distance from the starting point, >= 0.
        shift: added to every gradient, shape (parameters,).
    """
    if not len(x):
        raise DataError("Expected at least one record to train on")
    start = weights = flatten(graph)
    velocity = np.zeros_like(weights)
    for _ in range(steps):
        mean = gradient_sum(unflatten(graph, weights), x, y) / len(x)
        gradient = mean + weight_decay * weights + proximal * (weights - start) + shift
        velocity = momentum * velocity - learning_rate * gradient
        weights = weights + velocity
    return unflatten(graph, weights)
