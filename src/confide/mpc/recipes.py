"""What is public of a model, as the program that computes it: from a graph of layers, and back from bytes."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray

from confide.errors import ModelError, ProtocolError
from confide.model.graph import Graph, Linear, Problem, Sigmoid, Square
from confide.mpc.building import Builder
from confide.mpc.correlations import Words
from confide.mpc.kits import Recipe
from confide.mpc.operations import SCALE, Program
from confide.wire import decode, encode

_Size = Annotated[int, msgspec.Meta(ge=1, le=1 << 16)]


class Dense(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A chain of dense layers with squares between them.

    Args:
        sizes: features, then the outputs of each layer.
        squared: for each layer but the last whether its outputs are squared.
        sigmoid: whether the client applies a sigmoid.
    """

    sizes: Annotated[tuple[_Size, ...], msgspec.Meta(min_length=2, max_length=64)]
    squared: tuple[bool, ...]
    sigmoid: bool


class DenseRecipe:
    """The recipe of a chain of dense layers.

    Raises:
        ProtocolError: sizes that do not fit.
    """

    def __init__(self, shape: Dense) -> None:
        if len(shape.squared) != len(shape.sizes) - 2:
            raise ProtocolError("Expected squares between the layers")
        self._shape = shape
        self.features, self.outputs = shape.sizes[0], shape.sizes[-1]

    def program(self, rows: int) -> Program:
        build = Builder()
        value = build.input("x", (rows, self.features))
        for place, (inputs, outputs) in enumerate(pairwise(self._shape.sizes)):
            weight, bias = build.weight(f"{place}.weight", (outputs, inputs)), build.bias(f"{place}.bias", (outputs,))
            value = build.matmul(value, weight, transpose_b=True)
            value = build.plus(value, build.broadcast(bias, (rows, outputs)))
            if place < len(self._shape.squared):
                value = build.open(build.truncate(build.open(value), SCALE))
                if self._shape.squared[place]:
                    value = build.open(build.truncate(build.open(build.multiply(value, value)), SCALE))
        build.reveal(value, bits=SCALE)
        return build.program()

    def encode(self) -> bytes:
        return encode(self._shape)

    def finish(self, y: NDArray[np.float64]) -> NDArray[np.float64]:
        return 1 / (1 + np.exp(-y)) if self._shape.sigmoid else y


def check(graph: Graph) -> list[Problem]:
    """Return everything in a graph that has no program."""
    layers = graph.layers[:-1] if isinstance(graph.layers[-1], Sigmoid) else graph.layers
    return [
        Problem(f"layer {number} ({type(layer).__name__})", "has no program on shares", "use Linear, Square")
        for number, layer in enumerate(layers)
        if not isinstance(layer, Linear | Square)
    ]


def recipe_of(graph: Graph) -> Recipe:
    """Return what is public of a model. Raises ModelError with every problem."""
    if found := check(graph):
        raise ModelError("Expected a model that can run on shares:\n" + "\n".join(map(str, found)))
    linear = [layer for layer in graph.layers if isinstance(layer, Linear)]
    sizes = (linear[0].weight.shape[1], *(len(layer.weight) for layer in linear))
    follows = {one: isinstance(after, Square) for one, after in pairwise(graph.layers) if isinstance(one, Linear)}
    squared = tuple(follows.get(layer, False) for layer in linear[:-1])
    return DenseRecipe(Dense(sizes, squared, isinstance(graph.layers[-1], Sigmoid)))


def read_recipe(body: bytes) -> Recipe:
    """Return the recipe that `encode` wrote. Raises ProtocolError on anything else."""
    return DenseRecipe(decode(body, Dense, max_bytes=1 << 20))


def encoded_model(graph: Graph) -> dict[str, Words]:
    """Return the weights in fixed point, by the names of the program's loads."""
    found: dict[str, Words] = {}
    for place, layer in enumerate(layer for layer in graph.layers if isinstance(layer, Linear)):
        found[f"{place}.weight"] = _fixed(layer.weight, SCALE)
        found[f"{place}.bias"] = _fixed(layer.bias, 2 * SCALE)
    return found


def _fixed(values: NDArray[np.float64], scale: int) -> Words:
    return np.rint(values * 2.0**scale).astype(np.int64).view(np.uint64)
