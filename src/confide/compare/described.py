"""A network from the words of a scenario, with drawn weights; a scenario's words for a network that is there already;
and a network's size in the numbers that costs grow with.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from confide.compare.scenario import WantedModelSection
from confide.crypto.random import public_stream
from confide.errors import UsageError
from confide.model.graph import (
    Attention,
    AveragePool,
    Conv,
    Graph,
    Layer,
    Linear,
    MaxPool,
    Relu,
    Residual,
    Sigmoid,
    Square,
    inputs_of,
    width_after,
)
from confide.model.trees import Trees, perfect

_KERNEL, _STRIDE = 5, 2


@dataclass(frozen=True, slots=True)
class Size:
    """What costs grow with.

    Args:
        inputs, outputs: of the whole model.
        products: multiplications of one row.
        nonlinear: values that go through an activation, or comparisons of trees; the last sigmoid is not counted.
        layers: that follow each other, activations included, the last sigmoid not; of trees their depth.
        parameters: private numbers.
    """

    inputs: int
    outputs: int
    products: int
    nonlinear: int
    layers: int
    parameters: int


def graph_of(model: WantedModelSection) -> Graph:
    """Return a network of this kind and size with weights from a public stream: what costs are worked out on.

    Raises:
        UsageError: a cnn whose features are no square image, or one too small for a kernel.
    """
    stream = public_stream(0, "described network")

    def dense(inputs: int, outputs: int) -> Linear:
        return Linear(
            stream.normal(0.0, 1.0 / math.sqrt(3 * inputs), (outputs, inputs)), stream.normal(0, 0.1, outputs)
        )

    if model.kind == "network":
        raise UsageError(
            'Expected model.kind="network" with --model FILE, which brings the layers that no key describes'
        )
    if model.kind == "trees":
        return Graph((_trees(model), Sigmoid()))
    layers: list[Layer] = []
    width = model.features
    if model.kind == "cnn":
        side = math.isqrt(model.features)
        if side * side != model.features or side < _KERNEL:
            raise UsageError(
                f"Expected model.features={model.features} of a cnn to be a square image of {_KERNEL} x {_KERNEL} "
                "pixels at least, such as 784"
            )
        weight = stream.normal(0.0, 1.0 / (_KERNEL * math.sqrt(3)), (model.channels, 1, _KERNEL, _KERNEL))
        conv = Conv(weight, stream.normal(0, 0.1, model.channels), side, side, stride=(_STRIDE, _STRIDE))
        layers += [conv, _activation(model)]
        width = Graph((conv,)).outputs
    for units in model.hidden if model.kind != "logistic" else ():
        layers += [dense(width, units), _activation(model)]
        width = units
    layers.append(dense(width, model.outputs))
    if model.outputs == 1:
        layers.append(Sigmoid())
    return Graph(tuple(layers))


def words_of(graph: Graph) -> WantedModelSection:
    """Return the words of a scenario for a network: "network" where no other key describes its layers."""
    layers = list(graph.layers[:-1] if isinstance(graph.layers[-1], Sigmoid) else graph.layers)
    said = WantedModelSection(kind="network", features=graph.features, outputs=graph.outputs)
    if isinstance(layers[0], Trees):
        each = -(-len(layers[0].roots) // graph.outputs)
        return WantedModelSection(
            kind="trees", features=graph.features, outputs=graph.outputs, trees=each, depth=depth_of(layers[0])
        )
    inner = {type(layer) for layer in layers[1::2]}
    if len(layers) % 2 and all(isinstance(layer, Linear) for layer in layers[::2]) and len(inner) <= 1:
        if len(layers) == 1:
            return WantedModelSection(kind="logistic", features=graph.features, outputs=graph.outputs)
        if inner <= {Square, Relu}:
            hidden = tuple(layer.weight.shape[0] for layer in layers[:-1:2] if isinstance(layer, Linear))
            activation = "square" if inner == {Square} else "relu"
            return WantedModelSection(
                kind="mlp", features=graph.features, outputs=graph.outputs, hidden=hidden, activation=activation
            )
    return said


def depth_of(trees: Trees) -> int:
    """Return the most comparisons on the way to a leaf, 1 at least."""
    at, depth = trees.roots[trees.roots >= 0], 0
    while len(at):
        at = np.concatenate([trees.left[at], trees.right[at]])
        at, depth = at[at >= 0], depth + 1
    return max(depth, 1)


def size_of(graph: Graph) -> Size:
    """Return how large a network is."""
    layers = graph.layers[:-1] if isinstance(graph.layers[-1], Sigmoid) else graph.layers
    counted = np.array(list(_counts(layers, graph.features)), np.int64).reshape(-1, 3)
    products, nonlinear, after = (int(column) for column in counted.sum(axis=0))
    return Size(graph.features, graph.outputs, products, nonlinear, after, graph.parameters)


def _counts(layers: tuple[Layer, ...], width: int) -> Iterator[tuple[int, int, int]]:
    """Yield the products, the activations or comparisons, and the layers of each layer."""
    for layer in layers:
        after = width_after(layer, width)
        match layer:
            case Linear(weight, _):
                yield weight.size, 0, 1
            case Conv():
                yield after * layer.weight[0].size, 0, 1
            case Residual(body, shortcut):
                yield from _counts(body, width)
                yield from ((products, more, 0) for products, more, _ in _counts(shortcut, width))  # beside the body
            case Trees():
                yield 0, len(layer.feature), depth_of(layer)
            case MaxPool():
                yield 0, width, 1
            case AveragePool():
                yield after, 0, 1
            case Attention():
                yield 2 * layer.channels * layer.positions**2, layer.heads * layer.positions**2, 1
            case _:
                yield 0, 0 if inputs_of(layer) else width, 1
        width = after


def _activation(model: WantedModelSection) -> Layer:
    return Relu() if model.activation == "relu" else Square()


def _trees(model: WantedModelSection) -> Trees:
    """Return whole trees with drawn questions: zeros could be left out of what is computed."""
    stream = public_stream(0, "described trees")
    bare = perfect(model.trees * model.outputs, model.depth, features=model.features, outputs=model.outputs)
    return replace(
        bare,
        feature=stream.integers(0, model.features, len(bare.feature)),
        threshold=stream.uniform(-1.0, 1.0, len(bare.threshold)),
        value=stream.normal(0.0, 0.1, len(bare.value)),
    )
