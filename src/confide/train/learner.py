"""How a kind of model learns where its records are.

A `Learner` shows the loop nothing but flat vectors of parameters: rounds, encodings and aggregators are the same for a
logistic model and for a network in torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from confide.model.graph import Graph
from confide.train.job import TrainSection
from confide.train.local import Silo, descend, flatten, record_gradients, unflatten

Matrix = NDArray[np.float64]

Model = TypeVar("Model", covariant=True)


class Learner(ABC, Generic[Model]):
    """The parameters of a model as one vector, and a silo's work between two sums.

    Args:
        start: the public starting point, float64, shape (parameters,).
        travel: local steps times learning rate: how far a unit gradient moves a parameter between two sums.
    """

    start: Matrix
    travel: float

    @abstractmethod
    def model(self, parameters: Matrix) -> Model:
        """Return the model with these parameters, to apply, evaluate or save."""

    @abstractmethod
    def change(self, parameters: Matrix, silo: Silo, *, number: int, shift: Matrix | float = 0.0) -> Matrix:
        """Return what the silo's local steps add to `parameters`, shape (parameters,).

        Args:
            parameters: where the round starts.
            silo: whose records.
            number: the round, from 1.
            shift: added to every gradient, shape (parameters,).
        """


class GraphLearner(Learner[Graph]):
    """Full-batch gradient descent on a `Graph` in numpy, as [train] says.

    Args:
        graph: the starting point; ends in Sigmoid.
        train: local_steps, learning_rate, weight_decay, and proximal for fedprox.
    """

    def __init__(self, graph: Graph, train: TrainSection) -> None:
        self._graph, self._train = graph, train
        self.start = flatten(graph)
        self.travel = train.local_steps * train.learning_rate

    def model(self, parameters: Matrix) -> Graph:
        return unflatten(self._graph, parameters)

    def change(self, parameters: Matrix, silo: Silo, *, number: int, shift: Matrix | float = 0.0) -> Matrix:
        after = descend(
            self.model(parameters),
            silo.x,
            silo.y,
            steps=self._train.local_steps,
            learning_rate=self._train.learning_rate,
            momentum=0.0,
            weight_decay=self._train.weight_decay,
            proximal=self._train.proximal if self._train.algorithm == "fedprox" else 0.0,
            shift=shift,
        )
        return flatten(after) - parameters

    def record_gradients(self, parameters: Matrix, silo: Silo) -> Matrix:
        """Return the loss gradient of each record, shape (n, parameters)."""
        return record_gradients(self.model(parameters), silo.x, silo.y)
