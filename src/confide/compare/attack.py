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


def extract_linear(predict: Callable[[Matrix], Matrix], features: int) -> Graph:
    """Return the linear model behind `predict`, learnt from features + 1 of its answers.

    A logistic model is w.x + b seen through an invertible function: the answer at the origin gives b, the answer at
    each unit vector gives b + w_j. No technique of private inference hides what its correct answers say.

    Args:
        predict: (batch, features) -> (batch, 1), probabilities.
        features: number of inputs.
    """
    queries = np.vstack([np.zeros(features), np.eye(features)])
    answers = np.clip(predict(queries)[:, 0], 1e-300, 1 - 1e-16)
    logits = np.log(answers) - np.log1p(-answers)
    return Graph((Linear((logits[1:] - logits[0])[None, :], logits[:1]), Sigmoid()))


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
