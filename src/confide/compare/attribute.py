"""What does a model's answer tell about a column that was kept back? Guesses with the answer beside guesses without it.

The attacker knows the other columns of a person, has records of its own with the sensitive column (half of the
training records), and learns from them to guess it: once from the other columns alone, once from these and the model's
answers. The difference on records that it has not learnt from is what the answers tell.

A model that is any good tells something about everybody: a sensitive column that matters for the outcome shows in
it. What training on a person adds is the gap between records of the training and others.

Source: Yeom et al., Privacy Risk in Machine Learning (arXiv 1709.01604), section 4, for attacks that compare with a
guess without the model; Jayaraman and Evans, Are Attribute Inference Attacks Just Imputation? (arXiv 2209.01292), for
the comparison that counts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from confide.crypto.random import public_stream
from confide.errors import UsageError, nearest
from confide.model.graph import Graph
from confide.model.preprocess import OneHot, Preprocess, Scale
from confide.model.zoo import logistic
from confide.train.evaluate import decide
from confide.train.figures import Figure
from confide.train.joining import paired_gain
from confide.train.local import descend
from confide.train.run import Prepared

Matrix = NDArray[np.float64]
Labels = NDArray[np.int64]

_FEWEST = 20  # records on either side of the attacker's own
_STEPS, _RATE, _MOMENTUM, _RIDGE = 400, 4.0, 0.9, 1e-4


@dataclass(frozen=True, slots=True)
class Guessing:
    """How often guesses are right on some records.

    Args:
        without, with_model: share of right guesses.
        gain: their difference, with its interval at 95 % over records of this kind.
        records: how many.
    """

    without: float
    with_model: float
    gain: Figure
    records: int


@dataclass(frozen=True, slots=True)
class Attribute:
    """What the attack found.

    Args:
        column: the sensitive one.
        values: how many are told apart: the categories, or above and below the median.
        members, others: on records of the training, and on those set aside.
        commonest: share of the commonest value: what always guessing it gives.
    """

    column: str
    values: int
    members: Guessing
    others: Guessing
    commonest: float


def unfit(preprocess: Preprocess, column: str | None) -> str:
    """Return why this attack does not fit a job's columns; "" if it does."""
    known = ", ".join(preprocess.columns[:12])
    if column is None:
        return f"no sensitive column was named; name one with --sensitive: {known}"
    if column not in preprocess.columns:
        return f'there is no column "{column}"{nearest(column, preprocess.columns)}; there are {known}'
    if preprocess.unit_rows or preprocess.projection is not None or preprocess.centre:
        return "unit rows, projections and centres mix the columns, so none can be kept back from features"
    if not isinstance(_rule(preprocess, column), Scale | OneHot):
        return f'"{column}" holds images'
    return ""


def _rule(preprocess: Preprocess, column: str) -> object:
    return next(rule for rule in preprocess.rules if rule.name == column)


def split_features(preprocess: Preprocess, column: str, x: Matrix) -> tuple[Matrix, Matrix]:
    """Return a column's own features and those of the others, shapes (n, own) and (n, rest)."""
    at = 0
    for rule in preprocess.rules:
        if rule.name == column:
            own = np.s_[at : at + rule.count]
            return x[:, own], np.delete(x, own, axis=1)
        at += rule.count
    raise UsageError(f'Expected a column of the job, got "{column}"{nearest(column, preprocess.columns)}')


def attribute(graph: Graph, data: Prepared, column: str, *, seed: int) -> Attribute:
    """Attack one column.

    Args:
        graph: the model, trained on the job's silos.
        data: of the job; records of its silos are members, those of its test table are others.
        column: the sensitive raw column; `unfit` has nothing against it.
        seed: of which records are the attacker's own.

    Raises:
        UsageError: too few records.
    """
    x = np.concatenate([silo.x for silo in data.silos])
    order = public_stream(seed, "the attacker's own records").permutation(len(x))
    own, members = x[order[: len(x) // 2]], x[order[len(x) // 2 :]]
    if min(len(own), len(members), len(data.test.x)) < _FEWEST:
        raise UsageError(f"Expected {2 * _FEWEST} training records and {_FEWEST} set aside, to attack a column")
    values = _Values.of(data.preprocess, column, own)
    fitted = {answers: _fit(_inputs(graph, data.preprocess, column, own, answers), values.of_rows(own), values.count)
              for answers in (False, True)}  # fmt: skip

    def guessing(rows: Matrix) -> Guessing:
        truth = values.of_rows(rows)
        right = {
            answers: decide(model.apply(_inputs(graph, data.preprocess, column, rows, answers))) == truth
            for answers, model in fitted.items()
        }
        gain = paired_gain(
            int((right[True] & ~right[False]).sum()), int((right[False] & ~right[True]).sum()), len(rows)
        )
        return Guessing(float(right[False].mean()), float(right[True].mean()), gain, len(rows))

    commonest = np.bincount(values.of_rows(members)).max() / len(members)
    return Attribute(column, values.count, guessing(members), guessing(data.test.x), float(commonest))


@dataclass(frozen=True, slots=True, eq=False)
class _Values:
    """What is guessed: a category, or for a number whether it lies above the median of the attacker's own records."""

    preprocess: Preprocess
    column: str
    count: int
    median: float | None

    @staticmethod
    def of(preprocess: Preprocess, column: str, own: Matrix) -> _Values:
        found = _Values(preprocess, column, 2, None)
        features = found._features(own)
        if features.shape[1] > 2 or isinstance(_rule(preprocess, column), OneHot):
            return replace(found, count=max(2, features.shape[1]))
        return replace(found, median=float(np.median(features[:, 0])))

    def _features(self, x: Matrix) -> Matrix:
        return split_features(self.preprocess, self.column, x)[0]

    def of_rows(self, x: Matrix) -> Labels:
        """Return the number of each row's value, shape (n,)."""
        features = self._features(x)
        if self.median is None:
            return features.argmax(axis=1).astype(np.int64)
        return (features[:, 0] > self.median).astype(np.int64)


def _inputs(graph: Graph, preprocess: Preprocess, column: str, x: Matrix, answers: bool) -> Matrix:
    """Return what the attacker knows of each row: the other columns, and with `answers` the model's as logits."""
    others = split_features(preprocess, column, x)[1]
    if not answers:
        return others
    y = np.clip(graph.apply(x), 1e-9, 1 - 1e-9)
    return np.hstack([others, np.log(y) - np.log1p(-y)])


def _fit(inputs: Matrix, values: Labels, count: int) -> _Model:
    """Return a logistic model of the values, on inputs of mean 0 and deviation 1."""
    mean, deviation = inputs.mean(axis=0), np.maximum(inputs.std(axis=0), 1e-9)
    start = logistic(inputs.shape[1], 1 if count == 2 else count)
    scale = 1 / np.sqrt(inputs.shape[1])
    graph = descend(
        start, (inputs - mean) / deviation * scale, values, steps=_STEPS, learning_rate=_RATE, momentum=_MOMENTUM,
        weight_decay=_RIDGE,
    )  # fmt: skip
    return _Model(graph, mean, deviation / scale)


@dataclass(frozen=True, slots=True, eq=False)
class _Model:
    graph: Graph
    mean: Matrix
    deviation: Matrix

    def apply(self, inputs: Matrix) -> Matrix:
        return self.graph.apply((inputs - self.mean) / self.deviation)
