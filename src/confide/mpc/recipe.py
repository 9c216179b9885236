"""A model's architecture as what the parties of an inference share: programs for any number of rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from confide.mpc.architecture import Architecture
from confide.mpc.lowering import program_for
from confide.mpc.operations import Program


@dataclass(frozen=True, slots=True)
class GraphRecipe:
    """The public half of a graph.

    Args:
        architecture: whose programs it gives.
    """

    architecture: Architecture

    @property
    def features(self) -> int:
        """Return the features of a record."""
        return self.architecture.features

    @property
    def outputs(self) -> int:
        """Return the outputs of a record."""
        return self.architecture.outputs

    def program(self, rows: int) -> Program:
        """Return the program for `rows` records. Raises ProtocolError if it is too large."""
        return program_for(self.architecture, rows)

    def encode(self) -> bytes:
        """Return the architecture as bytes."""
        return self.architecture.encode()

    @staticmethod
    def decode(body: bytes) -> GraphRecipe:
        """Return the recipe that `encode` wrote. Raises ProtocolError on anything else."""
        return GraphRecipe(Architecture.decode(body))

    def finish(self, y: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return predictions from what was told."""
        return self.architecture.finish(y)
