"""Attacks that a report runs for real, so that no row promises more than it keeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from confide.model.graph import Graph, Linear, Sigmoid

Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Extraction:
    """The outcome of a model extraction.

    Args:
        queries: predictions asked for.
        largest_error: largest absolute difference of a parameter, relative to the largest parameter.
        agreement: share of held-out inputs on which the stolen model decides like the true one.
    """

    queries: int
    largest_error: float
    agreement: float


def extract_affine(scores: Callable[[Matrix], Matrix], features: int) -> Linear:
    """Return the affine function behind `scores`, learnt from features + 1 of its answers.

    The answer at the origin gives the bias b, the answer at each unit vector gives b + w_j.

    Args:
        scores: (batch, features) -> (batch, outputs), affine.
        features: number of inputs.
    """
    answers = scores(np.vstack([np.zeros(features), np.eye(features)]))
    return Linear((answers[1:] - answers[0]).T, answers[0])


def extract_linear(predict: Callable[[Matrix], Matrix], features: int) -> Graph:
    """Return the linear model behind `predict`, learnt from features + 1 of its answers.

    A logistic model is w.x + b seen through an invertible function. No technique of private inference hides what its
    correct answers say.

    Args:
        predict: (batch, features) -> (batch, outputs), probabilities.
        features: number of inputs.
    """
    return Graph((extract_affine(lambda x: logits(predict(x)), features), Sigmoid()))


def logits(answers: Matrix) -> Matrix:
    """Return log(p / (1 - p)) of probabilities, those beyond [0, 1] by an answer's error cut; finite."""
    inside = np.clip(answers, 1e-300, 1 - 1e-16)
    return np.log(inside) - np.log1p(-inside)


def extraction(predict: Callable[[Matrix], Matrix], truth: Graph, held_out: Matrix) -> Extraction:
    """Run `extract_linear` against a served logistic model and compare with the true one.

    Args:
        predict: asks the service.
        truth: the served graph: one Linear layer with one output, then Sigmoid.
        held_out: float64, shape (n, features), inputs on which decisions are compared.
    """
    stolen = extract_linear(predict, truth.features)
    found, true = stolen.layers[0], truth.layers[0]
    if not (isinstance(found, Linear) and isinstance(true, Linear)):
        raise TypeError("a graph starts with Linear")
    ours = np.append(found.weight.ravel(), found.bias)
    theirs = np.append(true.weight.ravel(), true.bias)
    same = (stolen.apply(held_out) > 0.5) == (truth.apply(held_out) > 0.5)
    return Extraction(
        queries=truth.features + 1,
        largest_error=float(np.abs(ours - theirs).max() / np.abs(theirs).max()),
        agreement=float(same.mean()),
    )
