"""The ideal `predict`: layers, their parameters and a plain `apply`.

A graph is public in its shape and private in its parameters. Adding a layer is one class here and one rule in each
backend that can run it; the others refuse it with a `Problem` that names the replacement.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from confide.errors import ModelError

Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Linear:
    """y = x Wᵀ + b.

    Args:
        weight: float64, shape (outputs, inputs).
        bias: float64, shape (outputs,).
    """

    weight: Matrix
    bias: Matrix

    def __post_init__(self) -> None:
        if self.weight.ndim != 2 or self.bias.shape != self.weight.shape[:1] or not self.weight.size:
            raise ModelError(
                f"Expected weight (outputs, inputs) and bias (outputs,), got {self.weight.shape}, {self.bias.shape}"
            )
        if not (np.isfinite(self.weight).all() and np.isfinite(self.bias).all()):
            raise ModelError("Expected finite parameters; the training diverged: lower the learning rate")

    def __repr__(self) -> str:  # parameters are private, the shape is not
        return f"Linear({self.weight.shape[1]} -> {self.weight.shape[0]})"


@dataclass(frozen=True, slots=True)
class Square:
    """y = x², elementwise: the activation that encrypted arithmetic has for free."""


@dataclass(frozen=True, slots=True)
class Sigmoid:
    """y = 1 / (1 + exp(-x)), elementwise."""


Layer = Linear | Square | Sigmoid


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that a backend cannot run, and what to use instead."""

    layer: str
    reason: str
    replacement: str

    def __str__(self) -> str:
        return f"{self.layer}: {self.reason}; {self.replacement}"


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """A chain of layers.

    Args:
        layers: at least one; the first is Linear, shapes fit each other.
        classes: names of the outcomes ("benign", "malignant"); one output column stands for the second of two classes.
    """

    layers: tuple[Layer, ...]
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.layers or not isinstance(self.layers[0], Linear):
            raise ModelError("Expected a graph whose first layer is Linear")
        width = self.layers[0].weight.shape[1]
        for number, layer in enumerate(self.layers):
            if isinstance(layer, Linear):
                if layer.weight.shape[1] != width:
                    raise ModelError(f"Expected layer {number} to take {width} inputs, got {layer.weight.shape[1]}")
                width = layer.weight.shape[0]
        if self.classes and len(self.classes) != max(width, 2):
            raise ModelError(f"Expected {max(width, 2)} classes for {width} outputs, got {len(self.classes)}")

    @property
    def features(self) -> int:
        """Return the number of input features."""
        first = self.layers[0]
        return first.weight.shape[1] if isinstance(first, Linear) else 0

    @property
    def outputs(self) -> int:
        """Return the number of output columns."""
        return next(layer.weight.shape[0] for layer in reversed(self.layers) if isinstance(layer, Linear))

    @property
    def parameters(self) -> int:
        """Return the number of private numbers."""
        return sum(layer.weight.size + layer.bias.size for layer in self.layers if isinstance(layer, Linear))

    def apply(self, x: Matrix) -> Matrix:
        """Return predictions.

        Args:
            x: float64, shape (batch, features), finite.

        Returns:
            float64, shape (batch, outputs).

        Raises:
            ModelError: x has another shape.
        """
        if x.ndim != 2 or x.shape[1] != self.features:
            raise ModelError(f"Expected x of shape (batch, {self.features}), got {x.shape}")
        y = np.asarray(x, np.float64)
        for layer in self.layers:
            y = _apply(layer, y)
        return y


def sigmoid(x: Matrix) -> Matrix:
    """Return 1 / (1 + exp(-x)) without overflow for any finite x."""
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, small) / (1.0 + small)


def _apply(layer: Layer, x: Matrix) -> Matrix:
    match layer:
        case Linear(weight, bias):
            return x @ weight.T + bias
        case Square():
            return x * x
        case Sigmoid():
            return sigmoid(x)
