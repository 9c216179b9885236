"""A network from the words of a scenario, with drawn weights, and its size in the numbers that costs grow with."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from confide.compare.scenario import WantedModelSection
from confide.crypto.random import public_stream
from confide.errors import UsageError
from confide.model.graph import Conv, Graph, Layer, Linear, Relu, Sigmoid, Square, inputs_of
from confide.model.trees import Trees, perfect

_KERNEL, _STRIDE = 5, 2


@dataclass(frozen=True, slots=True)
class Size:
    """What costs grow with.

    Args:
        inputs, outputs: of the whole model.
        products: multiplications of one row.
        nonlinear: values that go through an activation, or comparisons of trees; the last sigmoid is not counted.
        layers: that follow each other, activations included, the last sigmoid not.
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


def size_of(graph: Graph) -> Size:
    """Return how large a network is."""
    products = nonlinear = layers = 0
    width = graph.features
    for number, layer in enumerate(graph.layers):
        last = number == len(graph.layers) - 1
        after = graph.widths[number + 1]
        if isinstance(layer, Linear):
            products += layer.weight.size
        elif isinstance(layer, Conv):
            products += after * layer.weight[0].size
        elif isinstance(layer, Trees):
            nonlinear += len(layer.feature)
        elif not (last and isinstance(layer, Sigmoid)) and inputs_of(layer) is None:
            nonlinear += width
        layers += not (last and isinstance(layer, Sigmoid))
        width = after
    return Size(graph.features, graph.outputs, products, nonlinear, layers, graph.parameters)


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
