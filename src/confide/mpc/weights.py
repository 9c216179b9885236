"""The numbers of a model as words of the ring: what a program's loads of origin "model" bring."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from confide.errors import ModelError
from confide.model.graph import Graph
from confide.mpc.architecture import Architecture, computed, named, private_of
from confide.mpc.lowering import architecture_of, lowered
from confide.mpc.operations import Load

Words = NDArray[np.uint64]

_MOST = 2.0**62


def encoded(graph: Graph, architecture: Architecture | None = None) -> dict[str, Words]:
    """Return the weights and biases of a graph in fixed point, by the names of the loads: uint64, C order.

    Constants that a program folds into weights are in them.

    Args:
        graph: the model.
        architecture: of this graph; None makes it.

    Raises:
        ModelError: a number that does not fit the ring, or a graph that cannot be computed on shares.
    """
    found = lowered(architecture_of(graph) if architecture is None else architecture, 1)
    numbers = {
        f"{name}.{part}": array for name, layer in named(computed(graph)) for part, array in private_of(layer).items()
    }
    made: dict[str, Words] = {}
    for operation in found.program.operations:
        if isinstance(operation, Load) and operation.origin == "model":
            scaled = numbers[operation.name] * (found.factors.get(operation.name, 1.0) * 2.0**operation.scale)
            if not (np.abs(scaled) < _MOST).all():
                raise ModelError(f"Expected numbers of {operation.name} that fit 62 bits; scale the weights down")
            words = np.rint(scaled).astype(np.int64).view(np.uint64)
            made[operation.name] = np.ascontiguousarray(words.reshape(operation.shape))
    return made
