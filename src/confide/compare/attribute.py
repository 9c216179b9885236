"""What does a model's answer tell about a column that was kept back? Guesses with the answer beside guesses without it.

The attacker knows the other columns of a person, has records of its own with the sensitive column (half of the
training records), and learns from them to guess it: once from the other columns alone, once from these and the model's
answers. The difference on records that it has not learnt from is what the answers tell.

An exact answer of a linear model and all other columns give the last one exactly, of everybody and whatever protected
the training. What training on a person adds is the gap between records of the training and others.

Source: Yeom et al., Privacy Risk in Machine Learning (arXiv 1709.01604), section 4, for attacks that compare with a
guess without the model; Jayaraman and Evans, Are Attribute Inference Attacks Just Imputation? (arXiv 2209.01292), for
the comparison that counts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from confide.compare.attack import logits
from confide.compare.extraction import fitted
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
Guess = Callable[[Matrix], Labels]

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


def mixes(preprocess: Preprocess) -> bool:
    """Return whether features mix the columns, so that a column cannot be kept back from them."""
    return preprocess.unit_rows or preprocess.projection is not None or bool(preprocess.centre)


@dataclass(frozen=True, slots=True, eq=False)
class Records:
    """Records as the attacker sees their columns, and as the model takes them: row by row the same ones.

    Args:
        plain: one group of features for each column, shape (n, plain features).
        taken: features of the model, shape (n, features): unit rows, say, which no column can be kept back from.
    """

    plain: Matrix
    taken: Matrix

    def only(self, rows: NDArray[np.int64]) -> Records:
        """Return some of them."""
        return Records(self.plain[rows], self.taken[rows])


def attribute(graph: Graph, data: Prepared, column: str, *, seed: int, plain: Prepared | None = None) -> Attribute:
    """Attack one column.

    Args:
        graph: the model, trained on the job's silos.
        data: of the job; records of its silos are members, those of its test table are others.
        plain: the same records in the same order without what mixes the columns; None where nothing does.
        column: the sensitive raw column; `unfit` has nothing against it.
        seed: of which records are the attacker's own.

    Raises:
        UsageError: too few records.
    """
    seen = plain or data
    every, test = _records(data, seen), Records(seen.test.x, data.test.x)
    count = len(every.plain)
    order = public_stream(seed, "the attacker's own records").permutation(count)
    own, members = every.only(order[: count // 2]), every.only(order[count // 2 :])
    if min(len(own.plain), len(members.plain), len(test.plain)) < _FEWEST:
        raise UsageError(f"Expected {2 * _FEWEST} training records and {_FEWEST} set aside, to attack a column")
    values = _Values.of(seen.preprocess, column, own.plain)
    guess = {answers: _learnt(_inputs(graph, seen.preprocess, column, own, answers), values, own.plain, seed)
             for answers in (False, True)}  # fmt: skip

    def guessing(records: Records) -> Guessing:
        rows = records.plain
        truth = values.of_rows(rows)
        right = {
            answers: found(_inputs(graph, seen.preprocess, column, records, answers)) == truth
            for answers, found in guess.items()
        }
        gain = paired_gain(
            int((right[True] & ~right[False]).sum()), int((right[False] & ~right[True]).sum()), len(rows)
        )
        return Guessing(float(right[False].mean()), float(right[True].mean()), gain, len(rows))

    commonest = np.bincount(values.of_rows(members.plain)).max() / len(members.plain)
    return Attribute(column, values.count, guessing(members), guessing(test), float(commonest))


def _records(data: Prepared, plain: Prepared) -> Records:
    """Return the training records. Raises UsageError where the two are not of the same rows."""
    pairs = list(zip([*data.silos, data.test], [*plain.silos, plain.test], strict=True))
    if any(not np.array_equal(one.y, other.y) for one, other in pairs):
        raise UsageError("Expected the same records with columns that are not mixed; this job parts them otherwise")
    return Records(np.concatenate([silo.x for silo in plain.silos]), np.concatenate([silo.x for silo in data.silos]))


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

    def goal(self, x: Matrix) -> Matrix:
        """Return what a regression is fitted to: one column above 0 past the median, or one column for each value."""
        if self.median is not None:
            return self._features(x)[:, :1] - self.median
        return np.eye(self.count)[self.of_rows(x)]

    def of_rows(self, x: Matrix) -> Labels:
        """Return the number of each row's value, shape (n,)."""
        if self.median is not None:
            return self.chosen(self.goal(x))
        return self._features(x).argmax(axis=1).astype(np.int64)

    def chosen(self, scores: Matrix) -> Labels:
        """Return the value that scores of the form of `goal` stand for, shape (n,)."""
        found = scores.argmax(axis=1) if self.median is None else scores[:, 0] > 0
        return found.astype(np.int64)


def _inputs(graph: Graph, preprocess: Preprocess, column: str, records: Records, answers: bool) -> Matrix:
    """Return what the attacker knows of each row: the other columns, and with `answers` the model's as logits."""
    others = split_features(preprocess, column, records.plain)[1]
    if not answers:
        return others
    return np.hstack([others, logits(graph.apply(records.taken))])


def _learnt(inputs: Matrix, values: _Values, own: Matrix, seed: int) -> Guess:
    """Return the way of guessing that is right most often on a fifth of the attacker's records, learnt from all."""
    truth, goal, cut = values.of_rows(own), values.goal(own), len(own) // 5

    def made(rows: slice) -> tuple[Guess, ...]:
        line = _line(inputs[rows], goal[rows])
        bent = fitted(inputs[rows], goal[rows], seed=seed)
        odds = _odds(inputs[rows], truth[rows], values.count)
        return (lambda x: values.chosen(line(x)), lambda x: values.chosen(bent(x)), odds)

    right = [float((guess(inputs[:cut]) == truth[:cut]).mean()) for guess in made(np.s_[cut:])]
    return made(np.s_[:])[int(np.argmax(right))]


def _line(inputs: Matrix, goal: Matrix) -> Callable[[Matrix], Matrix]:
    """Return least squares: the answer of a linear model and all other columns give the last one exactly."""
    centre = inputs.mean(axis=0)
    weights = np.linalg.lstsq(np.hstack([np.ones((len(inputs), 1)), inputs - centre]), goal, rcond=1e-10)[0]
    return lambda x: np.hstack([np.ones((len(x), 1)), x - centre]) @ weights


def _odds(inputs: Matrix, truth: Labels, count: int) -> Guess:
    """Return logistic regression, on inputs of mean 0 and deviation 1."""
    mean, deviation = inputs.mean(axis=0), np.maximum(inputs.std(axis=0), 1e-9) * np.sqrt(inputs.shape[1])
    graph = descend(
        logistic(inputs.shape[1], 1 if count == 2 else count), (inputs - mean) / deviation, truth, steps=_STEPS,
        learning_rate=_RATE, momentum=_MOMENTUM, weight_decay=_RIDGE,
    )  # fmt: skip
    return lambda x: decide(graph.apply((x - mean) / deviation))
