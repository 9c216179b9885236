"""The ideal `predict`: a chain of layers and a plain `apply`.

A graph is public in its shape and private in its parameters. Adding a layer is one class in `layers` and one rule in
each backend that can run it; the others refuse it with a `Problem` that names the replacement.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from confide.errors import ModelError
from confide.model.attention import Argmax, Attention, LayerNorm, Softmax
from confide.model.layers import (
    AveragePool,
    Conv,
    Gelu,
    Layer,
    Linear,
    Matrix,
    Polynomial,
    Relu,
    Residual,
    Sigmoid,
    Square,
    Tanh,
    applied,
    gelu,
    inputs_of,
    parts_of,
    sigmoid,
    width_after,
    with_parts,
)
from confide.model.max_pool import MaxPool
from confide.model.trees import Trees

__all__ = [
    "Argmax",
    "Attention",
    "AveragePool",
    "Conv",
    "Gelu",
    "Graph",
    "Layer",
    "LayerNorm",
    "Linear",
    "Matrix",
    "MaxPool",
    "Polynomial",
    "Problem",
    "Relu",
    "Residual",
    "Sigmoid",
    "Softmax",
    "Square",
    "Tanh",
    "Trees",
    "applied",
    "gelu",
    "inputs_of",
    "parts_of",
    "sigmoid",
    "width_after",
    "with_parts",
]


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
        layers: at least one; the first fixes the number of features (Linear, Conv, a pool or Trees), no other is
            Trees, and shapes fit each other.
        classes: names of the outcomes ("benign", "malignant"); one output column stands for the second of two classes.
    """

    layers: tuple[Layer, ...]
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.layers or inputs_of(self.layers[0]) is None:
            raise ModelError("Expected a graph whose first layer is Linear, Conv, a pool or Trees")
        if any(isinstance(layer, Trees) for layer in self.layers[1:]):
            raise ModelError("Expected trees as the first layer alone")
        width = self.widths[-1]
        if self.classes and len(self.classes) != max(width, 2):
            raise ModelError(f"Expected {max(width, 2)} classes for {width} outputs, got {len(self.classes)}")

    @property
    def features(self) -> int:
        """Return the number of input features."""
        return inputs_of(self.layers[0]) or 0

    @property
    def widths(self) -> tuple[int, ...]:
        """Return the features before the first layer, and after each."""
        found = [self.features]
        for number, layer in enumerate(self.layers):
            found.append(width_after(layer, found[-1], f"layer {number}"))
        return tuple(found)

    @property
    def outputs(self) -> int:
        """Return the number of output columns."""
        return self.widths[-1]

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
            y = applied(layer, y)
        return y
