"""What is public of a model, as the program that computes it: from a graph of layers, and back from bytes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from confide.errors import ModelError
from confide.model.graph import Graph, Problem
from confide.mpc import lowering
from confide.mpc.architecture import Architecture
from confide.mpc.correlations import Words
from confide.mpc.kits import Recipe
from confide.mpc.operations import Program
from confide.mpc.ranges import Ranges
from confide.mpc.weights import encoded


class GraphRecipe:
    """The recipe of a graph.

    Args:
        architecture: what is public of it.
    """

    def __init__(self, architecture: Architecture) -> None:
        self.architecture = architecture
        self.features, self.outputs = architecture.features, architecture.outputs

    def program(self, rows: int) -> Program:
        return lowering.program_for(self.architecture, rows)

    def encode(self) -> bytes:
        return self.architecture.encode()

    def finish(self, y: NDArray[np.float64]) -> NDArray[np.float64]:
        return self.architecture.finish(y)


def check(graph: Graph, ranges: Ranges | None = None) -> list[Problem]:
    """Return everything in a graph that has no program, or that does not fit its windows."""
    return lowering.check(graph, ranges)


def recipe_of(graph: Graph, ranges: Ranges | None = None) -> Recipe:
    """Return what is public of a model. Raises ModelError with every problem."""
    if found := check(graph, ranges):
        raise ModelError("Expected a model that can run on shares:\n" + "\n".join(map(str, found)))
    return GraphRecipe(lowering.architecture_of(graph, ranges))


def read_recipe(body: bytes) -> Recipe:
    """Return the recipe that `encode` wrote. Raises ProtocolError on anything else."""
    return GraphRecipe(Architecture.decode(body))


def encoded_model(graph: Graph) -> dict[str, Words]:
    """Return the weights in fixed point, by the names of the program's loads."""
    return encoded(graph)
