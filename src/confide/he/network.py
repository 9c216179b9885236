"""A graph as encrypted arithmetic sees it: linear maps, products and combinations of registers.

Neighbouring linear layers become one, average pools too, since each costs a level; polynomials become products (powers)
and one combination; the two branches of a residual block meet in a combination.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from confide.he.shapes import Convolution, Dense, LinearMap, Shape
from confide.model.graph import AveragePool, Conv, Graph, Layer, Linear, Polynomial, Residual, Sigmoid, Square

Matrix = NDArray[np.float64]
Kind = Literal["linear", "product", "combination"]

#: Largest degree of a polynomial: powers of a number in [-1, 1], whose coefficients grow as 2^degree.
MOST_DEGREE = 8


@dataclass(frozen=True, slots=True)
class Operation:
    """Reads registers, writes the next one.

    Args:
        kind: "linear" (one source), "product" (two) or "combination".
        sources: registers.
        part: what is private: the map, or the polynomial whose powers are combined; None for products and plain sums.
    """

    kind: Kind
    sources: tuple[int, ...]
    part: LinearMap | Polynomial | None = None


@dataclass(frozen=True, slots=True)
class Network:
    """What a server computes; private.

    Args:
        operations: register 0 is the input, operation j writes register j + 1.
        sigmoid: whether the graph ends in a sigmoid, which runs at the client.
        outputs: columns of y.
    """

    operations: tuple[Operation, ...]
    sigmoid: bool
    outputs: int

    @staticmethod
    def of(graph: Graph) -> Network:
        """Return the network of a graph that `plan.layer_problems` has nothing against."""
        layers, sigmoid = list(graph.layers), isinstance(graph.layers[-1], Sigmoid)
        made = _Maker()
        last = made.chain(_merged(layers[:-1] if sigmoid else layers), 0)
        if made.operations[-1].kind == "product":
            made.add("combination", (last,))  # which brings a power of two as the outputs' unit
        return Network(tuple(made.operations), sigmoid, graph.outputs)

    @property
    def entry(self) -> Shape:
        """Return the shape of the first map."""
        part = self.operations[0].part
        assert isinstance(part, LinearMap)
        return part.shape

    @property
    def linear(self) -> Linear | None:
        """Return the one dense layer of a linear model, None if there is anything else."""
        part = self.operations[0].part
        if len(self.operations) == 1 and isinstance(part, LinearMap) and isinstance(part.shape, Dense):
            return Linear(part.weight, part.bias)
        return None


class _Maker:
    def __init__(self) -> None:
        self.operations: list[Operation] = []

    def add(self, kind: Kind, sources: tuple[int, ...], part: LinearMap | Polynomial | None = None) -> int:
        self.operations.append(Operation(kind, sources, part))
        return len(self.operations)

    def chain(self, layers: Sequence[Layer | LinearMap], register: int) -> int:
        for number, layer in enumerate(layers):
            match layer:
                case LinearMap():
                    register = self.add("linear", (register,), layer)
                case Square():
                    register = self.add("product", (register, register))
                case Polynomial():
                    if not (number and isinstance(layers[number - 1], LinearMap)):
                        register = self.add("combination", (register,))  # moves its interval to [-1, 1], for it alone
                    register = self.add("combination", self._powers(register, layer.degree), layer)
                case Residual(body, shortcut):
                    ends = self.chain(_merged(body), register), self.chain(_merged(shortcut), register)
                    register = self.add("combination", ends)
                case _:
                    raise AssertionError(type(layer))
        return register

    def _powers(self, register: int, degree: int) -> tuple[int, ...]:
        powers = {1: register}
        for power in range(2, degree + 1):
            powers[power] = self.add("product", (powers[power - power // 2], powers[power // 2]))
        return tuple(powers.values())


def linear_map(layer: Linear | Conv | AveragePool) -> LinearMap:
    """Return a layer as a linear map."""
    if isinstance(layer, Linear):
        outputs, inputs = layer.weight.shape
        return LinearMap(Dense(inputs=inputs, outputs=outputs), layer.weight, layer.bias)
    if isinstance(layer, AveragePool):
        height, width = layer.kernel
        weight = np.zeros((layer.channels, layer.channels, height, width))
        weight[np.arange(layer.channels), np.arange(layer.channels)] = 1 / (height * width)
        layer = Conv(weight, np.zeros(layer.channels), layer.height, layer.width, layer.stride)
    shape = Convolution(
        channels=(layer.channels, len(layer.bias)),
        image=(layer.height, layer.width),
        kernel=layer.kernel,
        stride=layer.stride,
        padding=layer.padding,
    )
    return LinearMap(shape, layer.weight, np.repeat(layer.bias, layer.out_height * layer.out_width))


def _merged(layers: Sequence[Layer]) -> list[Layer | LinearMap]:
    """Return the layers with linear ones as maps, neighbours multiplied out where that stays small."""
    found: list[Layer | LinearMap] = []
    for layer in layers:
        if not isinstance(layer, Linear | Conv | AveragePool):
            found.append(layer)
            continue
        made, before = linear_map(layer), found[-1] if found else None
        both = composed(before, made) if isinstance(before, LinearMap) else None
        if both is None:
            found.append(made)
        else:
            found[-1] = both
    return found


def composed(first: LinearMap, second: LinearMap) -> LinearMap | None:
    """Return the map that does what both do one after the other; None where it would be much larger, or is none."""
    before, after = first.shape, second.shape
    if isinstance(after, Dense):
        weight = second.weight @ first.weight if isinstance(before, Dense) else _pulled_back(second.weight, first)
        shape = Dense(inputs=before.inputs, outputs=after.outputs)
        return LinearMap(shape, weight, second.weight @ first.bias + second.bias)
    if isinstance(before, Dense):
        return None
    padding = before.padding
    if any(after.padding):
        whole = all(
            (size - kernel) % step == 0
            for size, kernel, step in zip(before.image, before.kernel, before.stride, strict=True)
        )
        if any(padding) or first.bias.any() or not whole:
            return None  # zeros around the map between them are no zeros around the image
        (top, left, bottom, right), (sy, sx) = after.padding, before.stride
        padding = top * sy, left * sx, bottom * sy, right * sx
    kernel, stride = _kernel(first, second)
    shape = Convolution(
        channels=(before.channels[0], after.channels[1]),
        image=before.image,
        kernel=kernel.shape[2:],
        stride=stride,
        padding=padding,
    )
    if shape.fan_in > 2 * (before.fan_in + after.fan_in) or shape.map != after.map:
        return None
    return LinearMap(shape, kernel, second.apply(first.bias))


def _kernel(first: LinearMap, second: LinearMap) -> tuple[Matrix, tuple[int, int]]:
    """Return the kernel and the stride of two convolutions in a row."""
    before, after = first.shape, second.shape
    assert isinstance(before, Convolution)
    assert isinstance(after, Convolution)
    (sy, sx), (height, width) = before.stride, before.kernel
    rows, columns = height + (after.kernel[0] - 1) * sy, width + (after.kernel[1] - 1) * sx
    kernel = np.zeros((after.channels[1], before.channels[0], rows, columns))
    for y, x in np.ndindex(*after.kernel):
        kernel[:, :, y * sy : y * sy + height, x * sx : x * sx + width] += np.tensordot(
            second.weight[:, :, y, x], first.weight, axes=1
        )
    return kernel, (sy * after.stride[0], sx * after.stride[1])


def _pulled_back(weight: Matrix, first: LinearMap) -> Matrix:
    """Return `weight` times the matrix of a convolution, shape (outputs, inputs of the convolution)."""
    shape = first.shape
    assert isinstance(shape, Convolution)
    (rows, columns), (top, left, bottom, right), (sy, sx) = shape.map, shape.padding, shape.stride
    outer = weight.reshape(len(weight), shape.channels[1], rows, columns)
    height, width = shape.image
    found = np.zeros((len(weight), shape.channels[0], height + top + bottom, width + left + right))
    for y, x in np.ndindex(*shape.kernel):
        part = np.einsum("ocyx,ci->oiyx", outer, first.weight[:, :, y, x])
        found[:, :, y : y + rows * sy : sy, x : x + columns * sx : sx] += part
    return found[:, :, top : top + height, left : left + width].reshape(len(weight), -1)
