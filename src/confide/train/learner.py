"""How a kind of model learns where its records are.

A `Learner` shows the loop nothing but flat vectors of parameters: rounds, encodings and aggregators are the same for a
logistic model and for a network in torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from confide.errors import DataError
from confide.model.graph import Graph
from confide.train.local import Silo, descend, flatten, record_gradients, unflatten
from confide.train.sections import TrainSection
from confide.wire import Store

Matrix = NDArray[np.float64]

Model = TypeVar("Model", covariant=True)


def staged(key: str) -> str:
    """Return where a silo puts the next value of `key`, which it takes over once its contribution is in a sum."""
    return f"{key}/next"


class Learner(ABC, Generic[Model]):
    """The parameters of a model as one vector, and a silo's work between two sums.

    Args:
        start: the public starting point, float64, shape (parameters,).
        statistics: how many of its numbers no gradient moves (running means and variances), 0 and more.
        kept: what a silo keeps of its own between rounds, as keys of its store; `change` writes under `staged(key)`.
    """

    start: Matrix
    statistics: int = 0
    kept: tuple[str, ...] = ()

    @abstractmethod
    def travel(self, silo: Silo) -> Matrix | float:
        """Return learning rate times local steps: how far a unit gradient moves each parameter between two sums.

        Infinite for parameters that no gradient moves.
        """

    @abstractmethod
    def model(self, parameters: Matrix) -> Model:
        """Return the model with these parameters, to apply, evaluate or save."""

    def personal(self, parameters: Matrix, store: Store) -> Model:
        """Return the model that a silo uses itself: `parameters` with what it keeps in its `store`."""
        return self.model(parameters)

    @abstractmethod
    def change(
        self,
        parameters: Matrix,
        silo: Silo,
        store: Store,
        *,
        number: int,
        shift: Matrix | float = 0.0,
        begin: Matrix | None = None,
    ) -> Matrix:
        """Return what the silo's local steps add to the parameters, shape (parameters,).

        Args:
            parameters: the common model of the round; a proximal term pulls to it.
            silo: whose records.
            store: the silo's own.
            number: the round, from 1.
            shift: added to every gradient, shape (parameters,).
            begin: where the steps start, if not at `parameters`.
        """


def personal_models(learner: Learner[Model], parameters: Matrix, stores: Mapping[str, Store]) -> dict[str, Model]:
    """Return each silo's own model after a round with these `parameters`; `stores` are those that the run was given."""
    return {name: learner.personal(parameters, store) for name, store in stores.items()}


class GraphLearner(Learner[Graph]):
    """Full-batch gradient descent on a `Graph` in numpy, as [train] says.

    Args:
        graph: the starting point; ends in Sigmoid.
        train: local_steps, learning_rate, weight_decay, and proximal for fedprox.
        class_weights: factor of each class's records in the loss; empty weighs all alike.
    """

    def __init__(self, graph: Graph, train: TrainSection, *, class_weights: tuple[float, ...] = ()) -> None:
        self._graph, self._train, self._class_weights = graph, train, class_weights
        self.start = flatten(graph)

    def travel(self, silo: Silo) -> float:
        return self._train.local_steps * self._train.learning_rate

    def model(self, parameters: Matrix) -> Graph:
        return unflatten(self._graph, parameters)

    def change(
        self,
        parameters: Matrix,
        silo: Silo,
        store: Store,
        *,
        number: int,
        shift: Matrix | float = 0.0,
        begin: Matrix | None = None,
    ) -> Matrix:
        proximal = self._train.proximal if self._train.algorithm == "fedprox" else 0.0
        before = parameters if begin is None else begin
        after = descend(
            self.model(before),
            _table(silo).x,
            silo.y,
            steps=self._train.local_steps,
            learning_rate=self._train.learning_rate,
            momentum=0.0,
            weight_decay=self._train.weight_decay,
            proximal=proximal,
            shift=shift if begin is None else shift + proximal * (begin - parameters),  # `descend` pulls to its start
            class_weights=self._class_weights,
        )
        return flatten(after) - before

    def record_gradients(self, parameters: Matrix, silo: Silo) -> Matrix:
        """Return the loss gradient of each record, shape (n, parameters)."""
        table = _table(silo)
        return record_gradients(self.model(parameters), table.x, table.y, class_weights=self._class_weights)


def _table(silo: Silo) -> Silo:
    """Return `silo` if it holds what a graph takes: rows of features with one class each."""
    if silo.x.ndim != 2 or silo.y.ndim != 1:
        raise DataError(
            f"Expected x (n, features) and y (n,) at {silo.name}, got {silo.x.shape} and {silo.y.shape}; a graph takes "
            "tables, other shapes need a TorchLearner"
        )
    return silo
