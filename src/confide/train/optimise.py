"""Server optimisers: how the mean change of a round, which is public once it is released, moves the model.

They see nothing but that mean, so they run under every aggregator, and under differential privacy they are
post-processing that costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from confide.train.sections import TrainSection

Matrix = NDArray[np.float64]


class Optimiser(Protocol):
    """The server's state between rounds."""

    @property
    def moved(self) -> Mapping[str, Matrix]:
        """Return what the rounds have moved, by name; empty before the first."""
        ...

    def resumed(self, moved: Mapping[str, Matrix]) -> None:
        """Go on from what `moved` returned."""
        ...

    def step(self, change: Matrix) -> Matrix:
        """Return what to add to the parameters for the mean `change` of a round, shape (parameters,)."""
        ...


class HeavyBall:
    """Momentum: v <- momentum v + change, the step is learning_rate v (FedAvgM; plain averaging for 0 and 1)."""

    def __init__(self, *, learning_rate: float, momentum: float) -> None:
        self._learning_rate, self._momentum = learning_rate, momentum
        self._velocity: Matrix | float = 0.0

    @property
    def moved(self) -> Mapping[str, Matrix]:
        return {"velocity": self._velocity} if isinstance(self._velocity, np.ndarray) else {}

    def resumed(self, moved: Mapping[str, Matrix]) -> None:
        self._velocity = moved.get("velocity", 0.0)

    def step(self, change: Matrix) -> Matrix:
        self._velocity = self._momentum * self._velocity + change
        return self._learning_rate * self._velocity


#: How (v, change^2, beta2) give the next v.
_SECOND_MOMENTS: Mapping[str, Callable[[Matrix, Matrix, float], Matrix]] = {
    "fedadagrad": lambda v, square, beta: v + square,
    "fedadam": lambda v, square, beta: beta * v + (1.0 - beta) * square,
    "fedyogi": lambda v, square, beta: v - (1.0 - beta) * square * np.sign(v - square),
}


class Adaptive:
    """A step size for each parameter: m <- beta1 m + (1 - beta1) change, the step is learning_rate m / (sqrt(v) + tau).

    v starts at tau^2; there is no bias correction.

    Paper: Reddi et al., Adaptive Federated Optimization (2021), Algorithm 2.

    Args:
        name: "fedadagrad", "fedadam" or "fedyogi": how v follows the squared change.
        learning_rate: > 0.
        momentum: beta1, 0 <= beta1 < 1.
        second_moment: beta2, 0 <= beta2 < 1; fedadagrad has none.
        adaptivity: tau, > 0; the smaller, the more the step sizes differ.
    """

    def __init__(
        self, name: str, *, learning_rate: float, momentum: float, second_moment: float, adaptivity: float
    ) -> None:
        self._second = _SECOND_MOMENTS[name]
        self._learning_rate, self._momentum = learning_rate, momentum
        self._beta2, self._adaptivity = second_moment, adaptivity
        self._mean: Matrix | float = 0.0
        self._square: Matrix | None = None

    @property
    def moved(self) -> Mapping[str, Matrix]:
        if self._square is None or not isinstance(self._mean, np.ndarray):
            return {}
        return {"mean": self._mean, "square": self._square}

    def resumed(self, moved: Mapping[str, Matrix]) -> None:
        self._mean, self._square = moved.get("mean", 0.0), moved.get("square")

    def step(self, change: Matrix) -> Matrix:
        if self._square is None:
            self._square = np.full_like(change, self._adaptivity**2)
        self._mean = self._momentum * self._mean + (1.0 - self._momentum) * change
        self._square = self._second(self._square, change * change, self._beta2)
        return self._learning_rate * self._mean / (np.sqrt(self._square) + self._adaptivity)


def optimiser_of(train: TrainSection) -> Optimiser:
    """Return a fresh optimiser for [train]."""
    if train.algorithm in _SECOND_MOMENTS:
        return Adaptive(
            train.algorithm,
            learning_rate=train.server_learning_rate,
            momentum=train.momentum,
            second_moment=train.second_moment,
            adaptivity=train.adaptivity,
        )
    return HeavyBall(learning_rate=train.server_learning_rate, momentum=train.momentum)
