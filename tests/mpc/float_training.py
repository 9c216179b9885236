"""Training in float64 with the same batches and activations: what training on shares is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from confide.mpc.training import admission, beginning, step
from confide.mpc.training_plan import Task

from . import plain

Matrix = NDArray[np.float64]


def sigmoid3(z: Matrix) -> Matrix:
    return np.clip(z + 0.5, 0.0, 1.0)


def sigmoid(z: Matrix) -> Matrix:
    return 1 / (1 + np.exp(-z))


@dataclass
class Float:
    """A model that numpy trains."""

    weights: list[Matrix]
    biases: list[Matrix]
    loss: str = "logistic"
    activation: Any = sigmoid3

    def __post_init__(self):
        self.velocity = [[0 * part for part in pair] for pair in zip(self.weights, self.biases, strict=True)]

    def scores(self, x: Matrix) -> Matrix:
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            x = np.maximum(x @ weight + bias, 0)
        return x @ self.weights[-1] + self.biases[-1]

    def step(self, x: Matrix, y: Matrix, *, rate: float, batch: int, momentum: float = 0.0, pull: float = 0.0) -> None:
        inputs, scores = [x], []
        for weight, bias in zip(self.weights, self.biases, strict=True):
            scores.append(inputs[-1] @ weight + bias)
            inputs.append(np.maximum(scores[-1], 0))
        error = (self.activation(scores[-1]) if self.loss == "logistic" else scores[-1]) - y
        for layer in range(len(self.weights) - 1, -1, -1):
            slopes = inputs[layer].T @ error, error.sum(0)
            before = (error @ self.weights[layer].T) * (scores[layer - 1] >= 0) if layer else error
            velocity = [momentum * old + new for old, new in zip(self.velocity[layer], slopes, strict=True)]
            self.velocity[layer] = velocity
            self.weights[layer] = (1 - pull) * self.weights[layer] - rate / batch * velocity[0]
            self.biases[layer] = self.biases[layer] - rate / batch * velocity[1]
            error = before


def start_of(task: Task, seed: int = 1) -> list[Matrix]:
    """Return starting weights: zeros of a linear model, else normal ones."""
    rng = np.random.default_rng(seed)
    if not task.hidden:
        return [np.zeros((inner, outer)) for inner, outer in pairwise(task.widths)]
    return [rng.normal(size=(inner, outer)) / np.sqrt(inner) for inner, outer in pairwise(task.widths)]


def begun(task: Task, weights: list[Matrix]) -> dict[str, Matrix]:
    """Return what `training.beginning` loads."""
    found: dict[str, Matrix] = {}
    for layer, weight in enumerate(weights, 1):
        zeros = np.zeros(weight.shape[1])
        found |= {f"sum{layer}": weight, f"w{layer}": weight, f"b{layer}": zeros, f"u{layer}": zeros}
        found[f"v{layer}"] = np.zeros(weight.shape)
    return found


def train_in_the_clear(task: Task, weights: list[Matrix], batches: list[tuple[Matrix, Matrix]]) -> tuple[list, list]:
    """Return weights and biases after the programs have run on integers, one step for each batch."""
    state = plain.run(beginning(task), begun(task, weights)).kept
    for x, y in batches:
        state |= plain.run(admission(task, len(x)), {"x": x, "y": y}).kept
        state |= plain.run(step(task, len(x)), state).kept
    layers = range(1, len(task.widths))
    return (
        [plain.decoded(state[f"sum{layer}"], task.rates.sum_scale) for layer in layers],
        [plain.decoded(state[f"b{layer}"], 32) for layer in layers],
    )


def train_in_float(
    task: Task, weights: list[Matrix], batches: list[tuple[Matrix, Matrix]], *, batch: int, activation: Any = sigmoid3
) -> Float:
    """Return the same training in float64."""
    biases = [np.zeros(weight.shape[1]) for weight in weights]
    model = Float([weight.copy() for weight in weights], biases, task.loss, activation)
    rates = task.rates
    for x, y in batches:
        rate = rates.learning_rate(batch)
        model.step(x, y, rate=rate, batch=batch, momentum=rates.inertia, pull=rates.pull)
    return model
