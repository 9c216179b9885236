"""Local work of a silo: losses and gradients of a graph, per record or summed, in numpy.

The loss is the logistic loss of each output against its class (one-vs-rest for several), so the gradient at the logits
is p - y. Parameters travel as one flat vector: weight then bias of each linear layer, row-major.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from confide.errors import DataError, ModelError
from confide.model.graph import Graph, Layer, Linear, Sigmoid, Square, parts_of, sigmoid, with_parts
from confide.model.preprocess import Columns
from confide.model.trees import Trees

Matrix = NDArray[np.float64]
Labels = NDArray[np.int64]

#: Kinds of dtype that are numbers: floating, signed, unsigned, boolean.
_NUMBERS = "fiub"

#: Beyond it exp(-|x|) is below every number that 1 + exp(-|x|) could tell from 1, and above the subnormal ones.
_FURTHEST = 700.0

#: 1 / n! for n from 11 to 0.
_SERIES = tuple(1 / math.factorial(order) for order in range(11, -1, -1))

#: log 2 in two parts; multiples of the first by up to 2^11 are exact.
_LOG_2_HIGH = float.fromhex("0x1.62e42fefa0000p-1")
_LOG_2_LOW = float.fromhex("0x1.cf79abc9e3b3ap-40")


@dataclass(frozen=True, slots=True, eq=False)
class Silo:
    """One party's records; they never leave it, and nothing here copies them.

    Args:
        name: the party.
        x: numbers, shape (n, ...): float64 (n, features) for a graph, what the module takes for torch.
        y: int64 class indices, shape (n,); for a loss that wants others, numbers of shape (n, ...).
        columns: the raw columns behind x, for a party whose preparation is still to come.
        units: int64, shape (n,): equal numbers for records of one unit (patient, customer); None where a record is one.
    """

    name: str
    x: NDArray[Any]
    y: NDArray[Any]
    columns: Columns | None = None
    units: Labels | None = None

    def __post_init__(self) -> None:
        for values in (cast("object", self.x), cast("object", self.y)):
            if not isinstance(values, np.ndarray):
                raise DataError(
                    f"Expected numpy arrays at {self.name}, got a {type(values).__name__}; np.asarray makes one"
                )
        if self.x.ndim < 2 or self.y.ndim < 1 or len(self.x) != len(self.y):
            raise DataError(
                f"Expected x (n, features ...) and y (n,) at {self.name}, got {self.x.shape} and {self.y.shape}"
            )
        if self.units is not None and (self.units.shape != (len(self.x),) or self.units.dtype != np.int64):
            raise DataError(f"Expected int64 units (n,) at {self.name}, got {self.units.dtype} {self.units.shape}")
        if self.x.dtype.kind not in _NUMBERS or self.y.dtype.kind not in _NUMBERS:
            raise DataError(f"Expected numbers at {self.name}, got x {self.x.dtype} and y {self.y.dtype}")
        if not (np.isfinite(self.x).all() and np.isfinite(self.y).all()):
            raise DataError(
                f"Expected finite features at {self.name}; fill in or leave out what is missing, in a job by the "
                "schema's rule"
            )

    def __repr__(self) -> str:
        return f"Silo({self.name!r})"


def targets(y: Labels, outputs: int) -> Matrix:
    """Return the targets of `outputs` columns: (y == 1) for one column, one-hot for several."""
    if outputs == 1:
        return (y == 1).astype(np.float64)[:, None]
    return (y[:, None] == np.arange(outputs)[None, :]).astype(np.float64)


def residuals(predictions: Matrix, y: Labels, class_weights: tuple[float, ...] = ()) -> Matrix:
    """Return the loss gradient at the logits, shape (n, outputs).

    Args:
        predictions: shape (n, outputs), in [0, 1].
        y: class indices, shape (n,).
        class_weights: factor of each class's records in the loss; empty weighs all alike.
    """
    found = predictions - targets(y, predictions.shape[1])
    return found * np.array(class_weights)[y][:, None] if class_weights else found


def flatten(graph: Graph) -> Matrix:
    """Return all parameters as one float64 vector, shape (parameters,)."""
    return np.concatenate([part.ravel().astype(np.float64) for layer in graph.layers for part in parts_of(layer)])


def unflatten(graph: Graph, vector: Matrix) -> Graph:
    """Return `graph` with its parameters replaced by `vector`."""
    layers: list[Layer] = []
    at = 0
    for layer in graph.layers:
        parts: list[Matrix] = []
        for part in parts_of(layer):
            parts.append(vector[at : at + part.size].reshape(part.shape).copy())
            at += part.size
        layers.append(with_parts(layer, parts))
    return Graph(tuple(layers), graph.classes)


def _product_by_record(a: Matrix, b: Matrix) -> Matrix:
    """Return a @ b, each row summed in one fixed order, so that its rounding depends on nothing but the row and `b`.

    BLAS rounds equal rows differently at different places and batch sizes: a record would move the others' gradients.
    """
    out = np.zeros((a.shape[0], b.shape[1]))
    for column, row in zip(a.T, b, strict=True):
        out += column[:, None] * row
    return out


def sigmoid_by_record(x: Matrix) -> Matrix:
    """Return the sigmoid by operations that round every element for itself; off by at most 1e-14 of it.

    numpy's own exponential may round by an element's place in its vector registers, so by the other records.
    """
    small = _exp_of_minus(np.abs(x))
    found = np.where(x >= 0, 1.0, small)
    small += 1.0
    found /= small
    return found


def exp_by_record(x: Matrix) -> Matrix:
    """Return the exponential by operations that round every element for itself, of numbers cut to [-700, 700]."""
    small = _exp_of_minus(np.abs(x))
    return np.where(x >= 0, 1.0 / small, small)


def _exp_of_minus(rest: Matrix) -> Matrix:
    """Return exp(-x) of numbers from 0, which are overwritten; beyond 700 as at 700.

    exp(-x) = 2^k exp(r) with r = -x - k log 2, |r| <= log(2) / 2, by Taylor's series up to r^11 / 11!.
    """
    np.minimum(rest, _FURTHEST, out=rest)
    twos = rest * (-1 / math.log(2))
    np.rint(twos, out=twos)
    np.negative(rest, out=rest)
    rest -= twos * _LOG_2_HIGH
    rest -= twos * _LOG_2_LOW
    small = np.full_like(rest, _SERIES[0])
    for coefficient in _SERIES[1:]:
        np.multiply(small, rest, out=small)
        np.add(small, coefficient, out=small)
    np.copyto(twos, 0.0, where=np.isnan(twos))  # which stay NaN by their rest
    small *= ((twos.astype(np.int64) + 1023) << 52).view(np.float64)  # 2^k by its bits
    return small


def _passes(
    graph: Graph, x: Matrix, y: Labels, *, by_record: bool, class_weights: tuple[float, ...]
) -> list[tuple[Matrix, Matrix]]:
    """Return (input, gradient at the output) of each linear layer, per record: shapes (n, in), (n, out).

    With `by_record` every row is bit for bit what it would be without the other rows.
    """
    if not isinstance(graph.layers[-1], Sigmoid):
        raise ModelError("Expected a graph that ends in Sigmoid; training uses the logistic loss")
    if isinstance(graph.layers[0], Trees):
        raise ModelError("Expected a graph with gradients; trees have none, they grow by boosting")
    _require_known(graph)
    product, squash = (_product_by_record, sigmoid_by_record) if by_record else (np.matmul, sigmoid)
    inputs: list[Matrix] = []
    value = x
    for layer in graph.layers[:-1]:
        inputs.append(value)
        match layer:
            case Linear(weight, bias):
                value = product(value, weight.T) + bias
            case Square():
                value = value * value
            case Sigmoid():
                value = squash(value)
            case _:  # refused above
                pass
    gradient = residuals(squash(value), y, class_weights)
    passes: list[tuple[Matrix, Matrix]] = []
    for layer, given in zip(reversed(graph.layers[:-1]), reversed(inputs), strict=True):
        match layer:
            case Linear(weight, _):
                passes.append((given, gradient))
                gradient = product(gradient, weight)
            case Square():
                gradient = gradient * 2.0 * given
            case Sigmoid():
                out = squash(given)
                gradient = gradient * out * (1.0 - out)
            case _:
                pass
    return passes[::-1]


def scores_by_record(graph: Graph, x: Matrix) -> Matrix:
    """Return predictions like `Graph.apply`, shape (n, outputs), each row from its record alone.

    **Guarantees** that a row is bit for bit the same whatever the other rows are, so that one record more or less moves
    no other record's score over an edge; a score beyond float64 is NaN, and no warning depends on a record.

    Raises:
        ModelError: a layer that training in numpy does not have.
    """
    _require_known(graph)
    value = x
    with np.errstate(all="ignore"):
        for layer in graph.layers:
            match layer:
                case Linear(weight, bias):
                    value = _product_by_record(value, weight.T) + bias
                case Square():
                    value = value * value
                case Sigmoid():
                    value = sigmoid_by_record(value)
                case Trees():
                    value = layer.apply(value)
                case _:  # refused above
                    pass
    return value


def _require_known(graph: Graph) -> None:
    if not all(isinstance(layer, Linear | Square | Sigmoid | Trees) for layer in graph.layers):
        raise ModelError("Expected a graph of Linear, Square, Sigmoid and Trees; train other layers as a torch module")


def gradient_sum(graph: Graph, x: Matrix, y: Labels, *, class_weights: tuple[float, ...] = ()) -> Matrix:
    """Return the sum over records of the loss gradient, shape (parameters,)."""
    parts: list[Matrix] = []
    for given, gradient in _passes(graph, x, y, by_record=False, class_weights=class_weights):
        parts += [(gradient.T @ given).ravel(), gradient.sum(axis=0)]
    return np.concatenate(parts)


def record_gradients(graph: Graph, x: Matrix, y: Labels, *, class_weights: tuple[float, ...] = ()) -> Matrix:
    """Return the loss gradient of each record, shape (n, parameters): what differential privacy clips.

    **Guarantees** that a row is bit for bit the same whatever the other rows are, as the sensitivity of their clipped
    sum needs, and that no warning depends on a record: a gradient beyond float64 is a row with NaN or infinity.
    """
    parts: list[Matrix] = []
    with np.errstate(all="ignore"):
        for given, gradient in _passes(graph, x, y, by_record=True, class_weights=class_weights):
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
    average: float = 0.0,
    proximal: float = 0.0,
    shift: Matrix | float = 0.0,
    class_weights: tuple[float, ...] = (),
) -> Graph:
    """Return `graph` after full-batch gradient descent with heavy-ball momentum on (x, y).

    Args:
        graph: the starting point; ends in Sigmoid.
        x, y: at least one record.
        steps: gradient evaluations, >= 0.
        learning_rate: step size on the mean gradient, > 0.
        momentum: 0 <= momentum < 1.
        weight_decay: coefficient of the ridge term (half the squared norm), >= 0.
        average: share of the last steps whose iterates are averaged into the result, 0 <= share <= 1.
        proximal: coefficient of half the squared distance from the starting point, >= 0.
        shift: added to every gradient, shape (parameters,).
        class_weights: factor of each class's records in the loss; empty weighs all alike.
    """
    if not len(x):
        raise DataError("Expected at least one record to train on")
    start = weights = flatten(graph)
    velocity = np.zeros_like(weights)
    averaged, since = np.zeros_like(weights), steps - round(average * steps)
    for step in range(1, steps + 1):
        mean = gradient_sum(unflatten(graph, weights), x, y, class_weights=class_weights) / len(x)
        gradient = mean + weight_decay * weights + proximal * (weights - start) + shift
        velocity = momentum * velocity - learning_rate * gradient
        weights = weights + velocity
        if step > since:
            averaged += (weights - averaged) / (step - since)
    return unflatten(graph, averaged if steps > since else weights)
