"""The ideal `predict`: layers, their parameters and a plain `apply`.

A graph is public in its shape and private in its parameters. Adding a layer is one class here and one rule in each
backend that can run it; the others refuse it with a `Problem` that names the replacement.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from confide.errors import ModelError
from confide.model.trees import Trees

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


Layer = Linear | Square | Sigmoid | Trees


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
        layers: at least one; the first is Linear or Trees, no other is Trees, and shapes fit each other.
        classes: names of the outcomes ("benign", "malignant"); one output column stands for the second of two classes.
    """

    layers: tuple[Layer, ...]
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.layers or not isinstance(self.layers[0], Linear | Trees):
            raise ModelError("Expected a graph whose first layer is Linear or Trees")
        width = self.features
        for number, layer in enumerate(self.layers):
            if isinstance(layer, Trees):
                if number:
                    raise ModelError(f"Expected trees as the first layer, got them as layer {number}")
                width = len(layer.offset)
            elif isinstance(layer, Linear):
                if layer.weight.shape[1] != width:
                    raise ModelError(f"Expected layer {number} to take {width} inputs, got {layer.weight.shape[1]}")
                width = layer.weight.shape[0]
        if self.classes and len(self.classes) != max(width, 2):
            raise ModelError(f"Expected {max(width, 2)} classes for {width} outputs, got {len(self.classes)}")

    @property
    def features(self) -> int:
        """Return the number of input features."""
        first = self.layers[0]
        return first.features if isinstance(first, Trees) else first.weight.shape[1] if isinstance(first, Linear) else 0

    @property
    def outputs(self) -> int:
        """Return the number of output columns."""
        last = next(layer for layer in reversed(self.layers) if isinstance(layer, Linear | Trees))
        return len(last.offset) if isinstance(last, Trees) else last.weight.shape[0]

    @property
    def parameters(self) -> int:
        """Return the number of private numbers."""
        return sum(part.size for layer in self.layers for part in parts_of(layer))

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


def parts_of(layer: Layer) -> tuple[NDArray[Any], ...]:
    """Return the private arrays of a layer, in the order in which they make up one vector of parameters."""
    match layer:
        case Linear(weight, bias):
            return weight, bias
        case Trees():
            return layer.feature, layer.threshold, layer.value, layer.offset
        case _:
            return ()


def with_parts(layer: Layer, parts: Sequence[Matrix]) -> Layer:
    """Return `layer` with other values of `parts_of`, in the same shapes; of trees, the children stay.

    Raises:
        ModelError: values that no such layer has.
    """
    match layer:
        case Linear():
            return Linear(parts[0], parts[1])
        case Trees():
            if not (parts[0] == np.rint(parts[0])).all():
                raise ModelError("Expected whole numbers as the features that nodes compare")
            feature, threshold, value, offset = parts[0].astype(np.int64), *parts[1:]
            return replace(layer, feature=feature, threshold=threshold, value=value, offset=offset)
        case _:
            return layer


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
        case Trees():
            return layer.apply(x)
